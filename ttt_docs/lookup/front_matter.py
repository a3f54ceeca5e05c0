"""What a document says of itself: its title, its author and its kind, from the file or from its first page."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ttt_docs.lookup.parts import Parts
from ttt_docs.memory.header import ReadDocument
from ttt_docs.memory.memory import Memory
from ttt_docs.text.sentences import PARAGRAPH, SENTENCE_END, Span

#: Characters that a title page may have, and a header of "Title:" and "Author:" lines.
_FRONT, _HEADER = 4000, 1500
#: A paragraph of running text of this many characters ends the title page.
_PROSE = 150
#: How often the title page is read rightly, on 276 books of Project Gutenberg without their headers. Of 256 titles, 226
#: were the catalogue's. Of 220 names after "by", 8 were not the author's when looked through one by one.
TITLE_PAGE, BYLINE = 0.88, 0.96
_FIELD = r"(?im)^[ \t]*{}s?:[ \t]*(\S.*(?:\n[ \t]+\S.*)*)"
_MARKS = {
    "start": re.compile(r"\*\*\* ?START OF (?:THE|THIS) PROJECT GUTENBERG.*"),
    "end": re.compile(r"\*\*\* ?END OF (?:THE|THIS) PROJECT GUTENBERG"),
}
#: Paragraphs before a title that are none.
_NO_TITLE = re.compile(
    r"(?i)^[\[{(]|^[*_=#~ .-]*(?:book cover|cover|transcriber|produced|e-?text|this e-?(?:book|text)|frontispiece|note|"
    r"copyright|contents|images? |words |\d+\.?\s|by\b|the project gutenberg)|^[\W\d]*$"
)
#: A title goes on in the next paragraph after these words.
_OPEN = re.compile(r"(?i)(?:^|\s)(?:the|a|an|of|and|or|in|on|to|for|with|from)$|^(?:or|of|and)$")
_BY = re.compile(r"(?P<first>(?m:^)[\W_]*)?\b(?i:by)\b[\s:_]+(?P<name>[A-Z][^\n]{1,80})")
#: Words before "by" that name somebody else than the author, and words that no author's name has.
_OTHERS = re.compile(
    r"(?i)\b(?:translat|edit|illustrat|publish|introduc|print|drawing|picture|design|preface|foreword|note|adapt|produc|"
    r"prepar|scann|frontispiece|decorat|select|sold|revis|arrang|copyright|reproduc|compil|photograph|annotat|made|"
    r"present|approv|sign|paint|etch|engrav|proof|transcri|abridg|music)"
)
_NO_AUTHOR = re.compile(r"(?i)^(?:the|a|an|way|order|means|permission)\b|\b(?:company|sons|co|inc|ltd|limited|press)\b")
_PARTICLES = frozenset(["de", "la", "le", "du", "von", "van", "der", "den", "di", "da", "and", "y", "of", "st", "the"])
_KIND = re.compile(
    r"(?i)^(?:[\w’',&-]+ ){0,7}(?:agreement|contract|report|manual|policy|guide|handbook|novel|play|poems?|thesis|"
    r"dissertation|licen[cs]e|lease|minutes|proposal|specification|standard|constitution|treaty|invoice|plan|paper|"
    r"essays?|memorandum|romance|tragedy|comedy|stories|biography|autobiography|memoirs?|brochure|directive|"
    r"regulation|terms (?:of (?:use|service)|and conditions))(?: (?:19|20)\d\d)?\W*$"
)
#: Titles that programs write into files.
_NO_NAME = re.compile(r"(?i)^microsoft \w+ - |\.(?:docx?|pdf|tex|txt|indd|dvi|md|html?)$|^untitled|^document\d*$")


@dataclass(frozen=True)
class Stated:
    """What a document states of itself, and where."""

    text: str
    spans: tuple[Span, ...]
    sure: float | None = None  # probability that it is right


def body_of(memory: Memory, document: ReadDocument) -> Span:
    """The document without the header and licence that Project Gutenberg puts around it."""
    text = memory.text or ""
    start = _MARKS["start"].search(text, document.start, min(document.end, document.start + 10_000))
    begin = start.end() if start else document.start
    end = _MARKS["end"].search(text, begin, document.end)
    return begin, end.start() if end else document.end


#: Where the text of a book is over: its last words, or what a transcriber adds.
_OVER = re.compile(r"(?im)^[\W_]*(?:the end|finis|transcriber['’]?s?['’]? ?notes?\b.*)[\W_]*$")
#: The share of a text after which it may be over.
_LATE = 0.8


def story_of(parts: Parts) -> Span:
    """The text from a prologue or the first chapter on, to where it is over."""
    start, end = body_of(parts.memory, parts.document)
    first = parts.find("chapter", "1")[:1] + [c for c in parts.chapters if re.match(r"(?i)prologue", c.name)][:1]
    begin = min((part.start for part in first or parts.chapters[:1]), default=start)
    over = _OVER.search(parts.text, start + int(_LATE * (end - start)), end)
    return max(start, begin), over.start() if over else end


def title_of(memory: Memory, document: ReadDocument) -> Stated | None:
    """The title: of the file, of its header, or the first lines of its title page."""
    if found := _from_file(memory, document, "title"):
        return found
    text, front = memory.text or "", _front(memory, document)
    for i, (start, end) in enumerate(front):
        if _NO_TITLE.search(title := _plain(text[start:end])):
            continue
        if is_running(text[start:end]) and memory.label_at(start, "chapter") != " ".join(title.split()):
            return None
        if (by := _BY.search(title)) and by.start():
            title = title[: by.start()]
        for low, high in front[i + 1 : i + 4]:
            following = _plain(text[low:high])
            if not (_OPEN.search(title) or _OPEN.search(following)) or len(following) > 100:
                break
            title, end = f"{title} {following}", high
        title = " ".join(title.split()).strip(" ,.;:")
        return Stated(title, ((start, end),), TITLE_PAGE) if len(title) <= 200 else None
    return None


def author_of(memory: Memory, document: ReadDocument) -> Stated | None:
    """The author: of the file, of its header, or after the word "by" on its title page."""
    if found := _from_file(memory, document, "author"):
        return found
    text, front = memory.text or "", _front(memory, document)
    found_by: dict[bool, list[Stated]] = {True: [], False: []}  # whether a line begins with "by"
    for match in _BY.finditer(text, *(front[0][0], front[-1][1])) if front else ():
        before = text[max(match.start() - 60, front[0][0]) : match.start()].rpartition("\n\n")[2]
        name = re.split(r"(?i),? (?:author|illustrated|with|translated|edited)\b|\s{2,}|[;(\[]", match["name"])[0]
        name = name.strip(" ,_*")
        name = name if re.search(r"\b[A-Z]\.$", name) else name.rstrip(".")
        words = [word for word in re.split(r"[\s-]+", name) if word]
        named = all(word[0].isupper() or word.lower() in _PARTICLES or word == "&" for word in words)
        if named and 0 < len(words) <= 8 and not _OTHERS.search(before) and not _NO_AUTHOR.search(name):
            span = (match.start("name"), match.start("name") + len(name))
            found_by[match["first"] is not None].append(Stated(name, (span,), BYLINE))
    inside = found_by[False] if len(found_by[False]) == 1 else []  # more than one are a list of works
    return next(iter([*found_by[True], *inside]), None)


def kind_of(memory: Memory, document: ReadDocument) -> Stated | None:
    """What kind of document it calls itself on its title page: "SERVICE AGREEMENT", "A PLAY"."""
    text = memory.text or ""
    for start, end in _front(memory, document):
        for line in re.finditer(r"[^\n]+", text[start:end]):
            if _KIND.match(line.group().strip(" _*#")):
                return Stated(line.group().strip(" _*#"), ((start + line.start(), start + line.end()),))
    return None


def beginning(memory: Memory, document: ReadDocument) -> Span:
    """The first paragraph, which may say what nothing else says."""
    text = memory.text or ""
    start, end = body_of(memory, document)
    found = PARAGRAPH.search(text, start, end)
    return (found.start(), min(found.end(), found.start() + 300)) if found else (start, start)


def _front(memory: Memory, document: ReadDocument) -> list[Span]:
    """The paragraphs of the title page: those before the first long one of running text."""
    text, (start, end) = memory.text or "", body_of(memory, document)
    found: list[Span] = []
    for match in PARAGRAPH.finditer(text, start, min(end, start + _FRONT)):
        if match.end() - match.start() > _PROSE and is_running(match.group()) and not _NO_TITLE.search(match.group()):
            break
        found.append(match.span())
    return found


def _from_file(memory: Memory, document: ReadDocument, name: str) -> Stated | None:
    """What the file's metadata say, or a line such as "Title: ..." near its beginning."""
    text = memory.text or ""
    if (said := document.metadata.get(name, "")) and not _NO_NAME.search(said):
        pattern = r"\s+".join(map(re.escape, said.split()))
        shown = re.compile(pattern, re.IGNORECASE).search(text, document.start, document.end)
        return Stated(said, (shown.span(),) if shown else ())
    header = re.compile(_FIELD.format(name)).search(text, document.start, min(document.end, document.start + _HEADER))
    return Stated(" ".join(header[1].split()), (header.span(),)) if header else None


def _plain(paragraph: str) -> str:
    return paragraph.strip(" _*#=\t\n")


def is_running(paragraph: str) -> bool:
    """Sentences, no heading: it is long or ends as a sentence does, and has words that are written small."""
    words = paragraph.split()
    small = sum(word[:1].islower() for word in words)
    ended = bool(SENTENCE_END.search(paragraph.rstrip()[-6:])) and len(words) > 1
    return 3 * small >= len(words) if ended else len(words) >= 15 and 2 * small >= len(words)
