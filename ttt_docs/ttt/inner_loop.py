"""The inner loop: score a chunk, then learn from it (METHOD section 3).

A chunk is predicted with the fast weights of before; the gradient of its mean loss with respect to the fast weights
makes one step. Nothing below the first prime MLP is touched, so hidden states come in from the prefix blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ttt_docs.kernels.backends import REFERENCE, Kernels
from ttt_docs.kernels.inner_step.definition import Balance, balance_reference
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


def inner_step(
    fast: Sequence[FastWeights], grads: Sequence[FastWeights], reading: ReadingConfig, rates: Tensor | None = None
) -> Step:
    """W <- W - lr * g, with g clipped by its global norm (`sgd`, the paper's) or normalized matrix by matrix
    (`normalized`, and `balanced` after its rows and columns).

    `rates` [suffix blocks] multiplies the learning rate block by block, or [suffix blocks, 3] for w1, w2, w3 of each.
    Differentiable: the outer loop goes through it, clip factor included.
    """
    own = _directions(grads, reading)
    sizes, _, clip = _step_sizes(_norms(own), reading, rates)
    return Step(_moved(fast, own, sizes, -1), _global_norm(_norms(grads)), clip)


def product_step(
    fast: Sequence[FastWeights],
    grads: Sequence[ProductWeights],
    reading: ReadingConfig,
    rates: Tensor | None = None,
    kernels: Kernels = REFERENCE,
) -> tuple[Step, list[ProductWeights]]:
    """`inner_step` with gradients as `score_and_product_grads` has them, and the weights after it as the products take
    them. Not differentiable."""
    own = fast_gradients([g for pair in grads for g in pair])
    norms = [[kernels.gradient_norm(g) for g in block] for block in own]
    norm = _global_norm(norms)
    balances: list[list[Balance | None]] = [[None] * len(block) for block in own]
    if reading.inner_rule == "balanced":
        balances = [[kernels.balance(g) for g in block] for block in own]
        norms = [
            [kernels.gradient_norm(*matrix) for matrix in zip(*block, strict=True)]
            for block in zip(own, balances, strict=True)
        ]
    sizes, _, clip = _step_sizes(norms, reading, rates)
    products = [ProductWeights(*(torch.empty_like(g) for g in pair)) for pair in grads]
    copies = fast_gradients([p for pair in products for p in pair])
    after = [
        FastWeights(*(kernels.weight_step(*matrix) for matrix in zip(*block, strict=True)))
        for block in zip(fast, own, sizes, copies, balances, strict=True)
    ]
    return Step(after, norm, clip), products


def undo_inner_step(
    fast: Sequence[FastWeights], grads: Sequence[FastWeights], reading: ReadingConfig, rates: Tensor | None = None
) -> list[FastWeights]:
    """The fast weights before `inner_step` made `fast` from them and `grads` (but for rounding)."""
    own = _directions(grads, reading)
    return _moved(fast, own, _step_sizes(_norms(own), reading, rates)[0], 1)


def _directions(grads: Sequence[FastWeights], reading: ReadingConfig) -> list[FastWeights]:
    """The gradients, balanced if the rule is."""
    if reading.inner_rule != "balanced":
        return list(grads)
    return [FastWeights(*(balance_reference(g)(g) for g in block)) for block in grads]


def _global_norm(norms: Sequence[Sequence[Tensor]]) -> Tensor:
    return torch.linalg.vector_norm(torch.stack([n for block in norms for n in block]), dim=0)


def _norms(grads: Sequence[FastWeights]) -> list[list[Tensor]]:
    return [[torch.linalg.vector_norm(g, dim=(1, 2)) for g in block] for block in grads]


def _step_sizes(
    norms: list[list[Tensor]], reading: ReadingConfig, rates: Tensor | None
) -> tuple[list[list[Tensor]], Tensor, Tensor]:
    """From the norms of the gradients, [batch] per matrix of each block: what each gradient is multiplied by, likewise;
    the global norm and the clip, [batch]."""
    norm = _global_norm(norms)
    clip = torch.ones_like(norm)
    if reading.inner_rule == "sgd" and reading.inner_clip > 0:
        clip = reading.inner_clip / norm.clamp_min(reading.inner_clip)

    def size(own_norm: Tensor) -> Tensor:
        # A gradient of zero (a matrix behind a w2 of zeros) makes no step, and 1 is a norm that can be differentiated.
        return clip if reading.inner_rule == "sgd" else 1 / torch.where(own_norm > 0, own_norm, 1.0)

    if rates is None:
        rates = norm.new_ones(len(norms))
    each = (reading.inner_lr * rates).reshape(len(norms), -1).expand(-1, len(norms[0]))
    sizes = [[size(n) * r for n, r in zip(ns, rs, strict=True)] for ns, rs in zip(norms, each, strict=True)]
    return sizes, norm, clip


def _moved(
    fast: Sequence[FastWeights], grads: Sequence[FastWeights], sizes: list[list[Tensor]], sign: int
) -> list[FastWeights]:
    return [
        FastWeights(*(torch.addcmul(w, g, (sign * s)[:, None, None]) for w, g, s in zip(ws, gs, ss, strict=True)))
        for ws, gs, ss in zip(fast, grads, sizes, strict=True)
    ]


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


def fast_gradients(flat: Sequence[Tensor]) -> list[FastWeights]:
    """Product weights, or their gradients, w13 and w2 of each block in turn: as fast weights (views)."""
    pairs = zip(flat[0::2], flat[1::2], strict=True)
    return [FastWeights(w13[:, : w13.shape[1] // 2], w2, w13[:, w13.shape[1] // 2 :]) for w13, w2 in pairs]
