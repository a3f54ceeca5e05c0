"""The inner loop, one chunk at a time: docs/method.md section 3, its steps 1 to 5 by number.

The paper's rule is `sgd`. Its clip and step stand in `kernels/inner_step/definition.py` (`updated`), the other rules
beside it. Nothing below the first prime MLP learns, so a chunk comes as hidden states from the prefix blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ttt_docs.kernels.backends import REFERENCE, Kernels
from ttt_docs.kernels.inner_step.definition import Rule, Step
from ttt_docs.kernels.inner_step.layout import PrimeWeights
from ttt_docs.model.cache import LayerCache
from ttt_docs.model.config import ReadingConfig
from ttt_docs.model.decoder import Decoder
from ttt_docs.model.positions import Positions

#: Tokens at a chunk's end that the guard predicts again after the update.
GUARD_TOKENS = 16


class Weights(NamedTuple):
    """The fast weights of every document, [batch, n] as `Decoder.fast_layout` has them."""

    fast: Tensor  # float32 (float64 for a float64 model)
    products: Tensor  # the same in the products' dtype

    @classmethod
    def of(cls, fast: Tensor, dtype: torch.dtype) -> Weights:
        return cls(fast, fast.to(dtype))


@dataclass(frozen=True)
class InnerLoop:
    """What stays the same from chunk to chunk. `rates` [3 * suffix blocks] are learned rates; None: 1 for all."""

    model: Decoder
    reading: ReadingConfig
    kernels: Kernels
    rates: Tensor | None = None


class ChunkStep(NamedTuple):
    """What one chunk measured, per document; tensors stay on their device."""

    nll: Tensor  # [batch, chunk], nats
    loss: Tensor  # [batch]
    grad_norm: Tensor  # [batch], before clipping; 0 without learning
    clip: Tensor  # [batch]
    accepted: Tensor  # bool [batch]: False where the update was undone


def learn_chunk(
    loop: InnerLoop,
    hidden: Tensor,
    targets: Tensor,
    positions: tuple[Positions, Positions],
    caches: Sequence[LayerCache],
    before: Weights,
    into: Weights | None = None,
    table: Tensor | None = None,
) -> tuple[ChunkStep, Step]:
    """Reads a chunk and learns from it. hidden [batch, chunk, dim], targets [batch, chunk].

    `positions` are the chunk's and its last tokens', which the guard predicts again. Suffix caches grow by the chunk.
    `into` takes the weights after the step; `table` is as for `inner_step_triton`. Every decision is a tensor.
    """
    model, reading, kernels = loop.model, loop.reading, loop.kernels
    views = model.fast_layout.views(before.products)
    # 1.-3. Predict the chunk with the weights of before; its mean loss; the gradient for the fast weights alone.
    nll, grads = score_and_grads(model, hidden, targets, positions[0], caches, views, kernels)
    with torch.no_grad():
        # 4. Clip: g *= min(1, clip / ||g||).  5. Step: W <- W - lr * g.
        step = kernels.inner_step(before.fast, grads, rule_of(reading), loop.rates, model.dtype, into, table)
        # Not in the paper: an update that worsens the chunk's last tokens is undone, and one that is not finite.
        accepted = step.grad_norm.isfinite()
        if reading.guard is not None:
            jump = loss_again(loop, hidden, targets, positions[1], caches, step.products, nll)
            accepted = accepted & (jump <= reading.guard)  # False for NaN too
        step = kernels.undo_step(step, accepted)
        loss = chunk_loss(nll, targets, model.config.bos_token_id)
    return ChunkStep(nll, loss, step.grad_norm, step.clip, accepted), step


def score_chunk(
    loop: InnerLoop,
    hidden: Tensor,
    targets: Tensor,
    positions: Positions,
    caches: Sequence[LayerCache],
    weights: Sequence[PrimeWeights] | None,
) -> ChunkStep:
    """Reads a chunk with the window only. Nothing is learned."""
    model, kernels = loop.model, loop.kernels
    with torch.no_grad():
        nll = model.token_nll(
            model.run(hidden, model.config.suffix, positions, caches, weights, kernels), targets, kernels
        )
        loss = chunk_loss(nll, targets, model.config.bos_token_id)
    zero = torch.zeros_like(loss)
    return ChunkStep(nll, loss, zero, zero + 1, torch.ones_like(loss, dtype=torch.bool))


def score_and_grads(
    model: Decoder,
    hidden: Tensor,
    targets: Tensor,
    positions: Positions,
    caches: Sequence[LayerCache],
    weights: Sequence[PrimeWeights],
    kernels: Kernels = REFERENCE,
) -> tuple[Tensor, list[PrimeWeights]]:
    """Steps 1 to 3: loss of each token [batch, chunk] (nats), and the gradient of its mean for the fast weights."""
    leaves = [PrimeWeights(*(w.detach().requires_grad_() for w in block)) for block in weights]
    with torch.enable_grad():
        # 1. Forward through the suffix blocks. Earlier keys and values stay as they were computed.
        x = model.run(hidden, model.config.suffix, positions, caches, leaves, kernels)
        # 2. Mean cross-entropy. Documents are independent: the gradient of the batch's sum is each one's own.
        nll = model.token_nll(x, targets, kernels)
        loss = chunk_loss(nll, targets, model.config.bos_token_id).sum()
        # 3. The gradient for the prime MLPs' w1, w2, w3 alone.
        grads = torch.autograd.grad(loss, [w for block in leaves for w in block])
    return nll.detach(), [PrimeWeights(*pair) for pair in zip(grads[0::2], grads[1::2], strict=True)]


def chunk_loss(nll: Tensor, targets: Tensor, bos: int | None) -> Tensor:
    """Mean loss per document [batch] of nll [batch, tokens]; targets that are BOS do not count."""
    if bos is None:
        return nll.mean(dim=1)
    return nll.sum(dim=1) / (targets != bos).sum(dim=1).clamp_min(1)


def rule_of(reading: ReadingConfig) -> Rule:
    return Rule(reading.inner_rule, reading.inner_lr, reading.inner_clip)


def loss_again(
    loop: InnerLoop,
    hidden: Tensor,
    targets: Tensor,
    positions: Positions,
    caches: Sequence[LayerCache],
    products: Tensor,
    nll: Tensor,
) -> Tensor:
    """By how many nats [batch] the chunk's last tokens lose more with the new weights. Caches stay as they are."""
    model, count = loop.model, positions.rotation[0].shape[0]
    with ExitStack() as stack:
        for i in model.config.suffix:
            stack.enter_context(caches[i].rewound(count))
        views = model.fast_layout.views(products)
        x = model.run(hidden[:, -count:], model.config.suffix, positions, caches, views, loop.kernels, commit=False)
        again = model.token_nll(x, targets[:, -count:], loop.kernels)
    return (again - nll[:, -count:]).mean(dim=1)
