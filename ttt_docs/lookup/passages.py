"""A text as sentences, and as passages: runs of whole sentences that overlap, each an exact span of the text.

A sentence here is the smallest piece that is looked at by itself: a sentence of prose, or a line where lines are what
the text is made of (tables, lists, code).
"""

from __future__ import annotations

import re

import numpy as np

from ttt_docs.generation.passages import sentences as prose_sentences

#: Characters of a passage, of which at least OVERLAP are the next one's too where sentences allow it; a sentence has
#: at most LONGEST.
SIZE, OVERLAP, LONGEST = 700, 150, 500
_PARAGRAPH = re.compile(r"\S(?:.|\n(?!\s*\n))*")
_BREAK = re.compile(r"\s+")
#: Lines shorter than this are not wrapped prose.
_WRAPPED = 50

Span = tuple[int, int]


def sentences(text: str) -> list[Span]:
    """Spans of all sentences, in order; they do not overlap, and leave out nothing but white space."""
    found: list[Span] = []
    for paragraph in _PARAGRAPH.finditer(text):
        start, end = paragraph.span()
        pieces = prose_sentences(text, start, end) if _is_wrapped(paragraph.group()) else _lines(text, start, end)
        for a, b in pieces:
            found.extend(_short(text, a, b) if b - a > LONGEST else [(a, b)])
    return found


def passages(spans: list[Span]) -> tuple[np.ndarray, np.ndarray]:
    """First and last sentence (excluded) of each passage, int32 [passages] each."""
    firsts, lasts = [], []
    first = 0
    while first < len(spans):
        last = first + 1
        while last < len(spans) and spans[last][1] - spans[first][0] <= SIZE:
            last += 1
        firsts.append(first)
        lasts.append(last)
        if last == len(spans):
            break
        following = last
        while following - 1 > first and spans[last - 1][1] - spans[following - 1][0] <= OVERLAP:
            following -= 1
        first = following
    return np.array(firsts, dtype=np.int32), np.array(lasts, dtype=np.int32)


def _is_wrapped(paragraph: str) -> bool:
    """Prose: one line, or lines broken where they were full."""
    lines = paragraph.split("\n")
    return len(lines) == 1 or sum(map(len, lines[:-1])) / (len(lines) - 1) >= _WRAPPED


def _lines(text: str, start: int, end: int) -> list[Span]:
    spans = []
    for line in text[start:end].splitlines(keepends=True):
        if line.strip():
            spans += prose_sentences(text, start, start + len(line))
        start += len(line)
    return spans


def _short(text: str, start: int, end: int) -> list[Span]:
    """A long sentence cut at white space."""
    pieces = []
    while end - start > LONGEST:
        cut = max((m.start() for m in _BREAK.finditer(text, start + LONGEST // 2, start + LONGEST)), default=None)
        cut = start + LONGEST if cut is None else cut
        pieces.append((start, cut))
        start = cut + len(text[cut:end]) - len(text[cut:end].lstrip())
    return [*pieces, (start, end)] if start < end else pieces
