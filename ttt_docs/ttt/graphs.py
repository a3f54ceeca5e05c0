"""The suffix step of reading as CUDA graphs: captured the second time a case occurs, replayed from then on.

A graph works on memory that never moves: inputs, caches, and two sets of weights that steps read and write alternately.
A case is how far the caches are filled, and whether by a document that has not filled its window yet. All shapes, and
where sinks are seen from, follow from it. In the first piece of a document every chunk is a case of its own. Later
pieces begin with a full window and share theirs. A chunk in which sinks come into sight, of a document that was gone on
with, is no such case and runs without a graph.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ttt_docs.kernels.inner_step.definition import Step
from ttt_docs.model.cache import LayerCache
from ttt_docs.model.decoder import Decoder
from ttt_docs.model.positions import Positions
from ttt_docs.ttt.inner_loop import ChunkStep, InnerLoop, Weights, learn_chunk

#: Each model's graphs. They must not hold the model, or neither would ever be freed.
_GRAPHS: WeakKeyDictionary[Decoder, SuffixGraphs] = WeakKeyDictionary()
#: A model's graphs, with the buffers they work on, serve one piece at a time.
ONE_PIECE = threading.Lock()


def can_capture(loop: InnerLoop) -> bool:
    return loop.model.embed.weight.is_cuda


def graphs_for(loop: InnerLoop, batch: int, piece: int) -> SuffixGraphs:
    """The graphs of a model. Reading in another way, with more documents or with parameters that have moved makes new
    ones; the ones of before are given up, so that a model never holds two sets of buffers."""
    parameters = tuple(parameter.data_ptr() for parameter in loop.model.parameters())
    made_for = (loop.reading, batch, piece, loop.kernels.name, parameters)
    graphs = _GRAPHS.get(loop.model)
    if graphs is None or graphs.made_for != made_for:
        graphs = _GRAPHS[loop.model] = SuffixGraphs(made_for, loop.reading.window - 1 + piece * loop.reading.chunk)
    return graphs


class _Captured(NamedTuple):
    graph: torch.cuda.CUDAGraph
    measured: ChunkStep  # what the graph writes
    positions: tuple[Positions, Positions]  # what it reads of the sinks


class SuffixGraphs:
    """`enter` copies a state's suffix caches and fast weights in, `leave` copies them back."""

    def __init__(self, made_for: tuple[Any, ...], capacity: int) -> None:
        self.made_for, self.capacity = made_for, capacity
        self.filling = False
        self.seen: set[tuple[bool, int, int]] = set()
        self.captured: dict[tuple[bool, int, int], _Captured] = {}
        self.pool: Any = None
        self.caches: list[LayerCache] = []
        self.weights: list[Weights] = []  # before and after a chunk, alternately
        self.inputs: list[Tensor] = []
        self.rates: Tensor | None = None

    def enter(self, loop: InnerLoop, position: int, caches: Sequence[LayerCache], weights: Weights) -> bool:
        """Takes a state over, if its sinks are all there and either out of sight or at their last distance."""
        reading = loop.reading
        self.filling = position < reading.window
        if not (reading.sinks <= position and (self.filling or position >= reading.window + reading.sinks)):
            return False
        if not self.weights:
            self._allocate(loop, caches, weights)
        for into, own in zip(self.weights[position // reading.chunk % 2], weights, strict=True):
            into.copy_(own)
        for i in loop.model.config.suffix:
            self.caches[i].hold(caches[i])
        return True

    def _allocate(self, loop: InnerLoop, caches: Sequence[LayerCache], weights: Weights) -> None:
        config = loop.model.config
        self.rates = loop.rates
        self.caches = [LayerCache(cache.window, cache.sinks) for cache in caches]
        shape = (len(weights.fast), config.kv_heads, self.capacity, config.head_dim)
        for i in config.suffix:
            self.caches[i].allocate(shape, loop.model.embed.weight)
        self.weights = [Weights(*(torch.empty(w.shape, dtype=w.dtype, device=w.device) for w in weights)) for _ in "ab"]

    @torch.no_grad()
    def take(
        self, loop: InnerLoop, index: int, hidden: Tensor, targets: Tensor, positions: tuple[Positions, Positions]
    ) -> ChunkStep:
        """Chunk `index` of the document. The first time a case runs without a graph: kernels get compiled and
        libraries set up, which a capture cannot do."""
        inputs = [hidden, targets, *positions[0].rotation]
        if not self.inputs:
            self.inputs = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs]
        for static, value in zip(self.inputs, inputs, strict=True):
            static.copy_(value)
        suffix = loop.model.config.suffix
        filled, parity = self.caches[suffix[0]].filled, index % 2
        case = self.filling, filled, parity
        if case not in self.seen:
            self.seen.add(case)
            measured, _ = self._run(loop, parity, self._with_inputs(positions), None)
        else:
            if case not in self.captured:
                self.captured[case] = self._capture(loop, parity, self._with_inputs(positions), filled)
            self.captured[case].graph.replay()
            measured = self.captured[case].measured
            self._fill(loop.model, filled + loop.reading.chunk)
        return ChunkStep(*(x.clone() for x in measured))

    def _with_inputs(self, positions: tuple[Positions, Positions]) -> tuple[Positions, Positions]:
        """The same positions, with angles in memory that never moves."""
        chunk, guard = positions
        cos, sin = self.inputs[2:]
        count = guard.rotation[0].shape[0]
        return (
            Positions((cos, sin), chunk.ranges, chunk.sinks),
            Positions((cos[-count:], sin[-count:]), guard.ranges, guard.sinks),
        )

    def _run(
        self, loop: InnerLoop, parity: int, positions: tuple[Positions, Positions], table: Tensor | None
    ) -> tuple[ChunkStep, Step]:
        before, into = self.weights[parity], self.weights[1 - parity]
        own = InnerLoop(loop.model, loop.reading, loop.kernels, self.rates)
        hidden, targets = self.inputs[:2]
        return learn_chunk(own, hidden, targets, positions, self.caches, before, into, table)

    def _capture(self, loop: InnerLoop, parity: int, positions: tuple[Positions, Positions], filled: int) -> _Captured:
        table = torch.empty(2 * loop.model.config.suffix_blocks, dtype=torch.int64, device=self.inputs[0].device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            measured, step = self._run(loop, parity, positions, table)
        self.pool = graph.pool()
        if step.addresses is not None:
            table.copy_(step.addresses)
        self._fill(loop.model, filled)  # nothing has run yet
        return _Captured(graph, measured, positions)

    def _fill(self, model: Decoder, end: int) -> None:
        for i in model.config.suffix:
            self.caches[i].filled = end

    def leave(self, model: Decoder, index: int, caches: Sequence[LayerCache]) -> Weights:
        """The weights before chunk `index`, the one that would come next; the caches get what is in the buffers."""
        for i in model.config.suffix:
            caches[i].hold(self.caches[i])
        return Weights(*(w.clone() for w in self.weights[index % 2]))
