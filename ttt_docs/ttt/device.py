"""Reading on a GPU: the same inner loop as `state`, without a word to the host between chunks.

- Prefix blocks run `AHEAD` chunks in one call, on a stream of their own: the next chunks' prefix overlaps the suffix.
- A chunk's suffix step (`device_step`: forward, backward, clip, update, guard) makes every decision on the device, so
  that it can be captured in a CUDA graph and replayed (`graphs.py`).
- Losses and norms stay on the device until a piece of chunks is done, and come back together.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ttt_docs.kernels.backends import Kernels
from ttt_docs.model.cache import LayerCache
from ttt_docs.model.config import ReadingConfig
from ttt_docs.model.decoder import Decoder, FastWeights, Place, ProductWeights, SinkPlace
from ttt_docs.ttt.inner_loop import chunk_loss, score_and_product_grads

if TYPE_CHECKING:
    from ttt_docs.ttt.state import ReadingState

#: Chunks whose prefix runs in one call; a call's products always have this many chunks of rows.
AHEAD = 4
#: Chunks between two reports. Even, because a graph is kept for each place in a piece and weights alternate between two
#: buffers: a chunk finds its weights in the same one in every piece.
DEVICE_PIECE = 16
#: A model's graphs, with the buffers they work on, serve one piece at a time.
_ONE_PIECE = threading.Lock()


class StepResult(NamedTuple):
    """What one chunk measured, on the device; per document."""

    nll: Tensor  # float32 [batch, chunk]
    loss: Tensor  # [batch]
    grad_norm: Tensor
    clip: Tensor
    accepted: Tensor  # bool


class Buffers(NamedTuple):
    """Fast weights and their copies for the products."""

    fast: list[FastWeights]
    products: list[ProductWeights]


class Taken(NamedTuple):
    result: StepResult
    after: Buffers
    step: Any  # `kernels.triton.sgd.Step`


def device_step(
    model: Decoder,
    reading: ReadingConfig,
    kernels: Kernels,
    hidden: Tensor,
    targets: Tensor,
    places: tuple[Place, Place],
    caches: Sequence[LayerCache],
    before: Buffers,
    rates: Tensor | None = None,
    into: Buffers | None = None,
    table: Tensor | None = None,
) -> Taken:
    """One chunk: score, gradient, step, guard. hidden [batch, chunk, dim], targets [batch, chunk].

    `places` are the chunk's and its last tokens', which the guard predicts again; `into` takes the weights after the
    step; `rates` and `table` as for `inner_step_triton`.
    """
    assert kernels.inner_step is not None
    take, undo = kernels.inner_step
    chunk_place, guard_place = places
    nll, grads = score_and_product_grads(model, hidden, targets, chunk_place, caches, before.products, kernels)
    with torch.no_grad():
        rule = reading.inner_rule, reading.inner_lr, reading.inner_clip
        step = take(before.fast, grads, model.dtype, *rule, rates, into, table)
        after = Buffers([FastWeights(*w) for w in step.fast], [ProductWeights(*p) for p in step.products])
        accepted = step.grad_norm.isfinite()
        if reading.guard is not None:
            count = guard_place.turn[0].shape[0]
            with ExitStack() as stack:
                for i in model.config.suffix:
                    stack.enter_context(caches[i].rewound(count))
                x = model.run(
                    hidden[:, -count:], model.config.suffix, guard_place, caches, after.products, kernels, commit=False
                )
                again = model.token_nll(x, targets[:, -count:], kernels)
            jump = (again - nll[:, -count:]).mean(dim=1)
            accepted = accepted & (jump <= reading.guard)  # false for NaN too
            undo(step, accepted)
        loss = chunk_loss(nll, targets, model.config.bos_token_id)
        return Taken(StepResult(nll, loss, step.grad_norm, step.clip, accepted), after, step)


def read_on_device(state: ReadingState, tokens: Tensor) -> Iterator[Any]:
    """`ReadingState.read`: every chunk is under way before the first result is yielded."""
    from ttt_docs.ttt.state import ChunkResult

    chunk, began = state.reading.chunk, time.perf_counter()
    count = (tokens.shape[1] - 1) // chunk
    first = state.position // chunk
    results = []
    with torch.no_grad(), torch.cuda.device_of(tokens), _ONE_PIECE:
        ahead = _Prefix(state, tokens)
        try:
            steps = _Steps(state, count)
            for i in range(count):
                targets = tokens[:, i * chunk + 1 : (i + 1) * chunk + 1]
                results.append(steps.take(ahead.hidden(i), targets))
                state.position += chunk
            steps.finish()
        finally:  # whatever happened: memory may be given to others only after the other stream is done with it
            ahead.finish()
        nll, loss, grad_norm, clip, accepted = (torch.stack(column).cpu() for column in zip(*results, strict=True))
    seconds = (time.perf_counter() - began) / max(count, 1)
    for i in range(count):
        yield ChunkResult(first + i, nll[i], loss[i], grad_norm[i], clip[i], ~accepted[i], seconds)


@cache
def _prefix_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all readings: the allocator keeps memory, and cuBLAS a workspace, for every stream that was ever used."""
    return torch.cuda.Stream(device)


