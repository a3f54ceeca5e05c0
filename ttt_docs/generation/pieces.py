"""A document cut up for writing: parts by its chapters or headings, and pieces of a part that fit a prompt."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil

from ttt_docs.memory.memory import Memory
from ttt_docs.text.index import PassageIndex, stop_words
from ttt_docs.text.sentences import SENTENCE_END, Span

#: Words of a piece, about; of a part, at least: a shorter one belongs to the next; of a heading, less than.
PIECE, SHORTEST, HEADING = 550, 80, 15
#: Share of the words of English prose that are everywhere ("the", "of"); lists, tables and other languages have fewer.
PROSE = 0.22
_WORD = re.compile(r"[^\W_]+|[|{}=<>*#\\]")


@dataclass(frozen=True)
class TextPart:
    """`text[start:end]` of a memory, and what it is called: its chapter or heading, "" where it has none."""

    title: str
    start: int
    end: int


def is_english_prose(text: str) -> bool:
    """Whether a text is running English, and no table, list of names, or other language."""
    words = _WORD.findall(text)
    common = stop_words("english")
    return sum(len(word) > 1 and word.lower() in common for word in words) >= PROSE * max(len(words), 1)


def parts_of(memory: Memory) -> list[TextPart]:
    """The chapters or headings of all documents, in order; a document without any is one part."""
    text = memory.text or ""
    found: list[TextPart] = []
    ends = [*(document.start for document in memory.documents[1:]), len(text)]
    for document, end in zip(memory.documents, ends, strict=False):  # a text may have no documents
        chapters = [span for span in document.spans if span.kind == "chapter"]
        name = document.name if len(memory.documents) > 1 else ""
        starts = [(document.start, name)] if not chapters else []
        starts += [(span.start, f"{name}: {span.label}" if name else span.label) for span in chapters]
        borders = [start for start, _ in starts] + [end]
        made = [TextPart(title, *span) for (_, title), span in zip(starts, pairwise(borders), strict=True)]
        found += _joined(text, made)
    return found or [TextPart("", 0, len(text))]


def _joined(text: str, parts: list[TextPart]) -> list[TextPart]:
    """The parts, each with the short ones before it: a heading over a heading, a half title."""
    found: list[TextPart] = []
    held: list[TextPart] = []
    for part in parts:
        held.append(part)
        if len(text[held[0].start : part.end].split()) >= SHORTEST:
            best = max(held, key=lambda one: one.end - one.start)
            found.append(TextPart(best.title, held[0].start, part.end))
            held = []
    if held and found:
        found[-1] = TextPart(found[-1].title, found[-1].start, held[-1].end)
    elif held:
        found.append(TextPart(held[0].title, held[0].start, held[-1].end))
    return found


def pieces_of(index: PassageIndex, start: int, end: int, fits: Callable[[str], bool]) -> list[Span]:
    """The characters [start, end) in pieces of much the same length, cut between paragraphs, or sentences of long ones.

    None has more than about `PIECE` words, or is more than `fits` unless a single sentence is.
    """
    units = list(_units(index, start, end, PIECE // 4))
    sizes = [len(index.text[a:b].split()) for a, b in units]
    runs = _even(units, sizes, max(1, ceil(sum(sizes) / PIECE)))
    return [span for run in runs for span in _fitting(index, run, fits)]


def _fitting(index: PassageIndex, units: list[Span], fits: Callable[[str], bool]) -> list[Span]:
    """The units as one piece, or in halves of halves where they do not fit; at last every sentence is a piece."""
    span = units[0][0], units[-1][1]
    if fits(index.text[slice(*span)]):
        return [span]
    if len(units) == 1:
        units = list(_units(index, *span, 0))
        if len(units) == 1:
            return [span]
    half = len(units) // 2
    return _fitting(index, units[:half], fits) + _fitting(index, units[half:], fits)


def _units(index: PassageIndex, start: int, end: int, longest: int) -> Iterator[Span]:
    """Paragraphs of at most so many words and a sentence, headings with what follows them."""
    text, spans = index.text, index.sentences
    first, last = (bisect_left(spans, at, key=lambda span: span[0]) for at in (start, end))
    begun: int | None = None
    for i in range(first, last):
        a, b = spans[i]
        begun = a if begun is None else begun
        words = len(text[begun:b].split())
        heading = words < HEADING and not SENTENCE_END.search(text[b - 3 : b])
        ends = i + 1 == last or "\n\n" in text[b : spans[i + 1][0]]
        if i + 1 == last or words > longest or (ends and not heading):
            yield begun, b
            begun = None


def _even(units: Sequence[Span], sizes: Sequence[int], count: int) -> list[list[Span]]:
    """The units in at most `count` runs of much the same size."""
    total, before = max(sum(sizes), 1), 0
    runs: dict[int, list[Span]] = {}
    for unit, size in zip(units, sizes, strict=True):
        runs.setdefault(min(int((before + size / 2) / total * count), count - 1), []).append(unit)
        before += size
    return list(runs.values())
