"""What there is to see in a memory, as plain numbers and text. The page and the plot only draw it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ttt_docs.generation.results import quote
from ttt_docs.generation.sections import surprise
from ttt_docs.kernels.inner_step.layout import NAMES as FAST_NAMES
from ttt_docs.memory.header import ReadDocument
from ttt_docs.memory.inspection import summary
from ttt_docs.memory.memory import Memory
from ttt_docs.text.sentences import sentences

if TYPE_CHECKING:
    from ttt_docs.reader import TTTReader

#: The curve has at most this many points, of this many tokens at least; its trend is the mean over this share of it.
POINTS, FINEST, TREND = 240, 32, 1 / 16
#: Characters of a surprising passage, the tokens it must have at least, and how many are shown.
SHORTEST, LONGEST, FEWEST_TOKENS, PASSAGES = 180, 420, 24, 8
_WORD = re.compile(r"(\s*)(\S+)")


@dataclass(frozen=True)
class CurvePoint:
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
class SurprisingPassage:
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
class FastWeightChange:
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
    curve: tuple[CurvePoint, ...]
    documents: tuple[Stretch, ...]
    chapters: tuple[Stretch, ...]
    passages: tuple[SurprisingPassage, ...] | None
    changes: tuple[FastWeightChange, ...] | None
    keys: int  # in the window, sinks included

    @property
    def title(self) -> str:
        names = [document.label for document in self.documents]
        return names[0] if len(names) == 1 else f"{len(names) or 'No'} documents"


def examine(memory: Memory, facts: dict[str, Any], reader: TTTReader | None = None) -> Findings:
    """What reading left in `memory`. `facts` is what `inspect_memory` says of its file.

    `reader` is of the memory's model. Without it chapters are placed by their characters instead of their tokens.

    Raises:
        MemoryMismatchError: `reader` has another model.
    """
    if reader is not None:
        reader.check(memory)
    nll, tokens = memory.nll.detach().double().cpu().numpy(), len(memory.nll)
    first = int(nll.size > 0 and nll[0] == 0)  # nothing predicted the first token
    sums = np.concatenate([[0.0], nll.cumsum()])

    def mean(start: int, end: int) -> float | None:
        start = max(start, first)
        return float(sums[end] - sums[start]) / (end - start) if end > start else None

    def stretches(named: Iterable[tuple[str, int, int]]) -> tuple[Stretch, ...]:
        return tuple(Stretch(name, start, end, mean(start, end)) for name, start, end in named if end > start)

    starts = [document.first_token for document in memory.documents]
    ranges = list(zip(memory.documents, starts, [*starts[1:], tokens], strict=False))
    nats = surprise(memory, reader.tokenizer) if reader is not None else None
    token_of = _token_of(ranges, nats)
    chapters = (span for document in memory.documents for span in document.spans if span.kind == "chapter")
    kept = summary(memory)
    return Findings(
        facts=facts,
        mean=kept["mean_nll"],
        quarters=tuple(kept["nll_by_quarter"]),
        curve=tuple(_curve(mean, first, tokens)),
        documents=stretches((document.name, start, end) for document, start, end in ranges),
        chapters=stretches((span.label, token_of(span.start), token_of(span.end)) for span in chapters),
        passages=None if nats is None else _surprising(memory, nats, token_of),
        changes=None if reader is None else _changes(memory, reader),
        keys=next((keys.shape[1] for keys, _ in memory.window.values()), 0),
    )


def _curve(mean: Callable[[int, int], float | None], first: int, tokens: int) -> Iterator[CurvePoint]:
    step = max(FINEST, -(-(tokens - first) // POINTS))
    reach = max(step, round((tokens - first) * TREND / 2))
    for start in range(first, tokens, step):
        end = min(start + step, tokens)
        loss, around = mean(start, end), mean(max(start - reach, 0), min(end + reach, tokens))
        assert loss is not None and around is not None
        yield CurvePoint(start, end, loss, around)


def _token_of(ranges: Sequence[tuple[ReadDocument, int, int]], nats: np.ndarray | None) -> Callable[[int], int]:
    """The token at a character of the memory's text. Without `nats` (`surprise`), as if all tokens were as long."""
    if nats is not None:
        before = ranges[0][1] if ranges else 0
        return lambda character: before + int(nats[min(character, len(nats) - 1), 1])
    characters = [character for document, _, _ in ranges for character in (document.start, document.end)]
    tokens = [token for _, start, end in ranges for token in (start, end)]
    return lambda character: round(float(np.interp(character, characters, tokens)))


def _surprising(memory: Memory, nats: np.ndarray, token_of: Callable[[int], int]) -> tuple[SurprisingPassage, ...]:
    """The passages of the greatest mean loss, greatest first; no two of them touch."""
    assert memory.text is not None
    found = []
    for start, end in _runs(memory.text):
        loss, tokens = nats[end] - nats[start]
        if tokens >= FEWEST_TOKENS:
            found.append((loss / tokens, start, end, int(tokens)))
    chosen: list[SurprisingPassage] = []
    taken: list[tuple[int, int]] = []
    for loss, start, end, tokens in sorted(found, key=lambda run: (-run[0], run[1])):
        if len(chosen) == PASSAGES or any(start < b and a < end for a, b in taken):
            continue
        taken.append((start - 2, end + 2))
        words = tuple(
            (match[1], match[2], float(nats[match.end(), 0] - nats[match.start(), 0]))
            for match in _WORD.finditer(memory.text, start, end)
        )
        at = quote(memory, start, end, 0.0)
        where = (at.document if len(memory.documents) > 1 else None, at.chapter, f"page {at.page}" if at.page else None)
        place = ", ".join(part for part in where if part)
        chosen.append(SurprisingPassage(words, place, token_of(start), tokens, float(loss)))
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


def _changes(memory: Memory, reader: TTTReader) -> tuple[FastWeightChange, ...]:
    if not memory.fast:
        return ()
    initial, found = reader.model.initial_fast_weights().detach().float().cpu(), []
    for block, weights in zip(reader.model.config.suffix, reader.model.fast_layout.views(initial), strict=True):
        if block in memory.fast:
            before = {name: w[0] for name, w in zip(FAST_NAMES, weights.matrices, strict=True)}
            change = {name: float((memory.fast[block][name] - before[name]).norm()) for name in FAST_NAMES}
            found.append(FastWeightChange(block, change, {name: float(before[name].norm()) for name in FAST_NAMES}))
    return tuple(found)
