"""Blocks over a whole sequence, keeping nothing but each block's input for the backward pass.

What does not depend on an inner update needs no chunks: the prefix blocks, the attention of the first suffix block, and
every block of a model that is trained without inner updates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ttt_docs.kernels.backends import Kernels
from ttt_docs.kernels.inner_step.layout import PrimeWeights
from ttt_docs.model.cache import LayerCache
from ttt_docs.model.config import ReadingConfig
from ttt_docs.model.decoder import Decoder, Place
from ttt_docs.ttt.sums import Sums

#: Tokens whose feed-forward sub-layers run, and are differentiated, at a time: rows do not depend on each other.
PIECE = 2048
#: Queries that attend together, at least, where scores are kept: not all, or they would grow as the square.
KEPT = 256


@dataclass(frozen=True)
class _Layer:
    """One block, or its attention alone, over the whole sequence."""

    model: Decoder
    index: int
    place: Place
    reading: ReadingConfig
    kernels: Kernels
    feed_forward: bool

    @property
    def parameters(self) -> list[Tensor]:
        """What is trained of it, the prime MLP (which comes as product weights) left out."""
        block = self.model.block(self.index)
        return [p for name, p in block.named_parameters() if p.requires_grad and not name.startswith("prime_mlp.")]

    def attend(self, x: Tensor) -> Tensor:
        cache = LayerCache(self.reading.window, self.reading.sinks, differentiable=True)
        return self.model.attend(x, self.index, self.place, cache, self.kernels)

    def rest(self, x: Tensor, fast: Sequence[Tensor]) -> Tensor:
        own = [PrimeWeights(*fast)] * self.model.config.suffix_blocks if fast else None
        return self.model.feed_forward(x, self.index, own, self.kernels)


class _Checkpointed(torch.autograd.Function):
    """The layer's gradient from its input alone: attention again, then the rest, forward and backward by pieces."""

    @staticmethod
    def forward(ctx: Any, layer: _Layer, x: Tensor, fast: int, *weights: Tensor) -> Tensor:  # type: ignore[override]
        ctx.layer, ctx.fast = layer, fast
        ctx.save_for_backward(x, *weights)
        attended = layer.attend(x)
        if not layer.feed_forward:
            return attended
        return torch.cat([layer.rest(piece, weights[:fast]) for piece in attended.split(PIECE, dim=1)], dim=1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        layer: _Layer = ctx.layer
        x, *weights = ctx.saved_tensors
        sums = Sums(weights)
        leaf = x.detach().requires_grad_(ctx.needs_input_grad[1])
        fast = [w.detach().requires_grad_(w.requires_grad) for w in weights[: ctx.fast]]
        leaves = [*fast, *weights[ctx.fast :]]
        with torch.enable_grad():
            attended = layer.attend(leaf)
            if layer.feed_forward:
                grads = []
                for piece, part in zip(attended.detach().split(PIECE, 1), grad.split(PIECE, 1), strict=True):
                    piece.requires_grad_()
                    out = layer.rest(piece, fast)
                    grads.append(_add_grads(out, part, piece, leaves, sums))
                grad = torch.cat(grads, dim=1)
            of_x = _add_grads(attended, grad, leaf, leaves, sums) if attended.requires_grad else None
        return None, of_x, None, *sums.result()


def _add_grads(out: Tensor, grad: Tensor, x: Tensor, weights: Sequence[Tensor], sums: Sums) -> Any:
    """The gradient for x, if it asks for one; those of the weights go into the sums."""
    wanted = [i for i, w in enumerate(weights) if w.requires_grad]
    inputs = [weights[i] for i in wanted] + ([x] if x.requires_grad else [])
    grads = torch.autograd.grad(out, inputs, grad, allow_unused=True)
    parts: list[Tensor | None] = [None] * len(weights)
    for i, part in zip(wanted, grads, strict=False):
        parts[i] = part
    sums.add(parts)
    return grads[-1] if x.requires_grad else None


def run_sequence(
    model: Decoder,
    x: Tensor,
    blocks: range,
    reading: ReadingConfig,
    kernels: Kernels,
    fast: Sequence[PrimeWeights] | None = None,
    attend_next: bool = False,
    keep: bool = False,
) -> Tensor:
    """Runs x [batch, tokens, dim], which begins a document, through `blocks`, and with `attend_next` through the
    attention of the block after them. `fast` holds the prime MLPs' weights, one entry per suffix block; None leaves
    them out. `keep` keeps everything for plain autograd."""
    scores_are_kept = keep and kernels.name == "reference"
    chunk = max(KEPT, reading.chunk) if scores_are_kept else None
    place = model.place(0, x.shape[1], reading.window, reading.sinks, chunk)
    if keep:
        caches = model.new_caches(reading.window, reading.sinks, differentiable=True)
        x = model.run(x, blocks, place, caches, fast, kernels)
        return model.attend(x, blocks.stop, place, caches[blocks.stop], kernels) if attend_next else x
    for i in [*blocks, blocks.stop] if attend_next else blocks:
        layer = _Layer(model, i, place, reading, kernels, feed_forward=i in blocks)
        own = fast[i - model.config.prefix_blocks] if fast is not None and i in model.config.suffix else ()
        x = _Checkpointed.apply(layer, x, len(own), *own, *layer.parameters)
    return x
