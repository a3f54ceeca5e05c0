"""Blocks over a whole sequence by activation checkpointing: only each block's input is kept for the backward pass.

What does not depend on an inner update needs no chunks: the prefix blocks, the attention of the first suffix block, and
every block of a model that is trained without inner updates. `torch.utils.checkpoint` would keep a second tensor for
each block or compute its MLP once more, and would sum the gradients of pieces in bfloat16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ttt_docs.kernels.backends import Kernels
from ttt_docs.kernels.inner_step.layout import PrimeWeights
from ttt_docs.kernels.workspace import wide
from ttt_docs.model.cache import LayerCache
from ttt_docs.model.config import ReadingConfig
from ttt_docs.model.decoder import Decoder
from ttt_docs.model.positions import Positions

#: Tokens whose feed-forward sub-layers run, and are differentiated, at a time: rows do not depend on each other.
PIECE = 2048
#: Queries that attend together, at least, where scores are kept: not all, or they would grow as the square.
KEPT = 256


class GradientSums:
    """Sums of gradients that come in parts: one for each of `tensors`, in float32 (float64 for float64)."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.dtypes = [tensor.dtype for tensor in tensors]
        self.totals: list[Tensor | None] = [None] * len(tensors)

    def add(self, parts: Sequence[Tensor | None], factor: float = 1.0) -> None:
        """Adds `factor` times each part; None adds nothing."""
        for i, part in enumerate(parts):
            total = self.totals[i]
            if part is None:
                continue
            if total is None:
                self.totals[i] = part.to(wide(part.dtype), copy=True).mul_(factor)
            else:
                total.add_(part, alpha=factor)

    def result(self, factor: Tensor | None = None) -> list[Tensor | None]:
        """The sums, times `factor`, in the dtypes of the tensors; None where nothing was added."""
        return [
            None if total is None else (total if factor is None else total * factor).to(dtype)
            for total, dtype in zip(self.totals, self.dtypes, strict=True)
        ]


def gradients(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor] | None = None
) -> list[Any]:
    """`torch.autograd.grad`, with None for inputs that ask for no gradient or do not matter."""
    found = iter(torch.autograd.grad(outputs, [i for i in inputs if i.requires_grad], cotangents, allow_unused=True))
    return [next(found) if i.requires_grad else None for i in inputs]


def prime_weights(model: Decoder) -> list[PrimeWeights]:
    """The prime MLPs as they are, one set for all sequences: w13 [2 * hidden, dim], w2 [dim, hidden]."""
    primes = [model.block(i).prime_mlp for i in model.config.suffix]
    return [PrimeWeights(torch.cat([p.w1, p.w3]).to(model.dtype), p.w2.to(model.dtype)) for p in primes]


def run_sequence(
    model: Decoder,
    x: Tensor,
    blocks: range,
    reading: ReadingConfig,
    kernels: Kernels,
    weights: Sequence[PrimeWeights] | None = None,
    attend_next: bool = False,
    keep: bool = False,
) -> Tensor:
    """Runs x [batch, tokens, dim], which begins a document, through `blocks`, and with `attend_next` through the
    attention of the block after them. `weights` are those of the prime MLPs, as `prime_weights`; None leaves them out.
    `keep` keeps everything for plain autograd."""
    chunk = max(KEPT, reading.chunk) if keep and kernels.name == "reference" else None
    positions = model.positions(0, x.shape[1], reading.window, reading.sinks, chunk)
    if keep:
        caches = model.new_caches(reading.window, reading.sinks, differentiable=True)
        x = model.run(x, blocks, positions, caches, weights, kernels)
        return model.attend(x, blocks.stop, positions, caches[blocks.stop], kernels) if attend_next else x
    for i in [*blocks, blocks.stop] if attend_next else blocks:
        layer = _Layer(model, i, positions, reading, kernels, feed_forward=i in blocks)
        own = weights[i - model.config.prefix_blocks] if weights is not None and i in model.config.suffix else ()
        x = _Checkpointed.apply(layer, x, len(own), *own, *layer.parameters)
    return x


@dataclass(frozen=True)
class _Layer:
    """One block, or its attention alone, over the whole sequence."""

    model: Decoder
    index: int
    positions: Positions
    reading: ReadingConfig
    kernels: Kernels
    feed_forward: bool

    @property
    def parameters(self) -> list[Tensor]:
        """What is trained of it, the prime MLP (which comes as `PrimeWeights`) left out."""
        block = self.model.block(self.index)
        return [p for name, p in block.named_parameters() if p.requires_grad and not name.startswith("prime_mlp.")]

    def attend(self, x: Tensor) -> Tensor:
        cache = LayerCache(self.reading.window, self.reading.sinks, differentiable=True)
        return self.model.attend(x, self.index, self.positions, cache, self.kernels)

    def rest(self, x: Tensor, prime: Sequence[Tensor]) -> Tensor:
        weights = [PrimeWeights(*prime)] * self.model.config.suffix_blocks if prime else None
        return self.model.feed_forward(x, self.index, weights, self.kernels)


class _Checkpointed(torch.autograd.Function):
    """The layer's gradient from its input alone: attention again, then the rest, forward and backward by pieces."""

    @staticmethod
    def forward(ctx: Any, layer: _Layer, x: Tensor, prime: int, *weights: Tensor) -> Tensor:  # type: ignore[override]
        ctx.layer, ctx.prime = layer, prime
        ctx.save_for_backward(x, *weights)
        attended = layer.attend(x)
        if not layer.feed_forward:
            return attended
        return torch.cat([layer.rest(piece, weights[:prime]) for piece in attended.split(PIECE, dim=1)], dim=1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        layer: _Layer = ctx.layer
        x, *weights = ctx.saved_tensors
        sums = GradientSums(weights)
        leaf = x.detach().requires_grad_(ctx.needs_input_grad[1])
        prime = [w.detach().requires_grad_(w.requires_grad) for w in weights[: ctx.prime]]
        leaves = [*prime, *weights[ctx.prime :]]
        of_x = None
        with torch.enable_grad():
            attended = layer.attend(leaf)
            if layer.feed_forward:
                of_pieces = []
                for piece, asked in zip(attended.detach().split(PIECE, 1), grad.split(PIECE, 1), strict=True):
                    piece.requires_grad_()
                    *of_weights, of_piece = gradients([layer.rest(piece, prime)], [*leaves, piece], [asked])
                    sums.add(of_weights)
                    of_pieces.append(of_piece)
                grad = torch.cat(of_pieces, dim=1)
            if attended.requires_grad:
                *of_weights, of_x = gradients([attended], [*leaves, leaf], [grad])
                sums.add(of_weights)
        return None, of_x, None, *sums.result()
