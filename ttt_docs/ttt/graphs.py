"""The suffix step of reading as CUDA graphs: captured when a place is come to again, replayed from then on.

A graph works on memory that never moves: inputs, caches, and two sets of weights that steps read and write in turn. A
place is how far the caches are filled, and whether by a document that has not filled its window yet: all shapes, and
where sinks are seen from, follow from it. In the first piece of a document every chunk is a place of its own; later
pieces begin with a full window and share theirs. Chunks where sinks come into sight of a document that was gone on with
have no place, and run as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ttt_docs.model.cache import LayerCache
from ttt_docs.model.decoder import Decoder, FastWeights, Place, ProductWeights
from ttt_docs.ttt.device import Buffers, StepResult, Taken, device_step

if TYPE_CHECKING:
    from ttt_docs.ttt.state import ReadingState

#: Each model's graphs. They must not hold the model, or neither would ever be freed.
_GRAPHS: WeakKeyDictionary[Decoder, SuffixGraphs] = WeakKeyDictionary()


def graphs_for(state: ReadingState) -> SuffixGraphs:
    """The graphs of the state's model. Reading in another way, with more documents or with parameters that have moved
    makes new ones; the ones of before are given up, so that a model never holds two sets of buffers."""
    parameters = tuple(parameter.data_ptr() for parameter in state.model.parameters())
    made_for = (state.reading, state.batch, state.piece, state.kernels.name, parameters)
    graphs = _GRAPHS.get(state.model)
    if graphs is None or graphs.made_for != made_for:
        graphs = _GRAPHS[state.model] = SuffixGraphs(made_for)
    return graphs


class _Captured(NamedTuple):
    graph: torch.cuda.CUDAGraph
    taken: Taken  # what the graph writes
    places: tuple[Place, Place]  # what it reads of the sinks


class SuffixGraphs:
    """`enter` copies a state's suffix caches and fast weights in, `leave` copies them back."""

    def __init__(self, made_for: tuple[Any, ...]) -> None:
        self.made_for = made_for
        self.filling = False
        self.seen: set[tuple[bool, int, int]] = set()
        self.captured: dict[tuple[bool, int, int], _Captured] = {}
        self.pool: Any = None
        self.caches: list[LayerCache] = []
        self.weights: list[Buffers] = []
        self.inputs: list[Tensor] = []
        self.rates: Tensor | None = None

    def enter(self, state: ReadingState) -> bool:
        """Takes a state over, if its sinks are all there and either out of sight or at their last distance."""
        reading, position = state.reading, state.position
        self.filling = position < reading.window
        if not (reading.sinks <= position and (self.filling or position >= reading.window + reading.sinks)):
            return False
        if not self.weights:
            self._allocate(state)
        now = self.weights[_parity(state)]
        _copy(state.fast, now.fast)
        _copy(state.products, now.products)
        for i in state.model.config.suffix:
            self.caches[i].hold(state.caches[i])
        return True

    def _allocate(self, state: ReadingState) -> None:
        from ttt_docs.kernels.inner_step.triton import new_buffers

        config, reading = state.model.config, state.reading
        self.rates = state.matrix_rates
        capacity = reading.window - 1 + state.piece * reading.chunk
        self.caches = [LayerCache(reading.window, reading.sinks) for _ in state.caches]
        for i in config.suffix:
            shape = (state.batch, config.kv_heads, capacity, config.head_dim)
            self.caches[i].allocate(shape, state.model.embed.weight)
        for _ in range(2):
            fast, products = new_buffers(state.fast, state.model.dtype)
            self.weights.append(Buffers([FastWeights(*w) for w in fast], [ProductWeights(*p) for p in products]))

    def take(self, state: ReadingState, hidden: Tensor, targets: Tensor, places: tuple[Place, Place]) -> StepResult:
        """One chunk. The first time at a place it runs as it is: kernels get compiled and libraries set up, which a
        capture cannot do."""
        inputs = [hidden, targets, *places[0].turn]
        if not self.inputs:
            self.inputs = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs]
        for static, value in zip(self.inputs, inputs, strict=True):
            static.copy_(value)
        filled = self.caches[state.model.config.suffix[0]].filled
        place = self.filling, filled, _parity(state)
        if place not in self.seen:
            self.seen.add(place)
            result = self._run(state, self._with_inputs(places), None).result
        else:
            if place not in self.captured:
                self.captured[place] = self._capture(state, self._with_inputs(places), filled)
            captured = self.captured[place]
            captured.graph.replay()
            result = captured.taken.result
            self._fill(state, filled + state.reading.chunk)
        return StepResult(*(x.clone() for x in result))

    def _with_inputs(self, places: tuple[Place, Place]) -> tuple[Place, Place]:
        """The same places, with angles from where they never move."""
        chunk, guard = places
        cos, sin = self.inputs[2:]
        count = guard.turn[0].shape[0]
        return (
            Place((cos, sin), chunk.chunks, chunk.sinks),
            Place((cos[-count:], sin[-count:]), guard.chunks, guard.sinks),
        )

    def _run(self, state: ReadingState, places: tuple[Place, Place], table: Tensor | None) -> Taken:
        before, into = self.weights[_parity(state)], self.weights[1 - _parity(state)]
        hidden, targets = self.inputs[:2]
        return device_step(
            state.model, state.reading, state.kernels, hidden, targets, places, self.caches, before, self.rates, into,
            table,
        )  # fmt: skip

    def _capture(self, state: ReadingState, places: tuple[Place, Place], filled: int) -> _Captured:
        from ttt_docs.kernels.inner_step.triton import TABLE

        table = torch.empty(TABLE * len(self.weights[0].fast), dtype=torch.int64, device=self.inputs[0].device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            taken = self._run(state, places, table)
        self.pool = graph.pool()
        table.copy_(taken.step.addresses)
        self._fill(state, filled)  # nothing has run yet
        return _Captured(graph, taken, places)

    def _fill(self, state: ReadingState, end: int) -> None:
        for i in state.model.config.suffix:
            self.caches[i].filled = end

    def leave(self, state: ReadingState) -> None:
        now = self.weights[_parity(state)]
        state.set_fast(
            [FastWeights(*(w.clone() for w in block)) for block in now.fast],
            [ProductWeights(*(w.clone() for w in block)) for block in now.products],
        )
        for i in state.model.config.suffix:
            state.caches[i].hold(self.caches[i])


def _parity(state: ReadingState) -> int:
    """Which of the two sets holds the weights before the chunk that comes next."""
    return state.position // state.reading.chunk % 2


def _copy(source: Sequence[Sequence[Tensor]], target: Sequence[Sequence[Tensor]]) -> None:
    for ours, theirs in zip(source, target, strict=True):
        for x, into in zip(ours, theirs, strict=True):
            into.copy_(x)
