"""Reading in progress: fast weights, caches and position of one or several documents read in step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from ttt_docs.errors import TTTDocsError
from ttt_docs.kernels.backends import Kernels
from ttt_docs.kernels.dispatch import kernels_for
from ttt_docs.kernels.inner_step.layout import PrimeWeights
from ttt_docs.model.cache import LayerCache
from ttt_docs.model.config import ReadingConfig
from ttt_docs.model.decoder import Decoder
from ttt_docs.model.positions import Positions
from ttt_docs.ttt.graphs import ONE_PIECE, SuffixGraphs, can_capture, graphs_for
from ttt_docs.ttt.inner_loop import GUARD_TOKENS, ChunkStep, InnerLoop, Weights, learn_chunk, score_chunk
from ttt_docs.ttt.prefix import Prefix

#: Chunks the prefix blocks run ahead in one call, on a CPU and on a GPU. Their products always have this many chunks of
#: rows (padded where fewer are at hand): a product's last bits depend on its shape, and reading on must not depend on
#: where it stopped.
PIECE, AHEAD = 2, 4
#: Chunks between two reports of asynchronous kernels. Even, because a graph is kept for each chunk of a piece and
#: weights alternate between two buffers: a chunk finds its weights in the same one in every piece.
DEVICE_PIECE = 16


@dataclass(frozen=True)
class ChunkResult:
    """What reading one chunk measured; tensors are per document."""

    index: int
    nll: Tensor  # float32 [batch, chunk], nats, of the tokens after each of the chunk's
    loss: Tensor  # float32 [batch], their mean
    grad_norm: Tensor  # [batch], before clipping; 0 without learning
    clip: Tensor  # [batch], factor applied to the gradient
    skipped: Tensor  # bool [batch]: the guard refused the update
    seconds: float


class ReadingState:
    """Reads token ids chunk by chunk (docs/method.md section 3). `read` and `run` move it on; `copy` to branch."""

    def __init__(
        self,
        model: Decoder,
        reading: ReadingConfig,
        batch: int = 1,
        kernels: Kernels | None = None,
        piece: int | None = None,
    ) -> None:
        self.model, self.reading, self.batch = model, reading, batch
        self.kernels = kernels or kernels_for(model.embed.weight.device)
        self.piece = piece or (DEVICE_PIECE if self.kernels.asynchronous else PIECE)
        self.position = 0
        self.caches: list[LayerCache] = model.new_caches(reading.window, reading.sinks)
        #: Hidden states after the prefix blocks by the position they begin at. Readings of the same tokens by models
        #: with the same prefix may share one such dict: the first fills it, the others run no prefix.
        self.prefix_states: dict[int, Tensor] | None = None
        self._prefix_end = 0  # the position that the prefix blocks' caches are at
        self._weights: Weights | None = None  # None: the initial ones, until somebody asks for them
        self._lent = True  # whether others may hold the memory of these weights
        self._spare: Weights | None = None  # memory that nobody holds: the next update's weights
        self._has_fast = model.config.suffix_blocks > 0
        rates, device = None, model.embed.weight.device
        if reading.inner_lr_factors and self._has_fast:
            factors = torch.tensor(reading.inner_lr_factors, device=device).view(model.config.suffix_blocks, -1)
            rates = factors.expand(-1, 3).reshape(-1)
        self.loop = InnerLoop(model, reading, self.kernels, rates)

    @property
    def weights(self) -> Weights | None:
        """The fast weights; None for a model that has none, or where they were left out. Updates never modify them."""
        self._lent = True
        return self._current()

    def _current(self) -> Weights | None:
        """`weights`, for this state's own use."""
        if self._weights is None and self._has_fast:
            with torch.no_grad():
                self._weights = Weights.of(self.model.initial_fast_weights(self.batch), self.model.dtype)
        return self._weights

    @property
    def fast(self) -> Tensor | None:
        """[batch, n] as `Decoder.fast_layout` has them, float32; None as for `weights`."""
        return None if self.weights is None else self.weights.fast

    @property
    def views(self) -> list[PrimeWeights] | None:
        """The fast weights of each suffix block, as `Decoder.run` takes them."""
        return None if self.weights is None else self.model.fast_layout.views(self.weights.products)

    def set_fast(self, fast: Tensor | None) -> None:
        """Other fast weights [batch, n]; None leaves the prime MLPs out."""
        self._has_fast = fast is not None
        self._weights, self._lent = None if fast is None else Weights.of(fast, self.model.dtype), True

    @property
    def slots_left(self) -> int:
        """Whole chunks until the end of the current piece."""
        return self.piece - self.position // self.reading.chunk % self.piece

    def read(self, tokens: Tensor) -> Iterator[ChunkResult]:
        """Reads n whole chunks, n <= `slots_left`: tokens [batch, n * chunk + 1], the last one only as a target.

        With asynchronous kernels every chunk is under way before the first result is given out.

        Raises TTTDocsError in a state that an error has left in the middle of a piece.
        """
        first, began = self.position // self.reading.chunk, time.perf_counter()
        if self.kernels.asynchronous:
            steps = list(self._steps(tokens))
            columns = (torch.stack(column).cpu() for column in zip(*steps, strict=True))
            steps = [ChunkStep(*row) for row in zip(*columns, strict=True)]
            seconds = (time.perf_counter() - began) / max(len(steps), 1)
            for i, step in enumerate(steps):
                yield _result(first + i, step, seconds)
            return
        for i, step in enumerate(self._steps(tokens)):
            result = _result(first + i, step, time.perf_counter() - began)
            yield result
            began = time.perf_counter()

    def read_whole(self, tokens: Tensor) -> Iterator[ChunkResult]:
        """Reads all whole chunks of tokens [batch, n + 1] that come after `position`; the first token is the first of
        the document."""
        chunk = self.reading.chunk
        while (left := (tokens.shape[1] - 1 - self.position) // chunk) > 0:
            count = min(left, self.slots_left)
            yield from self.read(tokens[:, self.position : self.position + count * chunk + 1])

    def _steps(self, tokens: Tensor) -> Iterator[ChunkStep]:
        """The one way through a piece. The host waits for nothing that the kernels do not make it wait for."""
        self.check()
        asynchronous, chunk = self.kernels.asynchronous, self.reading.chunk
        first, count = self.position // chunk, (tokens.shape[1] - 1) // chunk
        weights = self._current() if self.reading.learn else None
        self._prefix_end = self.position + count * chunk
        with ExitStack() as stack:
            graphs = None
            if asynchronous:
                stack.enter_context(torch.cuda.device_of(tokens))
                stack.enter_context(ONE_PIECE)
            size = AHEAD if asynchronous else self.piece
            ahead = Prefix(self.loop, self.caches, tokens[:, :-1], first, size, self.prefix_states)
            stack.callback(ahead.finish)  # whatever happens: its memory is for others only after its stream is done
            if weights is not None and asynchronous and can_capture(self.loop):
                graphs = graphs_for(self.loop, self.batch, self.piece)
            entered = False
            for i, positions in enumerate(self._chunk_positions(count)):
                hidden, targets = ahead.hidden(first + i), tokens[:, i * chunk + 1 : (i + 1) * chunk + 1]
                if weights is None:
                    step = score_chunk(self.loop, hidden, targets, positions[0], self.caches, self.views)
                elif graphs is not None and (entered or graphs.enter(self.loop, self.position, self.caches, weights)):
                    if not entered:
                        entered = True
                        stack.callback(self._leave, graphs)
                    step = graphs.take(self.loop, first + i, hidden, targets, positions)
                else:
                    step, made = learn_chunk(self.loop, hidden, targets, positions, self.caches, weights, self._spare)
                    self._spare = weights if self.kernels.steps_into_memory and not self._lent else None
                    weights = self._weights = Weights(made.fast, made.products)
                    self._lent = False
                self.position += chunk
                yield step

    def _leave(self, graphs: SuffixGraphs) -> None:
        """Takes the weights and caches after the chunks read so far out of the graphs' buffers."""
        self._weights = graphs.leave(self.model, self.position // self.reading.chunk, self.caches)

    def _chunk_positions(self, count: int) -> list[tuple[Positions, Positions]]:
        """The positions of each of the next `count` chunks, and of its last tokens, which the guard predicts again."""
        chunk = self.reading.chunk
        piece = self._positions(self.position, count * chunk, chunk)
        ends = [(i + 1) * chunk for i in range(count)]
        return [(piece.within(end - chunk, end), piece.within(end - min(GUARD_TOKENS, chunk), end)) for end in ends]

    def _positions(self, start: int, tokens: int, chunk: int | None = None) -> Positions:
        return self.model.positions(start, tokens, self.reading.window, self.reading.sinks, chunk)

    def check(self) -> None:
        """Raises TTTDocsError where an exception stopped reading in the middle of a piece of chunks."""
        if self._prefix_end != self.position:
            raise TTTDocsError(
                "reading stopped in the middle of a piece of chunks, and this state cannot go on: start again from the "
                "last memory, or from a copy of the state"
            )

    @torch.no_grad()
    def run(self, tokens: Tensor, commit: bool = True) -> Tensor:
        """Forward only, tokens [batch, n] -> hidden states before the final norm [batch, n, dim]."""
        self.check()
        positions = self._positions(self.position, tokens.shape[1])
        blocks = range(self.model.config.blocks)
        x = self.model.run(self.model.hidden(tokens), blocks, positions, self.caches, self.views, self.kernels, commit)
        if commit:
            self.position += tokens.shape[1]
            self._prefix_end = self.position
        return x

    @torch.no_grad()
    def score(self, tokens: Tensor) -> Tensor:
        """Losses [batch, n] of tokens [batch, n + 1] after the first, leaving the state as it was."""
        x = self.run(tokens[:, :-1], commit=False)
        return self.model.token_nll(x, tokens[:, 1:], self.kernels)

    def restore(self, position: int, fast: Tensor | None, caches: list[tuple[Tensor, Tensor]]) -> None:
        """Goes to where another state was: its position, fast weights (None: as they are) and exported caches
        (`LayerCache.export`)."""
        self.position = self._prefix_end = position
        if fast is not None:
            self.set_fast(fast)
        for cache, (k, v) in zip(self.caches, caches, strict=True):
            cache.restore(k, v, position)

    def select(self, documents: list[int]) -> ReadingState:
        """A state of only some of the documents read in step."""
        other = self.copy()
        index = torch.tensor(documents, device=self.model.embed.weight.device)
        other.batch = len(documents)
        other._weights = None if self.weights is None else Weights(*(w[index] for w in self.weights))
        if self.position:
            for cache, mine in zip(other.caches, self.caches, strict=True):
                k, v = mine.export()
                cache.restore(k[index], v[index], self.position)
        return other

    def copy(self) -> ReadingState:
        """An independent state at the same position. Fast weights are shared until either state updates its own."""
        self._lent = True
        other = object.__new__(ReadingState)
        other.__dict__.update(self.__dict__)
        other._spare = None
        other.caches = [cache.copy() for cache in self.caches]
        return other


def _result(index: int, step: ChunkStep, seconds: float) -> ChunkResult:
    return ChunkResult(index, step.nll, step.loss, step.grad_norm, step.clip, ~step.accepted, seconds)
