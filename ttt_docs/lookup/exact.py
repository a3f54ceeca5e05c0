"""Answers that need no model: what a document says of itself, and what is counted in its text or copied from it.

A question is one of these only if the whole of it fits a pattern of the section "exact" of `patterns.json`. English
questions alone are known. In doubt there is no answer here, and the document is searched.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ttt_docs.generation.results import Answer, quote
from ttt_docs.lookup.front_matter import Stated, author_of, beginning, body_of, is_running, kind_of, story_of, title_of
from ttt_docs.lookup.parts import Part, Parts, place
from ttt_docs.lookup.patterns import compiled, patterns
from ttt_docs.lookup.search import occurrences
from ttt_docs.memory.header import ReadDocument
from ttt_docs.memory.memory import Memory
from ttt_docs.text.index import TOKEN
from ttt_docs.text.names import word_list
from ttt_docs.text.sentences import PARAGRAPH, Span, sentences, trimmed

_QUESTIONS = [(what, compiled(f"(?i){pattern}")) for what, pattern in patterns()["exact"]]
_POLITE = compiled(patterns()["router"]["polite"])
_THANKS = re.compile(r"[\s,]*(?:please|thanks|thank you)?[\s?.!]*$", re.IGNORECASE)
#: How a question may write the word for a part of a document.
_WRITTEN = {"p": "page", "pp": "page", "sec": "section", "cl": "clause", "art": "article", "para": "paragraph"}
_WRITTEN |= {"ch": "chapter", "vol": "volume", "stave": "stave", "staves": "stave", "appendix": "appendix"}
#: Characters of a part that are shown, and of a sentence; pieces of evidence for one document.
SHOWN, SENTENCE, MOST = 1200, 600, 5
#: Words of a string that is counted, at most, and small words that it may have.
_LONGEST, _CONNECTING = 6, frozenset(["the", "a", "an", "of", "and", "in", "on", "for", "to"])
_LAST = ("last", "final", "closing", "concluding", "end", "finish", "close")

#: What a question names: "part", "number", "unit", ...
Words = dict[str, str]


@dataclass(frozen=True)
class _Said:
    """The answer of one document."""

    text: str
    spans: Sequence[Span] = ()  # of the memory's text, as evidence
    sure: float | None = None
    answered: bool = True


def exact_question(question: str) -> tuple[str, Words] | None:
    """What a question asks for that needs no model, and the words that say of what; None for every other question."""
    plain = re.sub(r"§+\s*", "section ", " ".join(question.replace("’", "'").split()))
    plain = _THANKS.sub("", _POLITE.sub("", plain))
    for what, pattern in _QUESTIONS:
        if match := pattern.fullmatch(plain):
            words = {name.rstrip("0123456789"): said for name, said in match.groupdict().items() if said}
            return (what, words) if "name" not in words or _countable(words["name"]) else None
    return None


def exact_answer(memories: Sequence[Memory], question: str) -> Answer | None:
    """The answer to a question about titles, lengths, parts and mentions; None where it is no such question.

    Each document that has an answer gives its own. Where none has, `answered` is False and the text says what there is.
    """
    began = time.perf_counter()
    asked = exact_question(question)
    if asked is None or not memories or not all((memory.text or "").strip() for memory in memories):
        return None
    what, words = asked
    answer, reason = _ANSWERS[what]
    said = []
    for which, memory in enumerate(memories):
        for document in memory.documents or (ReadDocument("the document", 0, len(memory.text or "")),):
            parts = Parts(memory, document)
            said.append((which, parts, answer(parts, words)))
    told = [(which, parts, one) for which, parts, one in said if one is not None]
    answered = any(one.answered for _, _, one in told)
    if not told or (len(told) < len(said) and not answered):
        return None
    told = [pair for pair in told if pair[2].answered == answered]
    text = "\n".join(f"{parts.document.name}: {one.text}" if len(said) > 1 else one.text for _, parts, one in told)
    evidence = [
        quote(parts.memory, *span, 1.0, which)
        for which, parts, one in told
        for span in (trimmed(parts.text, *span) for span in one.spans[:MOST])
        if span[0] < span[1]
    ]
    sure = [one.sure for _, _, one in told if one.sure is not None]
    confidence = min(sure) if len(sure) == len(told) else None
    seconds = time.perf_counter() - began
    reason = reason if answered else "the document has no such thing"
    return Answer(text, "lookup", tuple(evidence), seconds, reason, answered, confidence, answered)


def _countable(name: str) -> bool:
    """Whether a string can be counted as it stands: it is quoted, or a few words of which none points elsewhere."""
    words = name.lower().split()
    pointing = (word_list("small") | word_list("asking") | {"time", "times"}) - _CONNECTING
    quoted = name[0] in "“\"'‘«" and name[-1] in "”\"'’»"
    return quoted or (len(words) <= _LONGEST and not pointing.intersection(words))


def _stated(found: Stated | None, parts: Parts, otherwise: str) -> _Said:
    if found is None:
        return _Said(otherwise, [beginning(parts.memory, parts.document)], answered=False)
    return _Said(found.text, found.spans, found.sure)


def _title(parts: Parts, words: Words) -> _Said:
    otherwise = f"The document gives no title. The name of its file is “{parts.document.name}”."
    return _stated(title_of(parts.memory, parts.document), parts, otherwise)


def _author(parts: Parts, words: Words) -> _Said:
    return _stated(author_of(parts.memory, parts.document), parts, "The document does not name its author.")


def _title_and_author(parts: Parts, words: Words) -> _Said:
    title, author = _title(parts, words), _author(parts, words)
    if not (title.answered and author.answered):
        return title if title.answered else author
    sure = None if title.sure is None or author.sure is None else title.sure * author.sure
    return _Said(f"{title.text}, by {author.text}", [*title.spans, *author.spans], sure)


def _kind(parts: Parts, words: Words) -> _Said | None:
    found = kind_of(parts.memory, parts.document)
    return None if found is None else _Said(found.text, found.spans, found.sure)


def _length(parts: Parts, words: Words) -> _Said | None:
    document, unit = parts.document, _singular(words.get("unit", ""))
    if "part" in words:
        counts = [f"{part.name}: {_words(parts, part.start, part.end):,} words" for part in _asked(parts, words)]
        return _Said("; ".join(counts)) if counts else _no_part(parts, words)
    pages = document.metadata.get("pages", "") if document.complete else ""
    whole = (document.start, document.end)
    count: dict[str, Callable[[], int]] = {
        "page": lambda: int(pages) if pages.isdigit() else len(parts.pages),
        "word": lambda: _words(parts, *whole),
        "paragraph": lambda: sum(1 for _ in PARAGRAPH.finditer(parts.text, *whole)),
        "sentence": lambda: len(sentences(parts.text, *whole)),
    }
    found = {}
    for one in (unit,) if unit else ("page", "chapter", "word"):
        found[unit or _listed_as(parts, one)] = count[one]() if one in count else len(parts.listed(one))
    if unit and not any(found.values()):
        what = "page numbers" if unit == "page" else f"{unit} headings"
        return _Said(f"The document has no {what}. It is {_words(parts, *whole):,} words long.", answered=False)
    read = "" if document.complete else " in the part that was read"
    return _Said(", ".join(_counted(n, one) for one, n in found.items() if n) + read)


def _list(parts: Parts, words: Words) -> _Said | None:
    unit = _singular(words.get("unit", "heading"))
    found = parts.listed(unit)
    if not found:
        return None if unit in ("clause", "article") else _Said(f"The document has no {unit} headings.", answered=False)
    names = [part.name if part.title in part.name else f"{part.name}: {part.title}" for part in found]
    unit = _listed_as(parts, "chapter") if unit == "heading" else unit
    return _Said("\n".join([f"{_counted(len(found), unit)}:", *names]), [(part.start, part.body) for part in found])


def _name(parts: Parts, words: Words) -> _Said | None:
    found = _asked(parts, words)
    titles = dict.fromkeys(part.title for part in found if part.title)
    if not titles:
        return _Said(f"{_capital(_wanted(words))} has no title.", answered=False) if found else _no_part(parts, words)
    return _Said("; ".join(titles), [(part.start, part.body) for part in found if part.title])


def _text(parts: Parts, words: Words) -> _Said | None:
    found = _asked(parts, words)
    if not found:
        return _no_part(parts, words)
    spans = [trimmed(parts.text, part.start, part.end) for part in found]
    shown = [(start, _cut(parts, start, end, SHOWN)) for start, end in spans]
    texts = [
        parts.text[start:cut]
        + (f"\n[…] ({_words(parts, start, cut):,} of {_words(parts, start, end):,} words)" if cut < end else "")
        for (start, end), (_, cut) in zip(spans, shown, strict=True)
    ]
    return _Said("\n\n".join(texts[:MOST]), shown)


def _edge(parts: Parts, words: Words) -> _Said | None:
    """The first or last sentence or paragraph of a part or of the document."""
    start, end = story_of(parts)
    if "part" in words:
        found = _asked(parts, words)
        if not found:
            return _no_part(parts, words)
        start, end = found[0].body, found[0].end
    order, unit = words.get("order", "first").lower(), _singular(words.get("unit", "sentence"))
    at = -1 if order.split()[-1] in _LAST else place(order)
    paragraphs = [match.span() for match in PARAGRAPH.finditer(parts.text, start, end)]
    paragraphs = [span for span in paragraphs if is_running(parts.text[slice(*span)])] or paragraphs
    spans: list[Span] = []
    for span in paragraphs[:: -1 if at < 0 else 1]:
        spans += [span] if unit == "paragraph" else sentences(parts.text, *span)[:: -1 if at < 0 else 1]
        if len(spans) > max(at, 0):
            break
    else:
        return _Said(f"There are only {_counted(len(spans), unit)} there.", answered=False)
    begin, stop = spans[max(at, 0)]
    cut = _cut(parts, begin, stop, SHOWN)
    return _Said(_line(parts, begin, cut) + (" […]" if cut < stop else ""), [(begin, stop)])


def _count(parts: Parts, words: Words) -> _Said:
    found = {name: _mentions(parts, name) for name in _names(parts, words["name"])}
    counts = [(f"“{name}”: " if len(found) > 1 else "") + _counted(len(at), "time") for name, at in found.items()]
    return _Said("; ".join(counts), _around(parts, [span for at in found.values() for span in at]))


def _where(parts: Parts, words: Words) -> _Said:
    name, order, unit = _names(parts, words["name"])[0], words.get("order", "").lower(), words.get("unit", "").lower()
    found = _mentions(parts, name)
    if not found:
        return _Said(f"The document does not contain “{name}”.", answered=False)
    if order:
        titles = tuple(part.title.lower() for part in parts.listed("chapter") if part.title)
        ordered = found if order == "first" else found[::-1]
        start, end = _around(parts, [next((one for one in ordered if _is_told(parts, one, titles)), ordered[0])])[0]
        where = ", ".join(filter(None, (_at(parts.pages, start, "page "), _section(parts, start))))
        share = (start - parts.document.start) / (parts.document.end - parts.document.start)
        sentence = _line(parts, start, _cut(parts, start, end, SENTENCE))
        return _Said(f"{_capital(where or f'{share:.0%} into the text')}: {sentence}", [(start, end)])
    pages = Counter(filter(None, (_at(parts.pages, start) for start, _ in found)))
    sections = Counter(filter(None, (_section(parts, start) for start, _ in found)))
    evidence, times = _around(parts, found), _capital(_counted(len(found), "time"))
    if unit in ("", "page") and pages:
        return _Said(f"{'Page' if len(pages) == 1 else 'Pages'} {_ranges(list(pages))} ({times.lower()})", evidence)
    note = "The document has no page numbers. " if unit == "page" else ""
    listed = "; ".join(f"{label} ({_counted(n, 'time')})" for label, n in sections.items())
    total = f"{times}: " if len(sections) > 1 else ""
    return _Said(note + (f"{total}{listed}" if listed else times), evidence)


_COUNTED, _COPIED = "counted in the document", "copied from the place that was asked for"
_SELF, _WORDS = "the file or its first page says so", "all places where these very words stand"
#: What is asked for -> how it is answered, and why the answer is so.
_ANSWERS: dict[str, tuple[Callable[[Parts, Words], _Said | None], str]] = {
    "title": (_title, _SELF),
    "author": (_author, _SELF),
    "title author": (_title_and_author, _SELF),
    "kind": (_kind, _SELF),
    "length": (_length, _COUNTED),
    "list": (_list, _COUNTED),
    "name": (_name, "the heading says so"),
    "text": (_text, _COPIED),
    "edge": (_edge, _COPIED),
    "count": (_count, _WORDS),
    "where": (_where, _WORDS),
}


def _asked(parts: Parts, words: Words) -> list[Part]:
    """The parts that a question points to, by number or by place; none where there is no such part."""
    word = _singular(words["part"])
    return parts.find(word, words["number"]) if "number" in words else parts.nth(word, place(words["nth"]))


def _wanted(words: Words) -> str:
    word = _singular(words["part"])
    return f"{word} {words['number']}" if "number" in words else f"the {words['nth'].lower()} {word}"


def _no_part(parts: Parts, words: Words) -> _Said | None:
    """What there is in place of a part that is not there; None where the text speaks of one that was not found."""
    word, wanted = _singular(words["part"]), _wanted(words).removeprefix("the ")
    if word == "page":
        has = [page.name for page in parts.pages]
    elif word in ("section", "clause", "article", "paragraph"):
        has = [clause.number for clause in parts.sections]
    else:
        named = (re.search(rf"\b{word}\.?\s+([\w-]+)", chapter.name, re.IGNORECASE) for chapter in parts.chapters)
        has = [match[1] for match in named if match]
    if has:
        return _Said(f"There is no {wanted}: the document has {word}s {_ranges(has)}.", answered=False)
    if re.search(rf"\b{re.escape(wanted)}\b", parts.text, re.IGNORECASE):
        return None
    lists = ((parts.pages, "page"), (parts.listed("chapter"), _listed_as(parts, "chapter")))
    other = " and ".join(_counted(len(found), name) for found, name in lists if found)
    what = "page numbers" if word == "page" else f"numbered {word}s"
    said = f"There is no {wanted}: the document has no {what}"
    return _Said(f"{said}; it has {other}." if other else f"{said}.", answered=False)


def _listed_as(parts: Parts, unit: str) -> str:
    """What the parts that are listed for "chapter" are: books, acts, letters, sections."""
    listed = parts.listed(unit) if unit == "chapter" else []
    words = {part.name.split()[0].lower() for part in listed}
    if len(words) == 1 and words <= {"book", "part", "act", "scene", "letter", "canto"}:
        return words.pop()
    sections = listed and (listed[0].word != "chapter" or parts.document.metadata.get("format") in ("markdown", "html"))
    return "section" if sections else unit


def _names(parts: Parts, name: str) -> list[str]:
    """The strings that are asked about: one, or several joined by "and" that do not stand together."""
    name = re.sub(r"^(?:the )?(?:words?|names?|term|phrase|expression|string) ", "", name.strip(), flags=re.IGNORECASE)
    name = re.sub(r"^(?:the|an?) (?=\S)", "", name, flags=re.IGNORECASE).strip("“”\"'‘’«»,")
    several = [part for part in re.split(r"\s*,\s*(?:and\s+)?|\s+(?:and|or)\s+", name) if part]
    return several if len(several) > 1 and not _mentions(parts, name) else [name]


def _mentions(parts: Parts, name: str) -> list[Span]:
    """Where a string stands in the document, as whole words; in any case of its letters if it is written small."""
    start, end = body_of(parts.memory, parts.document)
    return [span for span in occurrences(parts.text, name, any_case=name.islower()) if start <= span[0] < end]


def _paragraph(parts: Parts, span: Span) -> Span:
    """The paragraph around a place, within the document."""
    low = max(parts.text.rfind("\n\n", 0, span[0]), parts.document.start)
    high = parts.text.find("\n\n", span[1])
    return low, min(high if high >= 0 else parts.document.end, parts.document.end)


def _is_told(parts: Parts, span: Span, titles: tuple[str, ...]) -> bool:
    """Whether a place is in running text, and not in a heading or a table of contents."""
    around = " ".join(parts.text[slice(*_paragraph(parts, span))].split())
    return is_running(around) and not around.lower().rstrip(" .").endswith(titles)


def _around(parts: Parts, found: Sequence[Span]) -> list[Span]:
    """The sentences around the first of these places, each once."""
    shown: dict[Span, None] = {}
    for span in found:
        if len(shown) == MOST:
            break
        within = sentences(parts.text, *_paragraph(parts, span))
        shown[next((one for one in within if one[0] <= span[0] < one[1]), span)] = None
    return list(shown)


def _at(parts: Sequence[Part], character: int, prefix: str = "") -> str | None:
    """The name of the part that holds a character, the innermost one."""
    return next((prefix + part.name for part in reversed(parts) if part.start <= character < part.end), None)


def _section(parts: Parts, character: int) -> str | None:
    """The chapter or section of a character."""
    listed = parts.listed("chapter")
    return _at(listed, character) or ("before the first heading" if listed and character < listed[0].start else None)


def _words(parts: Parts, start: int, end: int) -> int:
    return sum(1 for _ in TOKEN.finditer(parts.text, start, end))


def _line(parts: Parts, start: int, end: int) -> str:
    return " ".join(parts.text[start:end].split())


def _cut(parts: Parts, start: int, end: int, size: int) -> int:
    """Where text[start:end] is cut so that at most `size` characters of whole sentences are left."""
    if end - start <= size:
        return end
    ends = [stop for _, stop in sentences(parts.text, start, start + size)][:-1]
    return ends[-1] if ends else max(parts.text.rfind(" ", start, start + size), start + 1)


def _singular(word: str) -> str:
    word = word.lower().rstrip(".")
    return _WRITTEN.get(word) or word.removesuffix("s")


def _counted(count: int, unit: str) -> str:
    return "once" if (count, unit) == (1, "time") else f"{count:,} {unit}{'' if count == 1 else 's'}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _ranges(labels: Sequence[str]) -> str:
    """Labels in order, runs of numbers as "3 to 7"."""
    runs: list[list[str]] = []
    for label in dict.fromkeys(labels):
        last = runs[-1][-1] if runs else ""
        if label.isdigit() and last.isdigit() and int(label) == int(last) + 1:
            runs[-1].append(label)
        else:
            runs.append([label])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(run) for run in runs)
