"""A text cut into its sentences, each an exact span of it."""

from __future__ import annotations

import re

from ttt_docs.text.names import TITLES

#: Characters text[start:end], as (start, end).
Span = tuple[int, int]
#: Runs of lines without an empty line between them.
PARAGRAPH = re.compile(r"\S(?:.|\n(?!\s*\n))*")
SENTENCE_END = re.compile(r"(?:[.!?…]+|[。！？]+)[\"'”’»)\]_*]*(?=\s|$)|[。！？]+[」』”]*")
_LAST_WORD = re.compile(r"(?<!\w)(\w+)\W*$")
#: What stands in quotation marks, double or single.
QUOTED = re.compile(r"[“\"«„]([^“”\"«»„]{2,})[”\"»“]|(?<!\w)[‘'`]([^‘’'`]{2,}?)[’'`](?!\w)")
#: Titles that are written with a dot, and the characters to look back for one.
_DOTTED = (TITLES - {"sir", "king", "queen", "la", "le"}) | {"al", "vs", "cf", "approx"}
#: Abbreviations before a number; elsewhere they may end a sentence ("No.").
_BEFORE_NUMBERS = {"no", "nos", "fig", "figs", "vol", "pp", "art", "sec", "eq", "ch"}
_LONGEST_TITLE = max(map(len, _DOTTED)) + 4
#: `short_sentences` have at most this many characters.
LONGEST = 500
#: Lines shorter than this are not wrapped prose.
_WRAPPED = 50


def sentences(text: str, start: int = 0, end: int | None = None) -> list[Span]:
    """Spans of the sentences in text[start:end], white space around them left out."""
    end = len(text) if end is None else end
    spans, begin = [], start
    for match in SENTENCE_END.finditer(text, start, end):
        rest = text[match.end() : min(match.end() + 3, end)].lstrip()
        if rest[:1].islower() or (match.group()[0] == "." and _abbreviated(text, begin, match.start())):
            continue
        spans.append((begin, match.end()))
        begin = match.end()
    spans.append((begin, end))
    return [span for span in (trimmed(text, *span) for span in spans) if span[0] < span[1]]


def trimmed(text: str, start: int, end: int) -> Span:
    """The span without white space around it; empty or reversed where it holds nothing else."""
    piece = text[start:end]
    return start + len(piece) - len(piece.lstrip()), start + len(piece.rstrip())


def _abbreviated(text: str, start: int, dot: int) -> bool:
    """Whether the dot at `dot` ends a title, an initial or an abbreviation, and no sentence."""
    word = _LAST_WORD.search(text, max(start, dot - _LONGEST_TITLE), dot)
    last = word.group(1) if word else ""
    if text[max(start, dot - 3) : dot].lower() in ("e.g", "i.e"):
        return True
    if last.lower() in _BEFORE_NUMBERS:
        return text[dot + 1 : dot + 3].strip()[:1].isdigit()
    return last.lower() in _DOTTED or (len(last) == 1 and last.isupper() and last != "I")


def short_sentences(text: str) -> list[Span]:
    """The smallest pieces of a text that are looked at by themselves: sentences of prose, lines of tables and lists.

    The spans are in order and do not overlap. They leave out nothing but white space. Longer pieces are cut.
    """
    found: list[Span] = []
    for paragraph in PARAGRAPH.finditer(text):
        start, end = paragraph.span()
        pieces = sentences(text, start, end) if _is_wrapped(paragraph.group()) else _lines(text, start, end)
        for piece in pieces:
            found.extend(_cut(text, *piece))
    return found


def _is_wrapped(paragraph: str) -> bool:
    """Prose: one line, or lines broken where they were full."""
    lines = paragraph.split("\n")
    return len(lines) == 1 or sum(map(len, lines[:-1])) / (len(lines) - 1) >= _WRAPPED


def _lines(text: str, start: int, end: int) -> list[Span]:
    spans = []
    for line in text[start:end].splitlines(keepends=True):
        if line.strip():
            spans += sentences(text, start, start + len(line))
        start += len(line)
    return spans


def _cut(text: str, start: int, end: int) -> list[Span]:
    """A sentence, cut at white space if it is longer than `LONGEST`."""
    pieces = []
    while end - start > LONGEST:
        breaks = re.compile(r"\s+").finditer(text, start + LONGEST // 2, start + LONGEST)
        cut = max((match.start() for match in breaks), default=start + LONGEST)
        pieces.append((start, cut))
        start = trimmed(text, cut, end)[0]
    return [*pieces, (start, end)] if start < end else pieces


def quoted(text: str) -> list[str]:
    """The strings that stand in quotation marks."""
    return [double or single for double, single in QUOTED.findall(text)]
