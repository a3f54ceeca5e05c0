"""Chapter headings in plain text: lines such as "CHAPTER IV" or "Chapter 1. The Beginning"."""

from __future__ import annotations

import re

from ttt_docs.documents.document import Span, spans_from_starts

_NUMBER_WORDS = (
    "one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|"
    "eighteen|nineteen|twenty(?:-\\w+)?|thirty(?:-\\w+)?|forty(?:-\\w+)?|"
    "first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth"
)
_HEADING = re.compile(
    r"^[ \t]*((?:chapter|book|part|volume|canto|act|scene|letter|stave|section|kapitel|chapitre|cap[ií]tulo|teil)"
    rf"[ \t]+(?:the[ \t]+)?(?:[ivxlcdm]+|\d{{1,3}}|{_NUMBER_WORDS})\b[^\n]{{0,80}})$",
    re.IGNORECASE | re.MULTILINE,
)
_ALONE = re.compile(
    r"^[ \t]*((?:prologue|epilogue|preface|foreword|afterword|introduction|conclusion|appendix)\b\.?)[ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)
_TITLE = re.compile(r"[.:]?[ \t]*$|[ \t]*[.:\-–—][ \t]*\S|[ \t]+[\"“‘'(]?[A-Z]")
_SENTENCE_END = re.compile(r"[,;]$")
#: A heading with less than this many characters after it, repeated further on, is a line of the table of contents.
_CONTENTS_ENTRY = 400
#: More headings than this without text between them are a table of contents.
_STACKED = 3


def chapter_spans(text: str) -> tuple[Span, ...]:
    """Spans of kind "chapter" that cover `text` (newlines as "\\n"); empty when there are fewer than two headings."""
    headings = sorted(
        (match.start(1), match.end(1), " ".join(match.group(1).split()))
        for pattern in (_HEADING, _ALONE)
        for match in pattern.finditer(text)
        if _stands_alone(text, match.start(), match.end()) and not _SENTENCE_END.search(match.group(1).strip())
    )
    last = {label.casefold(): index for index, (_, _, label) in enumerate(headings)}
    starts: list[tuple[int, str]] = []
    pending: list[tuple[int, str]] = []  # headings with nothing below: "BOOK I" over "CHAPTER I"
    for index, (start, end, label) in enumerate(headings):
        following = headings[index + 1][0] if index + 1 < len(headings) else len(text)
        body = text[end:following].strip()
        if last[label.casefold()] > index and len(body) < _CONTENTS_ENTRY:
            continue
        pending.append((start, label))
        if body or index + 1 == len(headings):
            if len(pending) > _STACKED:
                del pending[:-1]
            starts.append((pending[0][0], ", ".join(label for _, label in pending)))
            pending = []
    return spans_from_starts("chapter", starts, len(text)) if len(starts) > 1 else ()


def _stands_alone(text: str, start: int, end: int) -> bool:
    """A heading is the first line of its paragraph: "part one of the plan" inside a paragraph is none."""
    before = text[:start] if start < 200 else text[start - 200 : start]
    if before.strip(" \t") and not before.rstrip(" \t").endswith("\n\n"):
        line = before.rstrip("\n").rsplit("\n", 1)[-1].strip()
        if not _HEADING.match(line):  # "BOOK I\nCHAPTER I", or a table of contents
            return False
    line = text[start:end].strip()
    match = _HEADING.match(line)
    if match is None:
        return True
    words = re.match(rf"\S+\s+(?:the\s+)?(?:[ivxlcdm]+|\d{{1,3}}|{_NUMBER_WORDS})\b", line, re.IGNORECASE)
    return words is not None and _TITLE.match(line, words.end()) is not None
