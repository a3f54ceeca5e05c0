"""The outer loop: the loss after the inner updates, and its gradient through them (METHOD section 4)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ttt_docs.errors import UsageError
from ttt_docs.kernels.dispatch import REFERENCE, Kernels
from ttt_docs.model.config import ReadingConfig
from ttt_docs.model.decoder import Decoder, FastWeights, product_weights
from ttt_docs.model.inner import chunk_loss, inner_step

#: `meta`: gradients through the inner updates. `first-order`: the updates count as constants. `naive`: trained without
#: inner updates, which happen at test time only. `none`: no prime MLPs at all, a plain (window) transformer.
Mode = Literal["meta", "first-order", "naive", "none"]
Recompute = Literal["none", "chunks", "logarithmic"]


class OuterLoss(NamedTuple):
    """`loss` is a scalar to call `backward` on; the rest is for the record and carries no gradient."""

    loss: Tensor  # mean over batch and chunks, nats
    chunk_losses: Tensor  # [batch, chunks], nats
    grad_norms: Tensor  # [batch, chunks], of the inner gradients before clipping; 0 where there are none
    token_nll: Tensor  # [batch, tokens], nats


def outer_loss(
    model: Decoder,
    tokens: Tensor,
    reading: ReadingConfig,
    *,
    mode: Mode = "meta",
    lr_scale: float = 1.0,
    inner_lr: Tensor | None = None,
    recompute: Recompute = "chunks",
    kernels: Kernels | None = None,
) -> OuterLoss:
    """Loss of tokens [batch, T + 1] after reading them chunk by chunk, T a multiple of `reading.chunk`.

    `loss.backward()` reaches every parameter that asks for gradient. The inner learning rate is `reading.inner_lr`
    times `lr_scale` times, where given, the learned `inner_lr` [suffix blocks]. There is no guard: an update that was
    undone would be invisible to the gradient that should have learned to avoid it.

    Raises:
        UsageError: a length that is not a multiple of the chunk, a model without prime MLPs in a mode that needs them.
    """
    _check(model, tokens, reading, mode, inner_lr)
    kernels = kernels or REFERENCE
    fast = None if mode == "none" else model.initial_fast_weights(tokens.shape[0])
    caches = model.new_caches(reading.window, reading.sinks, differentiable=True)
    losses, norms, nlls = [], [], []
    for start in range(0, tokens.shape[1] - 1, reading.chunk):
        here, targets = tokens[:, start : start + reading.chunk], tokens[:, start + 1 : start + reading.chunk + 1]
        place = model.place(start, reading.chunk, reading.window, reading.sinks)
        weights = None if fast is None else [product_weights(block, model.dtype) for block in fast]
        x = model.run(model.hidden(here), range(model.config.blocks), place, caches, weights, kernels)
        nll = model.token_nll(x, targets, kernels)
        loss = chunk_loss(nll, targets, model.config.bos_token_id)
        losses.append(loss)
        nlls.append(nll.detach())
        norms.append(torch.zeros_like(loss))
        if fast is not None and mode in ("meta", "first-order"):
            flat = [w for block in fast for w in block]
            grads = torch.autograd.grad(loss.sum(), flat, create_graph=mode == "meta", retain_graph=True)
            groups = [FastWeights(*grads[i : i + 3]) for i in range(0, len(grads), 3)]
            step = inner_step(fast, groups, reading, _rates(model, lr_scale, inner_lr))
            fast, norms[-1] = step.fast, step.grad_norm.detach()
    stacked = torch.stack(losses, dim=1)
    return OuterLoss(stacked.mean(), stacked.detach(), torch.stack(norms, dim=1), torch.cat(nlls, dim=1))


def _rates(model: Decoder, lr_scale: float, inner_lr: Tensor | None) -> Tensor:
    """What `reading.inner_lr` is multiplied by, [suffix blocks]."""
    ones = torch.ones(model.config.suffix_blocks, device=model.embed.weight.device)
    return lr_scale * (ones if inner_lr is None else inner_lr)


def _check(model: Decoder, tokens: Tensor, reading: ReadingConfig, mode: Mode, inner_lr: Tensor | None) -> None:
    if tokens.dim() != 2 or tokens.shape[1] < 2:
        raise UsageError(f"tokens must be [batch, length + 1], not {list(tokens.shape)}")
    length, suffix = tokens.shape[1] - 1, model.config.suffix_blocks
    if length % reading.chunk:
        raise UsageError(
            f"{length} tokens (and one more as the last target) are not a multiple of the chunk ({reading.chunk}): "
            f"use {length // reading.chunk * reading.chunk} or {(length // reading.chunk + 1) * reading.chunk}"
        )
    if mode not in ("meta", "first-order", "naive", "none"):
        raise UsageError(f"mode {mode!r} is not known: choose meta, first-order, naive or none")
    if mode != "none" and not suffix:
        raise UsageError(f"{model.config.name} has no prime MLPs: mode {mode!r} needs some, mode 'none' does not")
    if inner_lr is not None and inner_lr.shape != (suffix,):
        raise UsageError(f"inner_lr must have one value for each of {suffix} suffix blocks, not {list(inner_lr.shape)}")
