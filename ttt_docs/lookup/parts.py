"""The parts of a document that a question can point to: pages, chapters, numbered clauses and sections.

Pages and chapters are those that the file's format gave, else those that the text shows. Clauses are found by their
numbers where a paragraph begins: "9. Termination", "§ 9", "Section 9", "Article IX", "4.2 Scope". Tables of contents
and lists inside clauses have such numbers too. Of all runs of numbers that count up, the one with the most text below
its numbers is the document's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

from ttt_docs.documents.plain import chapter_spans
from ttt_docs.memory.header import ReadDocument
from ttt_docs.memory.memory import Memory
from ttt_docs.text.numbers import NUMBER_WORDS
from ttt_docs.text.sentences import PARAGRAPH, SENTENCE_END, Span
from ttt_docs.text.spans import Span as LabelSpan
from ttt_docs.text.spans import moved_spans, spans_from_starts

_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
_VALUES = {word: i for word, i in NUMBER_WORDS.items() if i} | {word: i for i, word in enumerate(_ORDINALS, 1)}
_ROMAN = re.compile(r"m{0,3}(?:cm|cd|d?c{0,3})(?:xc|xl|l?x{0,3})(?:ix|iv|v?i{0,3})")
_LETTERS = {"i": 1, "v": 5, "x": 10, "l": 50, "c": 100, "d": 500, "m": 1000}


def key(written: str) -> str:
    """A number as numbers are compared: "IX", "nine" and "9." are "9", "12.3 (b)" is "12.3.b"."""
    first, *rest = re.findall(r"[^\W_]+(?:-[^\W_]+)?", written.lower()) or [""]
    if first in _VALUES:
        first = str(_VALUES[first])
    elif first and _ROMAN.fullmatch(first):
        values = [_LETTERS[letter] for letter in first]
        first = str(sum(-a if a < b else a for a, b in pairwise([*values, 0])))
    return ".".join([first.lstrip("0") or first, *rest])


def place(word: str) -> int:
    """Where the "first", "second" or "last" of a list stands in it: 0, 1, -1."""
    word = word.lower().split()[-1]
    return 0 if word == "opening" else _VALUES.get(word, 0) - 1


@dataclass(frozen=True)
class Part:
    """A page, chapter or clause: characters `start` to `end` of the memory's text."""

    word: str  # "page", "chapter", "section", ...; "" for a number alone, "roman" for a Roman one
    number: str  # as `key` gives it; empty for a chapter, whose name may have more than one
    name: str  # as the document writes it, with its title
    title: str  # empty where it has none
    start: int
    body: int  # where the text after number and title begins
    end: int

    @property
    def level(self) -> tuple[int, int]:
        """The rank of its heading, and how many numbers it has; a smaller one stands above a larger one."""
        return _RANKS.get(self.word, 3), self.number.count(".")


#: Words of headings above chapters, or in place of them.
_DIVISIONS = "chapter|book|part|volume|act|scene|letter|canto|stave"
_HEADED = re.compile(rf"(?i)^(?:.*\b)?(?:{_DIVISIONS})\.?\s+(?:the\s+)?[\w-]+")
#: Words of numbered headings. An appendix counts by itself.
_APPENDICES = ("appendix", "annex", "schedule", "exhibit")
_SECTIONS = ("section", "clause", "paragraph")
_RANKS = dict.fromkeys(_APPENDICES, 0) | {"article": 1, "section": 2, "clause": 2, "roman": 2}
_NUMBERED = re.compile(
    rf"^[ \t]*(?:(?P<word>(?i:{'|'.join((*_SECTIONS, 'article', *_APPENDICES))}|art\.|sec\.))[ \t]+"
    r"(?P<named>\d{1,3}(?:\.\d{1,3})*[a-z]?|[IVXLC]+|[A-H])\b(?=[.:)]|[ \t]*$|[ \t]*[-–—]|[ \t]+[A-Z“\"(])"
    r"|§+[ \t]*(?P<sign>\d{1,3}(?:\.\d{1,3})*[a-z]?)\b"
    r"|(?P<number>\d{1,3}(?:\.\d{1,3})+|\d{1,3}(?=[.):]|[ \t]*$)|[IVXLC]+(?=\.|[ \t]*$)"
    r"|\d{1,2}(?=[ \t]+[A-Z][^.\n]{2,70}$)))"
    r"[.:)]*(?=\s|$|[-–—])[ \t–—-]*(?P<rest>.*)$",
    re.MULTILINE,
)
#: A line of a table of contents ends with its page.
_CONTENTS_LINE = re.compile(r"(?:\.{2,}|…|\t|\s{2,})\s*\d{1,4}\s*$")
#: What a number of a run counts, and how many characters of text below it count too.
_STEP = 1000


