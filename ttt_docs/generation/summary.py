"""A summary of a memory: which parts of the document it tells, in how many words, and by whom it is written.

A writer tells it in its own words (`merging`). Where there is none, or it was not taught such a text, the summary is
made of the document's own sentences (`extracts`), and a note says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import groupby
from typing import Literal, NamedTuple, get_args

from tqdm import tqdm

from ttt_docs.errors import UsageError
from ttt_docs.generation.extracts import best_quotes, extract, extracts, first_lines, written_from_memory
from ttt_docs.generation.merging import SHORTER, Teller, Unit
from ttt_docs.generation.pieces import TextPart, is_english_prose, parts_of, pieces_of
from ttt_docs.generation.results import Summary, SummarySection, SummarySentence
from ttt_docs.generation.together import SEQUENCES
from ttt_docs.generation.writing import Writer
from ttt_docs.memory.memory import Memory
from ttt_docs.model.decoder import Decoder
from ttt_docs.text.index import PassageIndex, index_of, terms
from ttt_docs.text.names import proper_names
from ttt_docs.text.sentences import Span, trimmed
from ttt_docs.text.tokenizer import Tokenizer

Length = Literal["sentence", "paragraph", "page", "chapters"]


class Shape(NamedTuple):
    """What a length means."""

    words: int  # in all; of each chapter
    sections: int  # a paragraph each
    asked: int  # pieces that a focus is told from, at most
    extracts: int  # sentences of the document, where it is made of those
    task: str  # how it is asked for where there is no text
    free: int  # tokens that may be written then


SHAPES: dict[Length, Shape] = {
    "sentence": Shape(25, 1, 3, 1, "in one sentence", 60),
    "paragraph": Shape(120, 1, 6, 7, "in one paragraph", 160),
    "page": Shape(450, 5, 15, 20, "in detail", 480),
    "chapters": Shape(100, 0, 15, 2, "in detail", 480),
}
#: Extracts in a paragraph.
TO_PARAGRAPH = 6
#: Share of the best piece's score that another has at least, to be about the focus too.
ABOUT = 0.4
#: Share of the window that a focus takes at most.
FOCUS = 1 / 8
EXTRACTS = "The summary is made of the document's own sentences"
NO_PROSE = "it is no running English: a table, a list, or another language"
UNKNOWN = "No word of the focus stands in the text: the summary looks at all of it."
NO_TEXT = "The memory holds no text: the model wrote from its fast weights alone, and nothing could be checked."
NOTHING = "The memory holds no text, and the model wrote nothing of use from its fast weights alone."


class SummaryStream:
    """A summary in the making: iterate over it once for its sections, as they are ready. `summary` is the whole.

    Made by `stream_summary`.
    """

    def __init__(self, sections: Iterator[SummarySection], tokenizer: Tokenizer, note: str = "") -> None:
        self._left, self._tokenizer, self.note = sections, tokenizer, note
        self._made: list[SummarySection] = []

    def __iter__(self) -> Iterator[SummarySection]:
        for section in self._left:
            self._made.append(section)
            yield section

    @cached_property
    def summary(self) -> Summary:
        """All sections; those that were not asked for yet are made first."""
        for _ in self:
            pass
        text = "\n\n".join(section.text for section in self._made)
        return Summary(text, len(self._tokenizer.encode(text)), sections=tuple(self._made), note=self.note)


def stream_summary(
    model: Decoder,
    tokenizer: Tokenizer,
    memory: Memory,
    length: Length,
    writer: Writer | str,
    focus: str | None = None,
    seed: int = 0,
    progress: bool | None = False,
) -> SummaryStream:
    """A summary of what the memory has read, or what it says about a `focus`. `writer` may be why there is none.

    `seed` is for what is drawn where the likeliest text does not stand in the document. `progress=None` shows a bar on
    a terminal.

    Raises UsageError for an unknown length, an empty memory, and a focus that is empty, too long, or asked of a memory
    without text.
    """
    if length not in get_args(Length):
        raise UsageError(f"length={length!r}: use {', '.join(get_args(Length))}")
    text = memory.text or ""
    if not len(memory.tokens) and not text.strip():
        raise UsageError("this memory is empty: read a document first")
    _check_focus(focus, tokenizer, memory)
    shape = SHAPES[length]
    if not text.strip():
        free = written_from_memory(model, tokenizer, memory, shape.task, shape.free, seed)
        return SummaryStream(
            iter([_section(memory, "", free)] if free else []), tokenizer, NO_TEXT if free else NOTHING
        )
    index = index_of(text, memory.index)
    if len(index.sentences) == 1:
        return SummaryStream(iter([_section(memory, "", first_lines(memory, index, 1))]), tokenizer)
    reason = writer if isinstance(writer, str) else "" if is_english_prose(text) else NO_PROSE
    unknown = UNKNOWN if focus and not _weights(index, focus) else ""
    quoted = _extracted(model, tokenizer, memory, index, length, focus or "")
    if reason or isinstance(writer, str):
        return SummaryStream(quoted, tokenizer, " ".join(filter(None, (f"{EXTRACTS}: {reason}.", unknown))))
    told = _told(writer, memory, index, length, focus or "", seed, progress)
    return SummaryStream(_or(told, quoted), tokenizer, unknown)


def _or(sections: Iterator[SummarySection], others: Iterator[SummarySection]) -> Iterator[SummarySection]:
    """The sections; the others if there is none, as where a writer has nothing to say about a focus."""
    none = True
    for section in sections:
        none = False
        yield section
    if none:
        yield from others


def _check_focus(focus: str | None, tokenizer: Tokenizer, memory: Memory) -> None:
    if focus is None:
        return
    if not focus.strip():
        raise UsageError("the focus is empty: say what the summary is to be about, or leave it out")
    tokens, most = len(tokenizer.encode(focus)), int(memory.reading.window * FOCUS)
    if tokens > most:
        raise UsageError(f"the focus has {tokens:,} tokens, and {most:,} fit: ask more briefly")
    if not (memory.text or "").strip():
        raise UsageError("this memory holds no text to look for the focus in: ingest the document again")


def _told(
    writer: Writer, memory: Memory, index: PassageIndex, length: Length, focus: str, seed: int, progress: bool | None
) -> Iterator[SummarySection]:
    """The sections as a writer tells them, some units at a time so that batches are full."""
    shape, weights = SHAPES[length], _weights(index, focus)
    pieces = [(part, span) for part in parts_of(memory) for span in pieces_of(index, part.start, part.end, writer.fits)]
    about = _about([span for _, span in pieces], index, weights, shape.asked)
    units = _units(index.text, [one for one in pieces if one[1] in about], shape, length)
    disable = None if progress is None else not progress
    total = sum(len(unit.pieces) for unit, _ in units)
    with tqdm(total=total, unit="text", disable=disable, desc="Writing") as bar:
        started = [0]

        def planned(count: int) -> None:
            started[0] += count
            bar.total = max(total, started[0])

        names = proper_names(index.text, 8)
        teller = Teller(writer, memory, index, names, focus, weights, seed, planned, bar.update)
        for some in _waves(units):
            told = teller.tell([unit for unit, _ in some])
            made = [
                _section(memory, title, one.sentences, one.span)
                for (_, title), one in zip(some, told, strict=True)
                if one.sentences
            ]
            yield from made


def _weights(index: PassageIndex, focus: str) -> dict[str, float]:
    """The terms of the focus that stand in the text."""
    return {term: 1.0 for term in terms(focus, index.language) if len(index.held_by(term))}


def _about(pieces: Sequence[Span], index: PassageIndex, weights: dict[str, float], most: int) -> set[Span]:
    """The pieces that a focus is about, by BM25; all where there is no focus, or no piece has a word of it."""
    if not weights:
        return set(pieces)
    scores = index.scores(weights)
    best = dict.fromkeys(pieces, 0.0)
    places = [index.span(passage) for passage in range(len(index))]
    for start, end in pieces:
        inside = [float(s) for (a, b), s in zip(places, scores, strict=True) if start <= (a + b) // 2 < end]
        best[start, end] = max(inside, default=0.0)
    least = max(ABOUT * max(best.values(), default=0.0), 1e-9)
    ranked = sorted(pieces, key=lambda span: -best[span])[:most]
    return {span for span in ranked if best[span] >= least} or set(pieces)


def _units(text: str, pieces: Sequence[tuple[TextPart, Span]], shape: Shape, length: Length) -> list[tuple[Unit, str]]:
    """The pieces by section, each section with its title; a short text gets a shorter summary."""
    if length == "chapters":
        runs = [list(group) for _, group in groupby(pieces, key=lambda one: one[0])]
    else:
        count = min(shape.sections, len(pieces))
        runs = [list(pieces[len(pieces) * i // count : len(pieces) * (i + 1) // count]) for i in range(count)]
    made = []
    for run in runs:
        spans = tuple(span for _, span in run)
        most = sum(len(text[a:b].split()) for a, b in spans) // SHORTER
        words = shape.words // (1 if length == "chapters" else len(runs))
        titles = list(dict.fromkeys(part.title for part, _ in run if part.title))
        title = " – ".join(dict.fromkeys(titles[:1] + titles[-1:]))
        made.append((Unit(spans, max(min(words, most), 10), length == "sentence"), title))
    return made


def _waves(units: Sequence[tuple[Unit, str]]) -> Iterator[list[tuple[Unit, str]]]:
    """Units that together have pieces enough for a batch."""
    wave: list[tuple[Unit, str]] = []
    for one in units:
        wave.append(one)
        if sum(len(unit.pieces) for unit, _ in wave) >= SEQUENCES:
            yield wave
            wave = []
    if wave:
        yield wave


def _extracted(
    model: Decoder, tokenizer: Tokenizer, memory: Memory, index: PassageIndex, length: Length, focus: str
) -> Iterator[SummarySection]:
    """The sections of a summary that is made of the document's own sentences."""
    shape, weights = SHAPES[length], _weights(index, focus)
    names = proper_names(index.text, 8)
    if length == "chapters" or weights:
        parts = parts_of(memory)
        spans = {trimmed(index.text, part.start, part.end): part.title for part in parts}
        if weights:
            places = [index.span(passage) for passage in range(len(index))]
            spans = dict.fromkeys(sorted(_about(places, index, weights, shape.extracts)), "")
        count = shape.extracts if length == "chapters" and not weights else 1
        found = [(title, best_quotes(index, span, names, weights)[:count]) for span, title in spans.items()]
        made = [(title, [extract(memory, one) for one in sorted(some, key=lambda q: q.start)]) for title, some in found]
        if weights:
            made = [("", list(dict.fromkeys(one for _, some in made for one in some)))]
    else:
        every = extracts(model, tokenizer, memory, shape.extracts)
        made = [("", every[i : i + TO_PARAGRAPH]) for i in range(0, len(every), TO_PARAGRAPH)]
        if length == "paragraph":
            made = [("", every)]
    made = [(title, some) for title, some in made if some]
    if not made:
        made = [("", first_lines(memory, index, min(shape.words, max(len(index.text.split()) // SHORTER, 10))))]
    yield from (_section(memory, title, some) for title, some in made)


def _section(memory: Memory, title: str, made: Sequence[SummarySentence], span: Span | None = None) -> SummarySection:
    """A section of these sentences, about the characters `span`; None: from the first of their evidence to the last."""
    found = [place for one in made for place in one.evidence]
    if span is None and found:
        span = min(one.start for one in found), max(one.end for one in found)
    pages = [memory.label_at(at, "page") for at in (span[0], span[1] - 1)] if span else []
    named = dict.fromkeys(page for page in pages if page is not None)
    return SummarySection(title, " ".join(one.text for one in made), " to ".join(named) or None, tuple(made))
