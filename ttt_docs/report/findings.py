"""What there is to see in a memory, as plain numbers and text: the page and the plot only draw it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ttt_docs.generation.sections import surprise
from ttt_docs.memory.checks import FAST_NAMES
from ttt_docs.memory.memory import Memory, ReadDocument
from ttt_docs.text.sentences import sentences

if TYPE_CHECKING:
    from ttt_docs.reader import TTTReader

#: The curve has at most this many points, of this many tokens at least; its trend is the mean over this share of it.
POINTS, FINEST, TREND = 240, 32, 1 / 16
#: Characters of a surprising passage, the tokens it must have at least, and how many are shown.
SHORTEST, LONGEST, FEWEST_TOKENS, PASSAGES = 180, 420, 24, 8
_WORD = re.compile(r"(\s*)(\S+)")


@dataclass(frozen=True)
class Point:
    """Tokens `start` (included) to `end` (excluded): their mean loss in nats, and that of their wider surroundings."""

    start: int
    end: int
    loss: float
    trend: float


@dataclass(frozen=True)
class Stretch:
    """A document or chapter: its tokens `start` to `end`, and their mean loss in nats (None: no token is predicted)."""

    label: str
    start: int
    end: int
    loss: float | None


@dataclass(frozen=True)
class Passage:
    """Text that surprised the model, as its words, each with the white space before it and with its nats."""

    words: tuple[tuple[str, str, float], ...]
    place: str  # page and chapter, for people; may be empty
    token: int  # where it starts
    tokens: int
    loss: float  # nats per token

    @property
    def text(self) -> str:
        return "".join(space + word for space, word, _ in self.words)


@dataclass(frozen=True)
class Change:
    """One block's fast weights: Frobenius norms of what reading changed, and of the initial values, by matrix."""

    block: int
    change: dict[str, float]
    initial: dict[str, float]


@dataclass(frozen=True)
class Findings:
    """All that a report shows. `facts` is `inspect_memory`'s account of the file.

    Without the model, `passages` and `changes` are None: they need its tokenizer and its initial weights.
    """

    facts: dict[str, Any]
    mean: float | None  # nats per token
    quarters: tuple[float | None, ...]
    curve: tuple[Point, ...]
    documents: tuple[Stretch, ...]
    chapters: tuple[Stretch, ...]
    passages: tuple[Passage, ...] | None
    changes: tuple[Change, ...] | None
    keys: int  # in the window, sinks included

    @property
    def title(self) -> str:
        names = [document.label for document in self.documents]
        return names[0] if len(names) == 1 else f"{len(names) or 'No'} documents"


def examine(memory: Memory, facts: dict[str, Any], reader: TTTReader | None = None) -> Findings:
    """What reading left in `memory`, of whose file `facts` tells (`inspect_memory`).

    `reader` is of the memory's model. Without it chapters are placed by their characters instead of their tokens.

    Raises:
        MemoryMismatchError: `reader` has another model.
    """
    if reader is not None:
        reader.check(memory)
    nll = memory.nll.detach().double().cpu().numpy()
    first = int(nll.size > 0 and nll[0] == 0)  # nothing predicted the first token
    losses = _Losses(nll, first)
    nats = surprise(memory, reader.tokenizer) if reader is not None else None
    place = _TokenOf(memory, nats)
    documents = tuple(
        losses.stretch(document.name, start, end) for document, start, end in _token_ranges(memory) if end > start
    )
    chapters = tuple(
        losses.stretch(span.label, place(span.start), place(span.end))
        for document in memory.documents
        for span in document.spans
        if span.kind == "chapter" and place(span.end) > place(span.start)
    )
    quarters = np.array_split(np.arange(first, len(nll)), 4)
    return Findings(
        facts=facts,
        mean=losses.mean(first, len(nll)),
        quarters=tuple(float(nll[part].mean()) if part.size else None for part in quarters),
        curve=tuple(losses.curve()),
        documents=documents,
        chapters=chapters,
        passages=None if nats is None else _surprising(memory, nats, place),
        changes=None if reader is None else _changes(memory, reader),
        keys=next((keys.shape[1] for keys, _ in memory.window.values()), 0),
    )


