"""Reading on a GPU: the same inner loop as `state`, without a word to the host between chunks.

- Prefix blocks run `AHEAD` chunks in one call, on a stream of their own: the next chunks' prefix overlaps the suffix.
- A chunk's suffix step (`device_step`: forward, backward, clip, update, guard) makes every decision on the device. Once
  the window is full its shapes no longer change, and it is captured in a CUDA graph and replayed from then on.
- Losses and norms stay on the device until a piece of chunks is done, and come back in one copy.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ttt_docs.kernels.dispatch import Kernels
from ttt_docs.model.cache import LayerCache
from ttt_docs.model.config import ReadingConfig
from ttt_docs.model.decoder import Decoder, FastWeights, Place, ProductWeights
from ttt_docs.model.inner import chunk_loss, score_and_product_grads

if TYPE_CHECKING:
    from ttt_docs.model.state import ReadingState

#: Chunks whose prefix runs in one call; a call's products always have this many chunks of rows.
AHEAD = 4
#: Chunks between two reports. A graph is kept for each place in a piece, so this is even: weights alternate between two
#: buffers.
DEVICE_PIECE = 16


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
    into: Buffers | None = None,
    table: Tensor | None = None,
) -> Taken:
    """One chunk: score, gradient, step, guard. hidden [batch, chunk, dim], targets [batch, chunk].

    `places` are the chunk's and its last tokens', which the guard predicts again; `into` takes the weights after the
    step; `table` as for `clip_sgd_triton`.
    """
    assert kernels.inner_step is not None
    take, undo = kernels.inner_step
    chunk_place, guard_place = places
    nll, grads = score_and_product_grads(model, hidden, targets, chunk_place, caches, before.products, kernels)
    with torch.no_grad():
        step = take(
            before.fast, grads, model.dtype, reading.inner_rule, reading.inner_lr, reading.inner_clip, into, table
        )
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
    from ttt_docs.model.state import ChunkResult

    chunk, began = state.reading.chunk, time.perf_counter()
    count = (tokens.shape[1] - 1) // chunk
    first = state.position // chunk
    results = []
    with torch.no_grad():
        ahead = _Prefix(state, tokens)
        steps = _Steps(state)
        for i in range(count):
            targets = tokens[:, i * chunk + 1 : (i + 1) * chunk + 1]
            results.append(steps.take(ahead.hidden(i), targets))
            state.position += chunk
        steps.finish()
        ahead.finish()
        nll, loss, grad_norm, clip, accepted = (torch.stack(column).cpu() for column in zip(*results, strict=True))
    seconds = (time.perf_counter() - began) / max(count, 1)
    for i in range(count):
        yield ChunkResult(first + i, nll[i], loss[i], grad_norm[i], clip[i], ~accepted[i], seconds)


class _Prefix:
    """Hidden states from the prefix blocks, group after group of `AHEAD` chunks, one ahead of what is asked for."""

    def __init__(self, state: ReadingState, tokens: Tensor) -> None:
        self.state, self.tokens, self.chunk = state, tokens, state.reading.chunk
        self.start = state.position // self.chunk  # of the tokens, in chunks
        self.stop = self.start + (tokens.shape[1] - 1) // self.chunk
        self.groups: dict[int, tuple[Tensor, Any]] = {}
        self.stream = torch.cuda.Stream() if tokens.is_cuda else None
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream())
        self._launch(self.start // AHEAD)

    def hidden(self, i: int) -> Tensor:
        """[batch, chunk, dim] of chunk number i of the tokens."""
        index = self.start + i
        group = index // AHEAD
        if group + 1 not in self.groups and (group + 1) * AHEAD < self.stop:
            self._launch(group + 1)
        hidden, done = self.groups[group]
        if done is not None:
            done.wait()
            hidden.record_stream(torch.cuda.current_stream())
        self.groups = {g: v for g, v in self.groups.items() if g >= group}
        slot = index - group * AHEAD
        return hidden[:, slot * self.chunk : (slot + 1) * self.chunk]

    def finish(self) -> None:
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
    """Prefix blocks over whole group number `group`, of which `tokens` begin at chunk `first`; padding included.

    Triton's attention gives a row of queries the same bits whichever rows it is launched with, so all tokens attend in
    one range; other implementations attend chunk by chunk, as on the CPU.
    """
    model, (chunk, window, sinks) = state.model, _sizes(state)
    frame = tokens.new_zeros(tokens.shape[0], AHEAD * chunk)
    slot, count = first - group * AHEAD, tokens.shape[1] // chunk
    offset, start = slot * chunk, group * AHEAD * chunk
    frame[:, offset : offset + count * chunk] = tokens
    place = model.place(start, frame.shape[1], window, sinks, chunk, slice(slot, slot + count))
    if state.kernels.name == "triton":
        real = model.place(start + offset, count * chunk, window, sinks)
        place = Place(place.turn, ((offset, offset + count * chunk),), real.sinks)
    blocks = range(model.config.prefix_blocks)
    return model.run(model.hidden(frame), blocks, place, state.caches, None, state.kernels)


def _sizes(state: ReadingState) -> tuple[int, int, int]:
    return state.reading.chunk, state.reading.window, state.reading.sinks


def _places(state: ReadingState, start: int) -> tuple[Place, Place]:
    from ttt_docs.model.state import GUARD_TOKENS

    model, (chunk, window, sinks) = state.model, _sizes(state)
    count = min(GUARD_TOKENS, chunk)
    return model.place(start, chunk, window, sinks), model.place(start + chunk - count, count, window, sinks)


class _Steps:
    """The suffix steps of one piece, through graphs where they apply."""

    def __init__(self, state: ReadingState) -> None:
        self.state = state
        self.learns = state.reading.learn and bool(state.fast)
        self.graphs = _graphs_for(state) if self.learns and state.products[0].w2.is_cuda else None
        if self.graphs is not None:
            self.graphs.active = False  # a piece that failed half-way may have left it on

    def take(self, hidden: Tensor, targets: Tensor) -> StepResult:
        state = self.state
        if not self.learns:
            return _score_only(state, hidden, targets)
        if self.graphs is not None and (self.graphs.active or self.graphs.enter(state)):
            return self.graphs.take(hidden, targets, _places(state, state.position))
        taken = device_step(
            state.model, state.reading, state.kernels, hidden, targets, _places(state, state.position),
            state.caches, Buffers(state.fast, state.products),
        )  # fmt: skip
        state.set_fast(taken.after.fast, taken.after.products)
        return taken.result

    def finish(self) -> None:
        if self.graphs is not None and self.graphs.active:
            self.graphs.leave(self.state)


def _score_only(state: ReadingState, hidden: Tensor, targets: Tensor) -> StepResult:
    place, _ = _places(state, state.position)
    products = state.products if state.fast else None
    x = state.model.run(hidden, state.model.config.suffix, place, state.caches, products, state.kernels)
    nll = state.model.token_nll(x, targets, state.kernels)
    loss = chunk_loss(nll, targets, state.model.config.bos_token_id)
    zero = torch.zeros_like(loss)
    return StepResult(nll, loss, zero, zero + 1, torch.ones_like(loss, dtype=torch.bool))


#: Graphs of each model, by what they were captured for. They hold weights and caches of their own, so that one capture
#: serves all documents.
_GRAPHS: WeakKeyDictionary[Decoder, dict[tuple[Any, ...], SuffixGraphs]] = WeakKeyDictionary()


def _graphs_for(state: ReadingState) -> SuffixGraphs:
    own = _GRAPHS.setdefault(state.model, {})
    key = (state.reading, state.batch, state.kernels.name)
    if key not in own:
        own[key] = SuffixGraphs(state)
    return own[key]


class SuffixGraphs:
    """One captured graph for each place in a piece, over weights and caches that never move.

    A piece enters with a full window: `enter` copies a state's suffix caches and fast weights in, `leave` copies them
    back. Step number p of a piece reads the weights from buffer p % 2, writes the other, and appends to the caches at a
    place that is the same whenever a piece is at step p.
    """

    def __init__(self, state: ReadingState) -> None:
        self.model, self.reading, self.kernels = state.model, state.reading, state.kernels
        self.active = False
        self.step = 0
        self.warm = False
        self.captured: dict[int, tuple[torch.cuda.CUDAGraph, Taken]] = {}
        self.pool: Any = None
        self.caches: list[LayerCache] = []
        self.weights: list[Buffers] = []
        self.inputs: list[Tensor] = []
        self.places: tuple[Place, Place] | None = None

    def enter(self, state: ReadingState) -> bool:
        """Takes a state over, if its shapes are the ones that stay: window full, sinks at their last distance."""
        reading = self.reading
        if state.position < reading.window + reading.sinks + reading.chunk:
            return False
        if not self.weights:
            self._allocate(state)
        _copy(state.fast, self.weights[0].fast)
        _copy(state.products, self.weights[0].products)
        for i in self.model.config.suffix:
            self.caches[i].hold(state.caches[i])
        self.step, self.active = 0, True
        return True

    def _allocate(self, state: ReadingState) -> None:
        from ttt_docs.kernels.triton.sgd import new_buffers

        self.caches = [LayerCache(self.reading.window, self.reading.sinks) for _ in state.caches]
        for i in self.model.config.suffix:
            self.caches[i].allocate_like(state.caches[i], self.reading.window - 1 + DEVICE_PIECE * self.reading.chunk)
        for _ in range(2):
            fast, products = new_buffers(state.fast, self.model.dtype)
            self.weights.append(Buffers([FastWeights(*w) for w in fast], [ProductWeights(*p) for p in products]))

    def take(self, hidden: Tensor, targets: Tensor, places: tuple[Place, Place]) -> StepResult:
        inputs = [hidden, targets, *places[0].turn, *places[1].turn]
        if self.places is None:
            self.inputs = [x.clone(memory_format=torch.contiguous_format) for x in inputs]
            chunk_place, guard_place = places
            self.places = (
                Place((self.inputs[2], self.inputs[3]), chunk_place.chunks, chunk_place.sinks),
                Place((self.inputs[4], self.inputs[5]), guard_place.chunks, guard_place.sinks),
            )
        for static, value in zip(self.inputs, inputs, strict=True):
            static.copy_(value)
        if not self.warm:  # the first time, kernels are compiled and libraries set up, which a capture cannot do
            result, self.warm = self._run(None).result, True
        else:
            if self.step not in self.captured:
                self._capture()
            graph, taken = self.captured[self.step]
            graph.replay()
            result = taken.result
            for i in self.model.config.suffix:
                self.caches[i].filled = self.reading.window - 1 + (self.step + 1) * self.reading.chunk
        self.step += 1
        return StepResult(*(x.clone() for x in result))

    def _run(self, table: Tensor | None) -> Taken:
        assert self.places is not None
        before, into = self.weights[self.step % 2], self.weights[(self.step + 1) % 2]
        hidden, targets = self.inputs[:2]
        return device_step(
            self.model, self.reading, self.kernels, hidden, targets, self.places, self.caches, before, into, table
        )

    def _capture(self) -> None:
        filled = self.reading.window - 1 + self.step * self.reading.chunk
        table = torch.empty(27 * len(self.weights[0].fast), dtype=torch.int64, device=self.inputs[0].device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            taken = self._run(table)
        self.pool = graph.pool()
        table.copy_(taken.step.addresses)
        for i in self.model.config.suffix:
            self.caches[i].filled = filled
        self.captured[self.step] = graph, taken

    def leave(self, state: ReadingState) -> None:
        now = self.weights[self.step % 2]
        state.set_fast(
            [FastWeights(*(w.clone() for w in block)) for block in now.fast],
            [ProductWeights(*(w.clone() for w in block)) for block in now.products],
        )
        for i in self.model.config.suffix:
            state.caches[i].hold(self.caches[i])
        self.active = False


def _copy(source: Sequence[Sequence[Tensor]], target: Sequence[Sequence[Tensor]]) -> None:
    for ours, theirs in zip(source, target, strict=True):
        for x, into in zip(ours, theirs, strict=True):
            into.copy_(x)
