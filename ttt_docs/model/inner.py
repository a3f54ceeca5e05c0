"""The inner loop: score a chunk, then learn from it (METHOD section 3).

A chunk is predicted with the fast weights of before; the gradient of its mean loss with respect to the fast weights
makes one step. Nothing below the first prime MLP is touched, so hidden states come in from the prefix blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ttt_docs.kernels.dispatch import REFERENCE, Kernels
from ttt_docs.model.cache import LayerCache
from ttt_docs.model.config import ReadingConfig
from ttt_docs.model.decoder import Decoder, FastWeights, Place, ProductWeights


class Step(NamedTuple):
    """One update. Everything is per document: [batch]."""

    fast: list[FastWeights]
    grad_norm: Tensor  # global norm of the gradient before clipping
    clip: Tensor  # factor applied to it (1 where it did not bind, or the rule has none)


def chunk_loss(nll: Tensor, targets: Tensor, bos: int | None) -> Tensor:
    """Mean loss per document [batch] of nll [batch, tokens]; targets that are BOS do not count."""
    if bos is None:
        return nll.mean(dim=1)
    return nll.sum(dim=1) / (targets != bos).sum(dim=1).clamp_min(1)


def inner_step(fast: Sequence[FastWeights], grads: Sequence[FastWeights], reading: ReadingConfig) -> Step:
    """W <- W - lr * g, with g clipped by its global norm (`sgd`, the paper's) or normalized matrix by matrix.

    Differentiable: the outer loop goes through it, clip factor included.
    """

    norms = [[torch.linalg.vector_norm(g, dim=(1, 2)) for g in block] for block in grads]
    norm = torch.linalg.vector_norm(torch.stack([n for block in norms for n in block]), dim=0)
    clip = torch.ones_like(norm)
    if reading.inner_rule == "sgd" and reading.inner_clip > 0:
        clip = (reading.inner_clip / norm.clamp_min(1e-30)).clamp_max(1.0)

    def step(w: Tensor, g: Tensor, own_norm: Tensor) -> Tensor:
        scale = clip if reading.inner_rule == "sgd" else 1 / own_norm.clamp_min(1e-30) * (own_norm > 0)
        return torch.addcmul(w, g, (scale * -reading.inner_lr)[:, None, None])

    updated = [
        FastWeights(*(step(w, g, n) for w, g, n in zip(ws, gs, ns, strict=True)))
        for ws, gs, ns in zip(fast, grads, norms, strict=True)
    ]
    return Step(updated, norm, clip)


def score_and_product_grads(
    model: Decoder,
    hidden: Tensor,
    targets: Tensor,
    place: Place,
    caches: Sequence[LayerCache],
    weights: Sequence[ProductWeights],
    kernels: Kernels = REFERENCE,
) -> tuple[Tensor, list[ProductWeights]]:
    """Loss of each token of a chunk [batch, chunk] (nats) and the gradients of its mean for the fast weights.

    hidden [batch, chunk, dim] comes from the prefix blocks; the caches of the suffix blocks grow by the chunk.
    """
    leaves = [ProductWeights(*(w.detach().requires_grad_() for w in block)) for block in weights]
    with torch.enable_grad():
        x = model.run(hidden, model.config.suffix, place, caches, leaves, kernels)
        nll = model.token_nll(x, targets, kernels)
        # Documents are independent: the gradient of the sum over the batch is each one's own gradient.
        loss = chunk_loss(nll, targets, model.config.bos_token_id).sum()
        flat = torch.autograd.grad(loss, [w for block in leaves for w in block])
    return nll.detach(), [ProductWeights(*pair) for pair in zip(flat[0::2], flat[1::2], strict=True)]


def score_and_grads(
    model: Decoder,
    hidden: Tensor,
    targets: Tensor,
    place: Place,
    caches: Sequence[LayerCache],
    weights: Sequence[ProductWeights],
    kernels: Kernels = REFERENCE,
) -> tuple[Tensor, list[FastWeights]]:
    """As `score_and_product_grads`, with the gradients in float32, matrix by matrix."""
    nll, pairs = score_and_product_grads(model, hidden, targets, place, caches, weights, kernels)
    half = weights[0].w13.shape[1] // 2
    grads = []
    for pair in pairs:
        w13, w2 = (g if g.dtype == torch.float64 else g.float() for g in pair)
        grads.append(FastWeights(w13[:, :half], w2, w13[:, half:]))
    return nll, grads
