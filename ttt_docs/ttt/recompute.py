"""Blocks over a whole sequence by activation checkpointing: only each block's input is kept for the backward pass.

What does not depend on an inner update needs no chunks: the prefix blocks, the attention of the first suffix block, and
every block of a model that is trained without inner updates. `torch.utils.checkpoint` would keep a second tensor for
each block or compute its MLP once more, and would sum the gradients of pieces in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ttt_docs.kernels.backends import Kernels
from ttt_docs.kernels.inner_step.layout import PrimeWeights
from ttt_docs.kernels.workspace import wide
from ttt_docs.model.cache import LayerCache
from ttt_docs.model.config import ReadingConfig
from ttt_docs.model.decoder import Decoder

#: Tokens at a time in feed-forward sub-layers, forward and backward: rows do not depend on each other.
PIECE = 2048
#: Where scores are kept, queries attend in ranges of at least this many. All at once, scores would grow as the square.
KEPT = 256


def add_gradients(totals: list[Tensor | None], parts: Sequence[Tensor | None], factor: float = 1.0) -> None:
    """Adds `factor` times each part to its total, in place. None counts as zero: a total that is None begins with the
    part, in float32 (float64 for float64). Of a part, as many rows count as the total has."""
    for i, (total, part) in enumerate(zip(totals, parts, strict=True)):
        if part is None:
            continue
        if total is None:
            totals[i] = part.to(wide(part.dtype)) * factor
        else:
            total.add_(part[: len(total)], alpha=factor)


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
    config = model.config

    def run(index: int, x: Tensor) -> Tensor:
        primes = list(weights[index - config.prefix_blocks]) if weights is not None and index in config.suffix else []
        named = model.block(index).named_parameters()
        slow = [p for name, p in named if p.requires_grad and not name.startswith("prime_mlp.")]

        def attend(x: Tensor) -> Tensor:
            cache = LayerCache(reading.window, reading.sinks, differentiable=True)
            return model.attend(x, index, positions, cache, kernels)

        def feed_forward(x: Tensor, own: Sequence[Tensor]) -> Tensor:
            fast = [PrimeWeights(*own[:2])] * config.suffix_blocks if primes else None
            return model.feed_forward(x, index, fast, kernels)

        return _Checkpointed.apply(attend, feed_forward if index in blocks else None, x, *primes, *slow)

    for i in range(blocks.start, blocks.stop + attend_next):
        x = run(i, x)
    return x


class _Checkpointed(torch.autograd.Function):
    """The layer's gradient from its input alone: attention again, then the rest, forward and backward by pieces."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, attend: Callable[..., Tensor], rest: Callable[..., Tensor] | None, x: Tensor, *weights: Tensor
    ) -> Tensor:
        ctx.attend, ctx.rest = attend, rest
        ctx.save_for_backward(x, *weights)
        attended = attend(x)
        if rest is None:
            return attended
        return torch.cat([rest(piece, weights) for piece in attended.split(PIECE, dim=1)], dim=1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, *weights = ctx.saved_tensors
        leaf, of_x = x.detach().requires_grad_(ctx.needs_input_grad[2]), None
        totals: list[Tensor | None] = [None] * len(weights)
        with torch.enable_grad():
            attended = ctx.attend(leaf)
            if ctx.rest is not None:
                of_pieces = []
                for piece, asked in zip(attended.detach().split(PIECE, 1), grad.split(PIECE, 1), strict=True):
                    piece.requires_grad_()
                    *of_weights, of_piece = gradients([ctx.rest(piece, weights)], [*weights, piece], [asked])
                    add_gradients(totals, of_weights)
                    of_pieces.append(of_piece)
                grad = torch.cat(of_pieces, dim=1)
            if attended.requires_grad:
                *of_weights, of_x = gradients([attended], [*weights, leaf], [grad])
                add_gradients(totals, of_weights)
        sums = (None if total is None else total.to(w.dtype) for total, w in zip(totals, weights, strict=True))
        return None, None, of_x, *sums
