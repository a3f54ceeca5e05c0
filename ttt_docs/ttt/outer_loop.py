"""The outer loop: the loss after the inner updates, and its gradient through them (METHOD section 4)."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ttt_docs.errors import UsageError
from ttt_docs.kernels.backends import REFERENCE, Kernels
from ttt_docs.kernels.dispatch import training_kernels_for
from ttt_docs.kernels.inner_step.definition import updated
from ttt_docs.kernels.inner_step.layout import PrimeWeights
from ttt_docs.kernels.workspace import wide
from ttt_docs.model.config import ReadingConfig
from ttt_docs.model.decoder import Decoder
from ttt_docs.ttt.compiled import through_compiled_updates
from ttt_docs.ttt.inner_loop import chunk_loss, rule_of
from ttt_docs.ttt.outer_scan import Scan, through_updates
from ttt_docs.ttt.sequence import run_sequence

#: `meta`: gradients through the inner updates. `first-order`: the updates count as constants. `naive`: trained without
#: inner updates, which happen at test time only. `none`: no prime MLPs at all, a plain (window) transformer.
Mode = Literal["meta", "first-order", "naive", "none"]
#: What is kept for the backward pass. `none`: everything, the loop below as it stands, by plain autograd. `chunks`: one
#: inner gradient for each chunk, the rest is computed again. `suffix`: the same, but what no update can reach keeps
#: everything, for sequences that fit. `logarithmic`: log-many fast weights, inner gradients are computed again too.
#: `compiled`: everything, by the same loop with a compiled step: for tiny models, whose time Python takes.
Recompute = Literal["none", "compiled", "chunks", "suffix", "logarithmic"]


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

    `loss.backward()` reaches every parameter that asks for gradient, in `first-order` except through what earlier
    chunks left in the suffix (their updates, their keys and values): W0 gets the mean of the chunks' inner gradients.
    The inner learning rate is `reading.inner_lr` times `lr_scale` times, where given, the learned `inner_lr` [suffix
    blocks], or [suffix blocks, 3] for w1, w2, w3 of each. There is no guard: an update that was undone would be
    invisible to the gradient that should have learned to avoid it. `kernels` default to `training_kernels_for` the
    device, or for `recompute` none and compiled, which want them differentiable twice, to the definitions.

    Raises:
        UsageError: a length that is not a multiple of the chunk, a model without prime MLPs in a mode that needs them.
    """
    _check(model, tokens, reading, mode, inner_lr, recompute)
    rates = _rates(model, lr_scale, inner_lr)
    if recompute == "none":
        return _unrolled(model, tokens, reading, mode, rates, kernels or REFERENCE)
    keep = recompute in ("compiled", "suffix")
    kernels = kernels or (REFERENCE if recompute == "compiled" else training_kernels_for(tokens.device))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    x, config = model.hidden(inputs), model.config
    if mode == "none" or mode == "naive":
        shared = None if mode == "none" else _shared_product_weights(model)
        x = run_sequence(model, x, range(config.blocks), reading, kernels, shared, keep=keep)
        nll = model.token_nll(x, targets, kernels)
        by_chunk = nll.view(-1, reading.chunk), targets.reshape(-1, reading.chunk)
        losses = chunk_loss(*by_chunk, config.bos_token_id).view(len(tokens), -1)
        return OuterLoss(losses.mean(), losses.detach(), torch.zeros_like(losses.detach()), nll.detach())
    x = run_sequence(model, x, range(config.prefix_blocks), reading, kernels, attend_next=True, keep=keep)
    fast = model.initial_fast_weights(tokens.shape[0])
    if recompute == "compiled":
        return OuterLoss(*through_compiled_updates(model, x, targets, fast, reading, mode == "meta", rates, kernels))
    scan = Scan(model, reading, kernels, x.detach(), targets, rates.detach(), x.requires_grad)
    return OuterLoss(*through_updates(scan, x, rates, fast, mode == "meta", recompute == "logarithmic"))


def _unrolled(
    model: Decoder, tokens: Tensor, reading: ReadingConfig, mode: Mode, rates: Tensor, kernels: Kernels
) -> OuterLoss:
    """METHOD section 4 as it stands: what the other ways of computing must agree with."""
    fast = None if mode == "none" else model.initial_fast_weights(tokens.shape[0])
    caches = model.new_caches(reading.window, reading.sinks, differentiable=True)
    losses, norms, nlls = [], [], []
    for start in range(0, tokens.shape[1] - 1, reading.chunk):
        here, targets = tokens[:, start : start + reading.chunk], tokens[:, start + 1 : start + reading.chunk + 1]
        place = model.place(start, reading.chunk, reading.window, reading.sinks)
        weights = None if fast is None else model.fast_layout.views(fast.to(model.dtype))
        x = model.run(model.hidden(here), range(model.config.blocks), place, caches, weights, kernels)
        nll = model.token_nll(x, targets, kernels)
        loss = chunk_loss(nll, targets, model.config.bos_token_id)
        losses.append(loss)
        nlls.append(nll.detach())
        norms.append(torch.zeros_like(loss).detach())
        if mode == "first-order":
            for cache in caches[model.config.prefix_blocks + 1 :]:
                cache.detach()
        if fast is not None and mode in ("meta", "first-order"):
            (grad,) = torch.autograd.grad(loss.sum(), [fast], create_graph=mode == "meta", retain_graph=True)
            # In `first-order` the gradient is a constant here, and an update's gradient is the identity.
            fast, norm, _ = updated(fast, grad, model.fast_layout, rule_of(reading), rates)
            norms[-1] = norm.detach()
    stacked = torch.stack(losses, dim=1)
    return OuterLoss(stacked.mean(), stacked.detach(), torch.stack(norms, dim=1), torch.cat(nlls, dim=1))


def _shared_product_weights(model: Decoder) -> list[PrimeWeights]:
    """The prime MLPs as they are, one set for all sequences: w13 [2 * hidden, dim], w2 [dim, hidden]."""
    primes = [model.block(i).prime_mlp for i in model.config.suffix]
    return [PrimeWeights(torch.cat([p.w1, p.w3]).to(model.dtype), p.w2.to(model.dtype)) for p in primes]


def _rates(model: Decoder, lr_scale: float, inner_lr: Tensor | None) -> Tensor:
    """What `reading.inner_lr` is multiplied by, for w1, w2, w3 of each block: [3 * suffix blocks]."""
    blocks = model.config.suffix_blocks
    ones = torch.ones(blocks, 3, dtype=wide(model.dtype), device=model.embed.weight.device)
    return lr_scale * (ones if inner_lr is None else inner_lr.to(ones).view(blocks, -1).expand(-1, 3)).reshape(-1)


def _check(
    model: Decoder, tokens: Tensor, reading: ReadingConfig, mode: Mode, inner_lr: Tensor | None, recompute: Recompute
) -> None:
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
    if recompute not in get_args(Recompute):
        *names, last = get_args(Recompute)
        raise UsageError(f"recompute {recompute!r} is not known: choose {', '.join(names)} or {last}")
    if mode != "none" and not suffix:
        raise UsageError(f"{model.config.name} has no prime MLPs: mode {mode!r} needs some, mode 'none' does not")
    if recompute == "compiled" and mode in ("meta", "first-order") and suffix != 1:
        raise UsageError(f"recompute 'compiled' is for one suffix block, and {model.config.name} has {suffix}")
    if inner_lr is not None and inner_lr.shape not in ((suffix,), (suffix, 3)):
        raise UsageError(f"inner_lr must be [{suffix}] or [{suffix}, 3], not {list(inner_lr.shape)}")
