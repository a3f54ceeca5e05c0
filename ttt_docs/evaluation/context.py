"""Loss against context length: several systems read the same tokens of the same documents.

Every token is predicted before anything is learned from it. So one reading of a document gives its loss at every
shorter length too. A reading keeps the mean loss of each BUCKET tokens; lengths and positions are made from those.
Systems with the same prefix blocks share the hidden states after them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from ttt_docs.errors import UsageError
from ttt_docs.evaluation.books import Text
from ttt_docs.figures import new_figure, save_figure
from ttt_docs.model.decoder import Block, Decoder
from ttt_docs.reader import TTTReader
from ttt_docs.text.segments import segments
from ttt_docs.ttt.state import ReadingState
from ttt_docs.weights.adapter import SHIPPED
from ttt_docs.weights.registry import entry_of

#: Tokens of which a reading keeps the mean loss.
BUCKET = 1024
#: Step of the `inplace` system: what docs/method.md section 6 found best for matrices that already do a job.
IN_PLACE_LR = 0.03


@dataclass(frozen=True)
class Base:
    """What all systems share, and the files that some need."""

    model: str = "smollm2-135m"
    window: int = 2048
    dtype: str | None = None
    adapter: str | Path = SHIPPED
    control: str | Path | None = None


@dataclass(frozen=True)
class System:
    """One way of reading with the base weights."""

    about: str
    trained: Literal["adapter", "control"] | None  # which file of `Base` it reads with
    settings: dict[str, Any]  # as `TTTReader.from_pretrained` takes them


SYSTEMS: dict[str, System] = {
    "window": System("window attention only", None, {"learn": False}),
    "retrofit": System("TTT without training (docs/method.md section 6)", None, {}),
    "inplace": System(
        "TTT without training, the existing MLPs updated in place", None, {"inner_rule": "sgd", "inner_lr": IN_PLACE_LR}
    ),
    "adapter": System("meta-trained initialization, TTT on", "adapter", {}),
    "adapter-off": System("meta-trained initialization, TTT off", "adapter", {"learn": False}),
    "control": System("trained on the same tokens without the inner loop, TTT off", "control", {"learn": False}),
    "full": System(
        "attention over the whole length the base model was trained for, and no further", None, {"learn": False}
    ),
}


def open_system(name: str, base: Base) -> TTTReader:
    """A reader for the system `name`. Raises UsageError where `base` lacks the file that it needs."""
    system, entry = SYSTEMS[name], entry_of(base.model)
    settings: dict[str, Any] = {"window": base.window, "dtype": base.dtype, "adapter": None} | system.settings
    if system.trained is not None:
        settings["adapter"] = file = getattr(base, system.trained)
        if file is None or (file == SHIPPED and (entry is None or entry.adapter is None)):
            raise UsageError(
                f"there is no {system.trained} to read with: say with --{system.trained} where that file is"
            )
    reader = TTTReader.from_pretrained(base.model, **settings)
    if name == "full":
        settings["window"] = reader.model.config.max_positions
        reader = TTTReader.from_pretrained(base.model, **settings)
    elif name == "inplace":
        update_existing_mlps(reader.model)
    return reader


class Reading(BaseModel):
    """One document read by one system."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    system: str
    book: str
    sha256: str  # of the book's text
    fingerprint: str  # of the model
    reading: dict[str, Any]
    nats: tuple[float, ...]  # mean loss of each BUCKET tokens, in order
    skipped: int  # updates the guard refused
    seconds: float

    def loss(self, start: int, end: int) -> float | None:
        """Mean loss of the tokens from `start` to `end` (multiples of BUCKET); None where the reading is shorter."""
        part = self.nats[start // BUCKET : end // BUCKET]
        return sum(part) / len(part) if len(self.nats) * BUCKET >= end > start else None


def key_of_reading(reading: Reading) -> tuple[str, ...]:
    """What was read by what: a second reading with the same key gives the same losses."""
    return reading.system, reading.sha256, reading.fingerprint, str(reading.reading)


def update_existing_mlps(model: Decoder) -> None:
    """Makes the suffix blocks' own MLPs the fast weights: the prime MLP becomes the static one, which becomes zero."""
    for block in (cast(Block, model.blocks[i]) for i in model.config.suffix):
        block.prime_mlp.w2 = nn.Parameter(block.mlp.w2.weight.float(), requires_grad=False)
        block.mlp.w2.weight = nn.Parameter(torch.zeros_like(block.mlp.w2.weight), requires_grad=False)


def token_ids(reader: TTTReader, text: str, tokens: int) -> list[int]:
    """The first `tokens` tokens that reading `text` would read, fewer where it is shorter."""
    ids = [cast(int, reader.tokenizer.bos_id)] if reader.tokenizer.adds_bos else []
    for segment in segments([text]):
        ids += reader.tokenizer.encode(segment)
        if len(ids) >= tokens:
            break
    return ids[:tokens]


def read_text(
    system: str,
    reader: TTTReader,
    book: Text,
    ids: list[int],
    on_tokens: Callable[[int], object],
    prefix_states: dict[int, Tensor] | None,
) -> Reading:
    """Reads the whole chunks of a book's first tokens `ids`, the last of which is only a target.

    `on_tokens` is told how many tokens were read, chunk by chunk; `prefix_states` are `ReadingState.prefix_states`.
    """
    tokens = torch.tensor(ids, device=reader.model.embed.weight.device).unsqueeze(0)
    state = ReadingState(reader.model, reader.reading)
    state.prefix_states = prefix_states
    losses, skipped, seconds, chunk = [], 0, 0.0, reader.reading.chunk
    for result in state.read_whole(tokens):
        losses.append(result.nll[0].double().cpu())
        skipped += int(result.skipped[0])
        seconds += result.seconds
        on_tokens(chunk)
    nll = torch.cat(losses) if losses else torch.zeros(0, dtype=torch.float64)
    return Reading(
        system=system,
        book=book.id,
        sha256=book.sha256,
        fingerprint=reader.fingerprint,
        reading=reader.reading.model_dump(mode="json"),
        nats=tuple(nll[: len(nll) // BUCKET * BUCKET].view(-1, BUCKET).mean(1).tolist()),
        skipped=skipped,
        seconds=seconds,
    )


def measure(
    books: Sequence[Text],
    systems: Iterable[str],
    base: Base,
    length: int,
    known: Iterable[Reading] = (),
    on_tokens: Callable[[int], object] = lambda count: None,
) -> Iterator[Reading]:
    """Every book read by every system, book by book. What is `known` already is not read again. `full` reads no further
    than the base model was trained for.

    Raises UsageError for a system that does not exist or lacks its adapter, or for a length that its chunks do not fit.
    """
    systems = list(systems)
    if unknown := [name for name in systems if name not in SYSTEMS]:
        raise UsageError(f"there is no system {', '.join(unknown)}: choose from {', '.join(SYSTEMS)}")
    done = {key_of_reading(reading): reading for reading in known}
    readers: dict[str, TTTReader] = {}
    for system in systems:
        readers[system] = reader = open_system(system, base)
        if length % reader.reading.chunk:
            raise UsageError(f"a length of {length:,} is not a multiple of the chunk ({reader.reading.chunk:,})")
    groups = _same_prefix(list(readers.values()))
    for book in books:
        ids = token_ids(next(iter(readers.values())), book.text, length + 1)  # the systems share their tokenizer
        shared: list[dict[int, Tensor]] = [{} for _ in readers]
        for (system, reader), group in zip(readers.items(), groups, strict=True):
            longest = min(length, reader.model.config.max_positions) if system == "full" else length
            whole = min(len(ids) - 1, longest) // BUCKET * BUCKET
            old = done.get((system, book.sha256, reader.fingerprint, str(reader.reading.model_dump(mode="json"))))
            if old is None or len(old.nats) < whole // BUCKET:
                states = shared[group] if groups.count(group) > 1 else None
                old = read_text(system, reader, book, ids[: whole + 1], on_tokens, states)
            else:
                on_tokens(whole)
            yield old


def _same_prefix(readers: Sequence[TTTReader]) -> list[int]:
    """For each reader, the first one that makes the same hidden states below its fast weights."""

    def same(one: TTTReader, other: TTTReader) -> bool:
        a, b = one.reading, other.reading
        if (a.chunk, a.window, a.sinks) != (b.chunk, b.window, b.sinks) or len(prefix(one)) != len(prefix(other)):
            return False
        pairs = zip(prefix(one), prefix(other), strict=True)
        return all(p.dtype == q.dtype and torch.equal(p, q) for p, q in pairs)

    def prefix(reader: TTTReader) -> list[Tensor]:
        model = reader.model
        return [*model.embed.parameters(), *model.blocks[: model.config.prefix_blocks].parameters()]

    return [next(i for i, other in enumerate(readers) if same(reader, other)) for reader in readers]


def by_length(readings: Sequence[Reading], lengths: Sequence[int]) -> list[dict[str, Any]]:
    """`{"system", "length", "nats", "books": {id: nats}}` for every system and length.

    `nats` is the mean over the books of at least that length, each counted once. It is None if there is no such book.
    """
    rows = []
    for system, length in product(dict.fromkeys(r.system for r in readings), lengths):
        own = (r for r in readings if r.system == system)
        books = {r.book: loss for r in own if (loss := r.loss(0, length)) is not None}
        rows.append({"system": system, "length": length, "nats": _mean(books.values()), "books": books})
    return rows


def by_position(readings: Sequence[Reading], length: int) -> list[dict[str, Any]]:
    """`{"system", "start", "end", "nats", "books"}`: loss of the tokens between two positions, bins doubling in length.

    Only books of at least `length` tokens count, so that all bins are about the same books; `books` is how many. Where
    a system reads less of them, `nats` is None for the later bins.
    """
    edges = [0, BUCKET]
    while edges[-1] < length:
        edges.append(min(2 * edges[-1], length))
    long = {r.book for r in readings if len(r.nats) * BUCKET >= length}
    rows = []
    for system, (start, end) in product(dict.fromkeys(r.system for r in readings), pairwise(edges)):
        own = (r for r in readings if r.system == system and r.book in long)
        losses = [loss for r in own if (loss := r.loss(start, end)) is not None]
        rows.append({"system": system, "start": start, "end": end, "nats": _mean(losses), "books": len(losses)})
    return rows


def report(readings: Sequence[Reading], lengths: Sequence[int]) -> dict[str, Any]:
    """Everything that is printed and written: `results` by length, `positions` by token position."""
    return {"results": by_length(readings, lengths), "positions": by_position(readings, max(lengths))}


def plot(readings: Sequence[Reading], lengths: Sequence[int], path: Path) -> None:
    """Two panels: loss against context length, and against token position relative to the first system.

    The suffix of `path` chooses the format. Raises UsageError for a format that matplotlib cannot write, or without it.
    """
    figure = new_figure((10, 4.2))
    left, right = figure.subplots(1, 2)
    rows = report(readings, lengths)
    first = readings[0].system
    against = {row["end"]: row["nats"] for row in rows["positions"] if row["system"] == first}
    for system in dict.fromkeys(r.system for r in readings):
        own = [row for row in rows["results"] if row["system"] == system and row["nats"] is not None]
        left.plot([row["length"] for row in own], [row["nats"] for row in own], marker="o", label=system)
        own = [row for row in rows["positions"] if row["system"] == system]
        own = [row for row in own if row["nats"] is not None and against[row["end"]] is not None]
        right.plot([row["end"] for row in own], [row["nats"] - against[row["end"]] for row in own], marker="o")
    left.set(xlabel="context length (tokens)", ylabel="loss (nats per token)")
    right.set(xlabel="token position", ylabel=f"loss against {first} (nats)")
    for panel in (left, right):
        panel.grid(alpha=0.3)
        panel.set_xscale("log", base=2)
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center", fontsize=8)
    save_figure(figure, path)


def _mean(values: Collection[float]) -> float | None:
    return sum(values) / len(values) if values else None
