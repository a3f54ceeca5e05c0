"""Reading in progress: fast weights, caches and position of one or several documents read in step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from ttt_docs.kernels.backends import Kernels
from ttt_docs.kernels.dispatch import kernels_for
from ttt_docs.model.cache import LayerCache
from ttt_docs.model.config import ReadingConfig
from ttt_docs.model.decoder import Decoder, FastWeights, Place, ProductWeights, product_weights
from ttt_docs.ttt.device import DEVICE_PIECE, read_on_device
from ttt_docs.ttt.inner_loop import chunk_loss, product_step, score_and_product_grads

#: Chunks the prefix blocks run ahead in one call. Their products always have this many chunks of rows (padded where
#: fewer are at hand): a product's last bits depend on its shape, and reading on must not depend on where it stopped.
PIECE = 2
#: Tokens at a chunk's end that the guard predicts again after the update.
GUARD_TOKENS = 16


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
    """Reads token ids chunk by chunk (METHOD section 3). Not a value: `read` and `run` move it on; `copy` to branch."""

    def __init__(
        self,
        model: Decoder,
        reading: ReadingConfig,
        batch: int = 1,
        kernels: Kernels | None = None,
        piece: int | None = None,
    ) -> None:
        self.model, self.reading = model, reading
        self.kernels = kernels or kernels_for(model.embed.weight.device)
        self.on_device = self.kernels.inner_step is not None
        self.piece = piece or (DEVICE_PIECE if self.on_device else PIECE)
        self.position = 0
        self.fast = [FastWeights(*(w.detach() for w in block)) for block in model.initial_fast_weights(batch)]
        self.caches: list[LayerCache] = model.new_caches(reading.window, reading.sinks)
        #: Hidden states after the prefix blocks by the position they begin at. Readings of the same tokens by models
        #: with the same prefix may share one such dict: the first fills it, the others run no prefix. Not on a device.
        self.prefix_states: dict[int, Tensor] | None = None
        self._products: list[ProductWeights] | None = None
        device, factors = model.embed.weight.device, reading.inner_lr_factors
        #: Learned rates [suffix blocks, 1 or 3]; None: 1 for all.
        self.rates = torch.tensor(factors, device=device).view(len(self.fast), -1) if factors and self.fast else None

    @property
    def batch(self) -> int:
        return self.fast[0].w1.shape[0] if self.fast else 1

    @property
    def products(self) -> list[ProductWeights]:
        """The fast weights in the products' dtype."""
        if self._products is None:
            with torch.no_grad():
                self._products = [product_weights(block, self.model.dtype) for block in self.fast]
        return self._products

    def set_fast(self, fast: list[FastWeights], products: list[ProductWeights] | None = None) -> None:
        self.fast, self._products = fast, products

    @property
    def matrix_rates(self) -> Tensor | None:
        """`rates` for every matrix, [3 * suffix blocks]."""
        return None if self.rates is None else self.rates.expand(-1, 3).reshape(-1)

    @property
    def slots_left(self) -> int:
        """Whole chunks until the end of the current piece."""
        return self.piece - self.position // self.reading.chunk % self.piece

    def read(self, tokens: Tensor) -> Iterator[ChunkResult]:
        """Reads n whole chunks, n <= `slots_left`: tokens [batch, n * chunk + 1], the last one only as a target."""
        if self.on_device:
            yield from read_on_device(self, tokens)
            return
        chunk = self.reading.chunk
        count = (tokens.shape[1] - 1) // chunk
        slot = self.position // chunk % self.piece
        began = time.perf_counter()
        ahead = self._prefix(tokens[:, :-1], slot, count)
        for i in range(count):
            here = slice((slot + i) * chunk, (slot + i + 1) * chunk)
            targets = tokens[:, i * chunk + 1 : (i + 1) * chunk + 1]
            place = self._place(self.position, chunk)
            result = self._suffix(ahead[:, here], targets, place, began)
            self.position += chunk
            began = time.perf_counter()
            yield result

    def _place(self, start: int, tokens: int, chunk: int | None = None, slots: slice | None = None) -> Place:
        return self.model.place(start, tokens, self.reading.window, self.reading.sinks, chunk, slots)

    @torch.no_grad()
    def _prefix(self, tokens: Tensor, slot: int, count: int) -> Tensor:
        """Prefix blocks over the whole piece: hidden states [batch, piece * chunk, dim], padding included."""
        if self.prefix_states is not None and self.position in self.prefix_states:
            return self.prefix_states[self.position]
        chunk = self.reading.chunk
        frame = tokens.new_zeros(tokens.shape[0], self.piece * chunk)
        frame[:, slot * chunk : (slot + count) * chunk] = tokens
        place = self._place(self.position - slot * chunk, frame.shape[1], chunk, slice(slot, slot + count))
        blocks = range(self.model.config.prefix_blocks)
        ahead = self.model.run(self.model.hidden(frame), blocks, place, self.caches, None, self.kernels)
        if self.prefix_states is not None:
            self.prefix_states[self.position] = ahead
        return ahead

    def _suffix(self, hidden: Tensor, targets: Tensor, place: Place, began: float) -> ChunkResult:
        bos = self.model.config.bos_token_id
        index = self.position // self.reading.chunk
        skipped = torch.zeros(self.batch, dtype=torch.bool)
        if not (self.reading.learn and self.fast):
            with torch.no_grad():
                x = self.model.run(hidden, self.model.config.suffix, place, self.caches, self.products, self.kernels)
                nll = self.model.token_nll(x, targets, self.kernels)
            zero = torch.zeros(nll.shape[0])
            loss = chunk_loss(nll, targets, bos)
            return ChunkResult(index, nll, loss, zero, zero + 1, skipped, time.perf_counter() - began)
        nll, grads = score_and_product_grads(
            self.model, hidden, targets, place, self.caches, self.products, self.kernels
        )
        with torch.no_grad():
            before = self.fast
            step, products = product_step(before, grads, self.reading, self.rates, self.kernels)
            accepted = step.grad_norm.isfinite()
            self.set_fast(step.fast, products)
            if self.reading.guard is not None and bool(accepted.all()):
                accepted = accepted & self._improved(hidden, targets, nll)
            if not bool(accepted.all()):
                keep = accepted[:, None, None]
                self.set_fast(
                    [
                        FastWeights(*(torch.where(keep, new, old) for new, old in zip(n, o, strict=True)))
                        for n, o in zip(step.fast, before, strict=True)
                    ]
                )
        loss = chunk_loss(nll, targets, bos)
        return ChunkResult(index, nll, loss, step.grad_norm, step.clip, ~accepted, time.perf_counter() - began)

    def _improved(self, hidden: Tensor, targets: Tensor, nll: Tensor) -> Tensor:
        """False [batch] where the chunk's last tokens, predicted again after the update, lost more than the guard."""
        chunk = self.reading.chunk
        count = min(GUARD_TOKENS, chunk)
        assert self.reading.guard is not None
        with ExitStack() as stack:
            suffix = self.model.config.suffix
            for i in suffix:
                stack.enter_context(self.caches[i].rewound(count))
            place = self._place(self.position + chunk - count, count)
            x = self.model.run(
                hidden[:, -count:], suffix, place, self.caches, self.products, self.kernels, commit=False
            )
            again = self.model.token_nll(x, targets[:, -count:], self.kernels)
        jump = (again - nll[:, -count:]).mean(dim=1)
        return jump <= self.reading.guard  # False for NaN too

    @torch.no_grad()
    def run(self, tokens: Tensor, commit: bool = True) -> Tensor:
        """Forward only, tokens [batch, n] -> hidden states before the final norm [batch, n, dim]."""
        place = self._place(self.position, tokens.shape[1])
        blocks = range(self.model.config.blocks)
        products = self.products if self.fast else None
        x = self.model.run(self.model.hidden(tokens), blocks, place, self.caches, products, self.kernels, commit)
        if commit:
            self.position += tokens.shape[1]
        return x

    @torch.no_grad()
    def score(self, tokens: Tensor) -> Tensor:
        """Losses [batch, n] of tokens [batch, n + 1] after the first, leaving the state as it was."""
        x = self.run(tokens[:, :-1], commit=False)
        return self.model.token_nll(x, tokens[:, 1:], self.kernels)

    def restore(self, position: int, fast: list[FastWeights], caches: list[tuple[Tensor, Tensor]]) -> None:
        """Goes to where another state was: its position, fast weights and exported caches (`LayerCache.export`)."""
        self.position = position
        self.set_fast(fast)
        for cache, (k, v) in zip(self.caches, caches, strict=True):
            cache.restore(k, v, position)

    def select(self, documents: list[int]) -> ReadingState:
        """A state of only some of the documents read in step."""
        other = self.copy()
        index = torch.tensor(documents)
        other.set_fast([FastWeights(*(w[index] for w in block)) for block in self.fast])
        if self.position:
            for cache, mine in zip(other.caches, self.caches, strict=True):
                k, v = mine.export()
                cache.restore(k[index], v[index], self.position)
        return other

    def copy(self) -> ReadingState:
        """An independent state at the same place (fast weights are shared: updates replace, never modify them)."""
        other = object.__new__(ReadingState)
        other.__dict__.update(self.__dict__)
        other.caches = [cache.copy() for cache in self.caches]
        return other
