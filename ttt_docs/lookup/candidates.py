"""Spans of a sentence that could be the answer to a question of a given kind."""

from __future__ import annotations

import re

from ttt_docs.lookup.query import Kind
from ttt_docs.text.names import TITLES, word_list
from ttt_docs.text.sentences import Span

_UNITS = "one two three four five six seven eight nine"
_TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_LARGE = "hundred thousand million billion dozen score"
_ALL_WORDS = "|".join(f"{_UNITS} {_TEENS} {_TENS} {_LARGE}".split()[::-1])
_SMALL_WORDS = "|".join(f"{_UNITS} {_TEENS} {_TENS}".split()[::-1])
NUMBER_WORDS = (
    rf"\b(?:(?:a|half a|several|many)\s+)?(?:{_ALL_WORDS}|twice|thrice|once)s?"
    rf"(?:(?:[\s-]+(?:and\s+)?)(?:{_ALL_WORDS}|half)s?)*\b"
)
_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|"
    r"oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"
)
_DAY = r"(?:monday|tuesday|wednesday|thursday|friday|saturday|sunday)"
_DATES = (
    rf"\b(?:{_DAY},?\s+)?\d{{1,2}}(?:st|nd|rd|th)?\s+(?:of\s+)?{_MONTH}(?:,?\s+\d{{4}})?\b",
    rf"\b{_MONTH}\s+\d{{1,2}}(?:st|nd|rd|th)?(?:,?\s+\d{{4}})?\b",
    rf"\b{_MONTH},?\s+\d{{4}}\b",
    r"\b\d{4}-\d{2}-\d{2}\b|\b\d{1,2}[./]\d{1,2}[./]\d{2,4}\b",
    r"\b\d{1,2}:\d{2}(?::\d{2})?(?:\s*[ap]\.?m\b\.?)?",
    rf"\b(?:\d{{1,2}}|{_SMALL_WORDS})\s+o['’]clock\b",
    r"\b1\d{3}\b|\b20\d{2}\b",
    rf"\b{_DAY}\b",
    r"\b(?:january|february|april|june|july|august|september|october|november|december)\b",
    r"\b(?:midnight|noon|midsummer|christmas|easter|michaelmas|spring|summer|autumn|winter)\b",
)
_NUMERAL = r"[-+−]?[$€£¥]?\d+(?:[.,:/ ]?\d+)*(?:\s?%)?"
_NAME = r"[^\W\d_a-z][\w’'-]*\.?(?:(?:\s+(?:of|the|de|du|la|le|von|van|and))*\s+[^\W\d_a-z][\w’'-]*)*"
_IDENTIFIER = r"(?<![\w#+])[#+]?(?=[\w./:#@-]*\d)\w+(?:[-_./:#@]\w+)*"
_CAPITALS = r"\b[A-Z][A-Z0-9]+(?:[-_][A-Z0-9]+)*\b"


def _compiled(*patterns: str, flags: int = re.IGNORECASE) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(pattern, flags) for pattern in patterns)


_PATTERNS: dict[Kind, tuple[re.Pattern[str], ...]] = {
    "uuid": _compiled(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"),
    "email": _compiled(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+\b"),
    "url": _compiled(r"\b(?:https?://|www\.)[^\s<>\"”’)]+[^\s<>\"”’).,;:!?]"),
    "identifier": _compiled(_IDENTIFIER, _CAPITALS, flags=0),
    "number": _compiled(_NUMERAL, NUMBER_WORDS),
    "date": _compiled(*_DATES),
    "name": _compiled(_NAME, flags=0),
}


def candidates(text: str, start: int, end: int, kind: Kind) -> list[Span]:
    """Spans of text[start:end] of that kind, in order; those of the most telling pattern that is there at all.

    Kinds without a form of their own (`span`, `mention`) have none.
    """
    for pattern in _PATTERNS.get(kind, ()):
        spans = [m.span() for m in pattern.finditer(text, start, end)]
        if kind == "name":
            spans = [span for span in (_bare(text, start, *span) for span in spans) if span is not None]
        if spans:
            return spans
    return []


def measured(text: str, start: int, end: int) -> list[Span]:
    """All numbers of text[start:end] with what they count: "five feet four inches", "eighteen thousand men"."""
    found: list[Span] = []
    for a, b in sorted(m.span() for pattern in _PATTERNS["number"] for m in pattern.finditer(text, start, end)):
        unit = _UNIT.match(text, b, end)
        if unit is not None and unit.group(1) not in _NO_UNITS:
            b = unit.end()
        if found and not text[found[-1][1] : a].strip():
            a = found.pop()[0]
        found.append((a, b))
    return found


def _bare(text: str, start: int, a: int, b: int) -> Span | None:
    """A capitalized run without the first word of a sentence that is no name, titles kept."""
    words = text[a:b].split()
    if text[a:b].endswith(".") and words[-1].rstrip(".").lower() not in TITLES:
        b -= 1
    if a == start and words[0].lower() in _OPENERS:
        a += len(words[0])
        a += len(text[a:b]) - len(text[a:b].lstrip())
    if b - a < 2 or text[a:b].lower() in _OPENERS:
        return None
    return a, b


_UNIT = re.compile(r"[\s-]+([a-z]\w*)")
_NO_UNITS, _OPENERS = word_list("no units"), word_list("openers")