@dataclass(frozen=True)
class Parts:
    """The parts of one document of a memory that has its text."""

    memory: Memory
    document: ReadDocument

    @property
    def text(self) -> str:
        return self.memory.text or ""

    @cached_property
    def pages(self) -> list[Part]:
        """The pages that the file has; else those between form feeds, or after marks such as "[Pg 12]"."""
        spans = [span for span in self.document.spans if span.kind == "page"]
        if not spans:
            text = self.text[self.document.start : self.document.end]
            feeds = [0, *(match.end() for match in re.finditer("\f", text))]
            marks = [(mark.end(), mark[1]) for mark in re.finditer(r"[\[{](?:Pg|Page)\.? ?(\w{1,5})[\]}]", text)]
            starts = [(at, str(page)) for page, at in enumerate(feeds, 1)] if len(feeds) > 1 else marks
            spans = self._moved(spans_from_starts("page", starts, len(text)))
        return [Part("page", key(s.label), s.label, "", s.start, s.start, s.end) for s in spans]

    @cached_property
    def chapters(self) -> list[Part]:
        """The chapters that the file has, else those whose headings the text shows; what stands before is left out.

        A heading with the document's title alone is none.
        """
        spans = [s for s in self.document.spans if s.kind == "chapter" and s.label != "front matter"]
        spans = spans or self._moved(chapter_spans(self.text[self.document.start : self.document.end]))
        if len(spans) > 1 and self.text[spans[0].start : spans[0].end].strip() == spans[0].label:
            spans = spans[1:]
        return [self._chapter(span) for span in spans]

    def _moved(self, spans: Iterable[LabelSpan]) -> list[LabelSpan]:
        moved = moved_spans(spans, self.document.start, self.document.end)
        return [span for span in moved if span.label != "front matter"]

    def _chapter(self, span: LabelSpan) -> Part:
        """A chapter with its title: what its heading says after the number, or the line below without a full stop."""
        label = " ".join(span.label.split())
        headed = _HEADED.match(label) or re.match(r"(?:\d{1,3}|[IVXLC]+)(?=[.:)\s]|$)", label)
        title = label[headed.end() :].strip(" .:–—-_") if headed else label
        heading = re.compile(r"\s+".join(map(re.escape, span.label.split())), re.IGNORECASE)
        body = found.end() if (found := heading.match(self.text, span.start)) else span.start
        below = None if title else PARAGRAPH.search(self.text, body, span.end)
        if below and (line := _heading(below.group())):
            title, body = line, below.end()
        return Part("chapter", "", label, title, span.start, body, span.end)

    @cached_property
    def clauses(self) -> list[Part]:
        """The numbered clauses and sections, in order. One holds those of lower levels that follow it."""
        found = list(self._numbers())
        room: dict[int, int] = {}  # characters up to the next number that is no deeper
        following: dict[int, int] = {}  # depth -> where the next number of that depth stands
        for one in reversed(found):
            depth = one.number.count(".")
            after = min((at for d, at in following.items() if d <= depth), default=self.document.end)
            room[one.start], following[depth] = after - one.body, one.start
        deeper: dict[tuple[str, str], Part] = {}
        for one in found:
            best = deeper.setdefault((one.word, one.number), one)
            if room[one.start] > room[best.start]:
                deeper[one.word, one.number] = one
        kept = [one for one in deeper.values() if not one.number.isdigit()]
        for word in dict.fromkeys(one.word for one in found):
            kept += _run([one for one in found if one.word == word and one.number.isdigit()], room)
        kept.sort(key=lambda one: one.start)
        unnumbered = [s.start for s in self.document.spans if s.kind == "chapter" and not re.search(r"\d", s.label)]
        ended = []
        for i, one in enumerate(kept):
            after_it = [other.start for other in kept[i + 1 :] if other.level <= one.level][:1]
            after_it += [start for start in unnumbered if start > one.body][:1]
            ended.append(replace(one, end=min([*after_it, self.document.end])))
        return ended

    def _numbers(self) -> Iterator[Part]:
        """Every number that may begin a clause, the end not known yet."""
        text, (low, high) = self.text, (self.document.start, self.document.end)
        for match in _NUMBERED.finditer(text, low, high):
            above = text[max(low, match.start() - 200) : match.start()]
            before = above.rstrip()
            blank = above[len(before) :].count("\n") > 1 or not before
            inside = not re.search(r"[.;:!?)”\"']$", before) and len(before) - before.rfind("\n") > 45
            if _CONTENTS_LINE.search(match["rest"]) or (not blank and (inside or match["rest"][:1].islower())):
                continue  # a line of a table of contents, or a number inside a wrapped paragraph
            number = match["named"] or match["sign"] or match["number"]
            word = (match["word"] or ("section" if match["sign"] else "")).lower()
            word = {"art.": "article", "sec.": "section"}.get(word, word)
            title, body = self._title(match)
            name = match.group()[: match.start("rest") - match.start()].strip(" \t–—-")
            name = f"{name} {title}".strip() if title else name
            kind = word or ("roman" if number[0].isalpha() else "")
            if not kind and not title and match.group().strip().isdigit():
                continue  # the number of a page
            yield Part(kind, key(number), name, title, match.start(), body, high)

    def _title(self, match: re.Match[str]) -> tuple[str, int]:
        """The title after a number, and its end: a short line, a few words before a full stop, or the next line."""
        text, rest, at = self.text, match["rest"].strip(), match.start("rest")
        if not rest:
            below = PARAGRAPH.search(text, match.end(), self.document.end)
            line = _heading(below.group()) if below else ""
            return (line, below.end()) if below and line else ("", match.end())
        run_in = re.match(r"([^\W\d_][^.:;]{1,60})[.:](?=\s|$)", rest)
        if run_in and len(run_in[1].split()) <= 7 and (run_in[1].istitle() or run_in.end() == len(rest)):
            return run_in[1].strip(), at + run_in.end()
        if len(rest) <= 80 and not SENTENCE_END.search(rest[-3:]) and rest[-1] not in ",;":
            following = text[match.end() : match.end() + 2].strip(" \t")
            if following in ("", "\n\n") or len(rest) <= 50:
                return rest, match.end()
        return "", at

    @cached_property
    def sections(self) -> list[Part]:
        """The clauses of the first level, without appendices."""
        own = [clause for clause in self.clauses if clause.word not in _APPENDICES]
        return [clause for clause in own if clause.level == min(one.level for one in own)]

    def listed(self, unit: str) -> list[Part]:
        """The chapters or the sections of the first level, as a question calls them; else whichever are more."""
        named = unit == "chapter" and any("chapter" in part.name.lower() for part in self.chapters)
        if unit in ("clause", "article") or not (named or len(self.chapters) >= len(self.sections)):
            return self.sections
        return self.chapters

    def find(self, word: str, written: str) -> list[Part]:
        """The parts with a number, such as ("clause", "12.3(b)"); more than one where numbers begin anew."""
        number = key(written)
        if word == "page":
            exact = [page for page in self.pages if page.name.lower() == written.lower()]
            return exact or [page for page in self.pages if page.number == number]
        if word in _DIVISIONS.split("|"):
            return self._divisions(word, written) or (self._clauses(("roman", ""), number) if word == "chapter" else [])
        alike = (word,) if word in _APPENDICES else tuple(dict.fromkeys((word, "", "roman")))
        alike += tuple(other for other in _SECTIONS if word in _SECTIONS and other != word)
        return self._clauses(alike, number) or self._divisions(word, written)

    def nth(self, word: str, at: int) -> list[Part]:
        """The first (0), second (1) or last (-1) part of a kind."""
        parts = self.pages if word == "page" else self.listed(word)
        return [parts[at]] if -len(parts) <= at < len(parts) else []

    def _divisions(self, word: str, written: str) -> list[Part]:
        """The chapters, books or acts of a number. A book or act runs to the next one."""
        headed = re.compile(rf"(?i)\b{word}\.?\s+(?:the\s+)?(\w+(?:-\w+)?)")
        heads = [(chapter, match[1]) for chapter in self.chapters if (match := headed.search(chapter.name))]
        if not heads and word in ("chapter", "section"):
            leading = re.compile(r"(\d{1,3}|[IVXLC]+)(?:[.:)\s]|$)")
            heads = [(chapter, match[1]) for chapter in self.chapters if (match := leading.match(chapter.name))]
        found = []
        for i, (chapter, number) in enumerate(heads):
            if key(number) == key(written):
                after = heads[i + 1][0].start if i + 1 < len(heads) else self.document.end
                end = chapter.end if word == "chapter" else after
                found.append((number.lower() == written.lower(), replace(chapter, end=end)))
        return [part for same, part in found if same] or [part for _, part in found]

    def _clauses(self, words: tuple[str, ...], number: str) -> list[Part]:
        """The clause of a number, or the item of a list in it: "12.3.b" is item (b) of 12.3."""
        for word in words:
            if found := [clause for clause in self.clauses if (clause.word, clause.number) == (word, number)]:
                return [max(found, key=lambda clause: clause.end - clause.start)]
        whole, _, letter = number.rpartition(".")
        for clause in self._clauses(words, whole) if whole else []:
            if span := _item(self.text, clause.body, clause.end, letter):
                return [replace(clause, number=number, name=f"{clause.name} ({letter})", title="", start=span[0],
                                body=span[0], end=span[1])]  # fmt: skip
        return []