class _Losses:
    """Means over ranges of tokens."""

    def __init__(self, nll: np.ndarray, first: int) -> None:
        self.first, self.tokens = first, len(nll)
        self.sums = np.concatenate([[0.0], nll.cumsum()])

    def mean(self, start: int, end: int) -> float | None:
        start = max(start, self.first)
        return float(self.sums[end] - self.sums[start]) / (end - start) if end > start else None

    def stretch(self, label: str, start: int, end: int) -> Stretch:
        return Stretch(label, start, end, self.mean(start, end))

    def curve(self) -> Iterator[Point]:
        count = self.tokens - self.first
        step = max(FINEST, -(-count // POINTS))
        reach = max(step, round(count * TREND / 2))
        for start in range(self.first, self.tokens, step):
            end = min(start + step, self.tokens)
            around = self.mean(max(start - reach, 0), min(end + reach, self.tokens))
            loss = self.mean(start, end)
            assert loss is not None and around is not None
            yield Point(start, end, loss, around)


def _token_ranges(memory: Memory) -> Iterator[tuple[ReadDocument, int, int]]:
    starts = [document.first_token for document in memory.documents] + [len(memory.tokens)]
    yield from zip(memory.documents, starts, starts[1:], strict=False)


class _TokenOf:
    """The token at a character of the memory's text; without `nats` (`surprise`) as if all tokens were as long."""

    def __init__(self, memory: Memory, nats: np.ndarray | None) -> None:
        self.memory, self.nats = memory, nats
        self.before = memory.documents[0].first_token if memory.documents else 0

    def __call__(self, character: int) -> int:
        if self.nats is not None:
            return self.before + int(self.nats[min(character, len(self.nats) - 1), 1])
        for document, start, end in reversed(list(_token_ranges(self.memory))):
            if character >= document.start and document.end > document.start:
                share = min((character - document.start) / (document.end - document.start), 1.0)
                return start + round(share * (end - start))
        return self.before


def _surprising(memory: Memory, nats: np.ndarray, token_of: _TokenOf) -> tuple[Passage, ...]:
    """The passages of the greatest mean loss, greatest first; no two of them touch."""
    assert memory.text is not None
    found = []
    for start, end in _runs(memory.text):
        loss, tokens = nats[end] - nats[start]
        if tokens >= FEWEST_TOKENS:
            found.append((loss / tokens, start, end, int(tokens)))
    chosen: list[Passage] = []
    taken: list[tuple[int, int]] = []
    for mean, start, end, tokens in sorted(found, key=lambda run: (-run[0], run[1])):
        if len(chosen) == PASSAGES:
            break
        if any(start < b and a < end for a, b in taken):
            continue
        taken.append((start - 2, end + 2))
        words = tuple(
            (match[1], match[2], float(nats[match.end(), 0] - nats[match.start(), 0]))
            for match in _WORD.finditer(memory.text, start, end)
        )
        chosen.append(Passage(words, _place(memory, start), token_of(start), tokens, float(mean)))
    return tuple(chosen)


def _runs(text: str) -> Iterator[tuple[int, int]]:
    """Runs of whole sentences of a readable length; a longer sentence is cut between words."""
    begin: int | None = None
    for start, end in sentences(text):
        begin = start if begin is None else begin
        if end - begin < SHORTEST:
            continue
        while end - begin > LONGEST:
            cut = text.rfind(" ", begin + SHORTEST, begin + LONGEST)
            cut = begin + LONGEST if cut < 0 else cut
            yield begin, cut
            begin = cut + len(text[cut:end]) - len(text[cut:end].lstrip())
        if end - begin >= SHORTEST:
            yield begin, end
        begin = None


def _place(memory: Memory, character: int) -> str:
    """Page and chapter of a character, and the document if there are several."""
    parts = []
    for document in memory.documents:
        if document.start <= character < document.end:
            parts += [document.name] if len(memory.documents) > 1 else []
            here = {span.kind: span.label for span in document.spans if span.start <= character < span.end}
            parts += [here["chapter"]] if "chapter" in here else []
            parts += [f"page {here['page']}"] if "page" in here else []
    return ", ".join(parts)


def _changes(memory: Memory, reader: TTTReader) -> tuple[Change, ...]:
    initial = reader.model.initial_fast_weights(1)
    found = []
    for block, weights in zip(reader.model.config.suffix, initial, strict=True):
        if block in memory.fast:
            before = {name: getattr(weights, name)[0].detach().float().cpu() for name in FAST_NAMES}
            change = {name: float((memory.fast[block][name] - before[name]).norm()) for name in FAST_NAMES}
            found.append(Change(block, change, {name: float(before[name].norm()) for name in FAST_NAMES}))
    return tuple(found)