class _Prefix:
    """Hidden states from the prefix blocks, group after group of `AHEAD` chunks, one ahead of what is asked for."""

    def __init__(self, state: ReadingState, tokens: Tensor) -> None:
        self.state, self.tokens, self.chunk = state, tokens, state.reading.chunk
        self.start = state.position // self.chunk  # of the tokens, in chunks
        self.stop = self.start + (tokens.shape[1] - 1) // self.chunk
        self.groups: dict[int, tuple[Tensor, Any]] = {}
        self.stream = _prefix_stream(tokens.device) if tokens.is_cuda else None
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream())

    def hidden(self, i: int) -> Tensor:
        """[batch, chunk, dim] of chunk number i of the tokens."""
        index = self.start + i
        group = index // AHEAD
        for here in (group, group + 1):
            if here not in self.groups and here * AHEAD < self.stop:
                self._launch(here)
        hidden, done = self.groups[group]
        if done is not None:
            done.wait()
            hidden.record_stream(torch.cuda.current_stream())
        self.groups = {g: v for g, v in self.groups.items() if g >= group}
        slot = index - group * AHEAD
        return hidden[:, slot * self.chunk : (slot + 1) * self.chunk]

    def finish(self) -> None:
        """What follows on the current stream, which reads the prefix blocks' caches too, comes after all of this."""
        if self.stream is not None:
            torch.cuda.current_stream().wait_stream(self.stream)

    def _launch(self, group: int) -> None:
        first, last = max(group * AHEAD, self.start), min((group + 1) * AHEAD, self.stop)
        tokens = self.tokens[:, (first - self.start) * self.chunk : (last - self.start) * self.chunk]
        context: Any = nullcontext() if self.stream is None else torch.cuda.stream(self.stream)
        with context:
            hidden = prefix_of_group(self.state, tokens, first, group)
            done = self.stream.record_event() if self.stream is not None else None
        self.groups[group] = hidden, done


def prefix_of_group(state: ReadingState, tokens: Tensor, first: int, group: int) -> Tensor:
    """Prefix blocks over whole group number `group`, of which `tokens` begin at chunk `first`; padding included."""
    model, (chunk, window, sinks) = state.model, _sizes(state)
    frame = tokens.new_zeros(tokens.shape[0], AHEAD * chunk)
    slot, count = first - group * AHEAD, tokens.shape[1] // chunk
    frame[:, slot * chunk : (slot + count) * chunk] = tokens
    place = model.place(group * AHEAD * chunk, frame.shape[1], window, sinks, chunk, slice(slot, slot + count))
    if state.kernels.name == "triton" and chunk % _tile_rows(model) == 0:
        place = _joined(place)
    blocks = range(model.config.prefix_blocks)
    return model.run(model.hidden(frame), blocks, place, state.caches, None, state.kernels)


def _tile_rows(model: Decoder) -> int:
    from ttt_docs.kernels.attention.triton_tiles import tiles_for

    return tiles_for("forward_rows", model.dtype, model.config.head_dim, model.embed.weight.device).rows


def _joined(place: Place) -> Place:
    """Fewer, longer ranges, where that changes no bit: Triton's attention gives a row of queries the same bits whatever
    whole tiles it is launched with, if sinks are out of sight for all of them or at their last distance for all."""
    chunks, sinks = list(place.chunks[:1]), list(place.sinks[:1])
    for (first, last), sink in zip(place.chunks[1:], place.sinks[1:], strict=True):
        out_of_sight = sink is None and sinks[-1] is None
        if out_of_sight or (_settled(sink) and _settled(sinks[-1])):
            chunks[-1] = chunks[-1][0], last
        else:
            chunks.append((first, last))
            sinks.append(sink)
    return Place(place.turn, tuple(chunks), tuple(sinks))


def _settled(sink: SinkPlace | None) -> bool:
    return sink is not None and sink.query_turn is None


def _sizes(state: ReadingState) -> tuple[int, int, int]:
    return state.reading.chunk, state.reading.window, state.reading.sinks


def _places(state: ReadingState, count: int) -> list[tuple[Place, Place]]:
    """For each of the next `count` chunks, its place and that of its last tokens, which the guard predicts again."""
    from ttt_docs.ttt.state import GUARD_TOKENS

    chunk, window, sinks = _sizes(state)
    piece = state.model.place(state.position, count * chunk, window, sinks, chunk)
    ends = [(i + 1) * chunk for i in range(count)]
    return [(piece.within(end - chunk, end), piece.within(end - min(GUARD_TOKENS, chunk), end)) for end in ends]


def can_capture(state: ReadingState) -> bool:
    return state.model.embed.weight.is_cuda


class _Steps:
    """The suffix steps of one piece, through graphs where they apply."""

    def __init__(self, state: ReadingState, count: int) -> None:
        from ttt_docs.ttt.graphs import graphs_for

        self.state, self.places = state, iter(_places(state, count))
        self.learns = state.reading.learn and bool(state.fast)
        self.graphs = graphs_for(state) if self.learns and can_capture(state) else None
        self.entered = False

    def take(self, hidden: Tensor, targets: Tensor) -> StepResult:
        state, places = self.state, next(self.places)
        if not self.learns:
            return _score_only(state, hidden, targets, places[0])
        if self.graphs is not None and (self.entered or self.graphs.enter(state)):
            self.entered = True
            return self.graphs.take(state, hidden, targets, places)
        before = Buffers(state.fast, state.products)
        taken = device_step(
            state.model, state.reading, state.kernels, hidden, targets, places, state.caches, before, state.matrix_rates
        )
        state.set_fast(taken.after.fast, taken.after.products)
        return taken.result

    def finish(self) -> None:
        if self.graphs is not None and self.entered:
            self.graphs.leave(self.state)


def _score_only(state: ReadingState, hidden: Tensor, targets: Tensor, place: Place) -> StepResult:
    products = state.products if state.fast else None
    x = state.model.run(hidden, state.model.config.suffix, place, state.caches, products, state.kernels)
    nll = state.model.token_nll(x, targets, state.kernels)
    loss = chunk_loss(nll, targets, state.model.config.bos_token_id)
    zero = torch.zeros_like(loss)
    return StepResult(nll, loss, zero, zero + 1, torch.ones_like(loss, dtype=torch.bool))