def _heading(paragraph: str) -> str:
    """A paragraph as the title of what stands below it; empty where it is none."""
    line = " ".join(paragraph.split()).strip(" _")
    sentence = line[-1:] == "." and any(word[:1].islower() for word in line.split())
    goes_on = line[-1:] in tuple(",;:-–—") or (line[:1] in tuple("“\"'‘") and not line.istitle())
    return "" if len(line) > 80 or sentence or goes_on or _NUMBERED.match(line) else line.strip(" .")


def _run(found: list[Part], room: dict[int, int]) -> list[Part]:
    """Of all runs of numbers that count up (one may be missing), the one with the most numbers and text below them."""
    before: list[int] = []  # of each part the one before it in the best run that ends with it
    best: dict[int, tuple[int, int]] = {}  # number -> what the best run so far that ends with it counts, and its last
    for i, one in enumerate(found):
        number = int(one.number)
        count, last = max(best.get(number - 1, (0, -1)), best.get(number - 2, (0, -1)))
        before.append(last)
        best[number] = max(best.get(number, (0, -1)), (count + _STEP + min(room[one.start], _STEP), i))
    run: list[Part] = []
    at = max(best.values(), default=(0, -1))[1]
    while at >= 0:
        run.append(found[at])
        at = before[at]
    return run


def _item(text: str, start: int, end: int, letter: str) -> Span | None:
    """The item "(b)" of a list within text[start:end], up to the next one or the end of its paragraph."""
    mark = r"(?<!\S)(?:\({0}\)|{0}[.)])(?=\s)"
    found = re.compile(mark.format(letter), re.IGNORECASE).search(text, start, end)
    if found is None:
        return None
    roman = ("i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x")
    following = [str(int(letter) + 1) if letter.isdigit() else chr(ord(letter[-1]) + 1)]
    following += [roman[roman.index(letter) + 1]] if letter in roman[:-1] else []
    stops = "|".join(mark.format(one) for one in following)
    after = re.compile(rf"{stops}|\n[ \t]*\n", re.IGNORECASE).search(text, found.end(), end)
    return found.start(), after.start() if after else end
