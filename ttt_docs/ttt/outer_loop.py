"""The outer loop: the loss after the inner updates, and its gradient through them (docs/method.md section 4).

For the chunks c = 1 .. C of a sequence, slow weights S, and fast weights that begin as the parameter W_1 = W0:

    (1)  l_c = mean loss of the chunk's tokens, predicted with W_c and S
    (2)  g_c = dl_c / dW_c
    (3)  W_c+1 = W_c - lr * min(1, clip / ||g_c||) * g_c
    (4)  L = mean of l_c over all chunks, and over the batch

The gradient of L for W0 and S goes through (3) and (2): it holds gradients of gradients, and that of the clip factor.
`unrolled` is these equations under plain autograd, which keeps everything. The other files of this room compute the
same with less memory or in less time; tests compare their gradients with those of `unrolled` in float64.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ttt_docs.errors import UsageError
from ttt_docs.kernels.backends import REFERENCE, Kernels
from ttt_docs.kernels.dispatch import training_kernels_for
from ttt_docs.kernels.inner_step.definition import updated
from ttt_docs.kernels.workspace import wide
from ttt_docs.model.config import ReadingConfig
from ttt_docs.model.decoder import Decoder
from ttt_docs.ttt.inner_loop import InnerLoop, chunk_loss, rule_of
from ttt_docs.ttt.outer_compiled import compiled_updates
from ttt_docs.ttt.outer_scan import scan_updates
from ttt_docs.ttt.recompute import prime_weights, run_sequence

#: `meta`: gradients through the inner updates. `first-order`: the updates count as constants. `naive`: trained without
#: inner updates, which happen at test time only. `none`: no prime MLPs at all, a plain (window) transformer.
Mode = Literal["meta", "first-order", "naive", "none"]
#: What is kept for the backward pass; the rest is computed again.
#: `chunks`: one inner gradient for each chunk.
#: `suffix`: the same, and all of what no update can reach (the prefix); faster where that fits.
#: `logarithmic`: a few fast weights, as many as the logarithm of the number of chunks.
#: `none`: everything, by `unrolled`. `compiled`: everything, with a compiled step, for tiny models.
Recompute = Literal["none", "compiled", "chunks", "suffix", "logarithmic"]


class OuterLoss(NamedTuple):
    """`loss` is a scalar to call `backward` on; the rest is for the record and carries no gradient."""

    loss: Tensor  # mean over batch and chunks, nats
    chunk_losses: Tensor  # [batch, chunks], nats
    grad_norms: Tensor  # [batch, chunks], of the inner gradients before clipping; 0 where there are none
    token_nll: Tensor  # [batch, tokens], nats


def unrolled(loop: InnerLoop, tokens: Tensor, mode: Mode) -> OuterLoss:
    """Equations (1) to (4) as they stand."""
    model, reading, kernels = loop.model, loop.reading, loop.kernels
    config, chunk = model.config, reading.chunk
    fast = None if mode == "none" else model.initial_fast_weights(len(tokens))
    caches = model.new_caches(reading.window, reading.sinks, differentiable=True)
    losses, norms, nlls = [], [], []
    for start in range(0, tokens.shape[1] - 1, chunk):
        inputs, targets = tokens[:, start : start + chunk], tokens[:, start + 1 : start + chunk + 1]
        # (1) The chunk's loss. Keys and values of earlier chunks carry gradient.
        positions = model.positions(start, chunk, reading.window, reading.sinks)
        weights = None if fast is None else model.fast_layout.views(fast.to(model.dtype))
        x = model.run(model.hidden(inputs), range(config.blocks), positions, caches, weights, kernels)
        nlls.append(model.token_nll(x, targets, kernels))
        losses.append(chunk_loss(nlls[-1], targets, config.bos_token_id))
        norms.append(torch.zeros_like(losses[-1]))
        if mode == "first-order":  # what a chunk leaves in the suffix is constant for later ones
            for cache in caches[config.prefix_blocks + 1 :]:
                cache.detach()
        if fast is not None and mode in ("meta", "first-order"):
            # (2) The inner gradient. In `first-order` it is a constant, and the gradient of (3) is the identity.
            (grad,) = torch.autograd.grad(losses[-1].sum(), [fast], create_graph=mode == "meta", retain_graph=True)
            # (3) The inner step.
            fast, norms[-1], _ = updated(fast, grad, model.fast_layout, rule_of(reading), loop.rates)
    by_chunk, norm, nll = torch.stack(losses, dim=1), torch.stack(norms, dim=1), torch.cat(nlls, dim=1)
    return OuterLoss(by_chunk.mean(), by_chunk.detach(), norm.detach(), nll.detach())  # (4)


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

    `loss.backward()` reaches every parameter that asks for gradient. In `first-order`, what earlier chunks left in the
    suffix (updates, keys, values) counts as constant: W0 then gets the mean of the chunks' inner gradients.
    The inner learning rate is `reading.inner_lr` times `lr_scale`, and times the learned `inner_lr` if there is one:
    [suffix blocks], or [suffix blocks, 3] for w1, w2, w3 of each. There is no guard. An undone update would hide from
    the gradient what it should learn to avoid. `kernels` are those of `training_kernels_for` unless given; `recompute`
    none and compiled need kernels that are differentiable twice, and take the definitions.

    Raises:
        UsageError: a length that is not a multiple of the chunk, a model without prime MLPs in a mode that needs them.
    """
    _check(model, tokens, reading, mode, inner_lr, recompute)
    config, blocks = model.config, model.config.suffix_blocks
    ones = torch.ones(blocks, 3, dtype=wide(model.dtype), device=tokens.device)
    rates = lr_scale * (ones if inner_lr is None else inner_lr.to(ones).view(blocks, -1).expand(-1, 3)).reshape(-1)
    kernels = kernels or (REFERENCE if recompute in ("none", "compiled") else training_kernels_for(tokens.device))
    loop, keep = InnerLoop(model, reading, kernels, rates), recompute in ("compiled", "suffix")
    if recompute == "none":
        return unrolled(loop, tokens, mode)
    x, targets = model.hidden(tokens[:, :-1]), tokens[:, 1:]
    if mode == "none" or mode == "naive":  # no updates: the whole sequence at once
        weights = None if mode == "none" else prime_weights(model)
        x = run_sequence(model, x, range(config.blocks), reading, kernels, weights, keep=keep)
        nll = model.token_nll(x, targets, kernels)
        rows = -1, reading.chunk
        losses = chunk_loss(nll.view(rows), targets.reshape(rows), config.bos_token_id).view(len(tokens), -1)
        return OuterLoss(losses.mean(), losses.detach(), torch.zeros_like(losses).detach(), nll.detach())
    x = run_sequence(model, x, range(config.prefix_blocks), reading, kernels, attend_next=True, keep=keep)
    fast, second_order = model.initial_fast_weights(len(tokens)), mode == "meta"
    if recompute == "compiled":
        return OuterLoss(*compiled_updates(loop, x, targets, fast, second_order))
    return OuterLoss(*scan_updates(loop, x, targets, fast, second_order, logarithmic=recompute == "logarithmic"))


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
    for what, value, known in (("mode", mode, get_args(Mode)), ("recompute", recompute, get_args(Recompute))):
        if value not in known:
            raise UsageError(f"{what} {value!r} is not known: choose {', '.join(known[:-1])} or {known[-1]}")
    if mode != "none" and not suffix:
        raise UsageError(f"{model.config.name} has no prime MLPs: mode {mode!r} needs some, mode 'none' does not")
    if recompute == "compiled" and mode in ("meta", "first-order") and suffix != 1:
        raise UsageError(f"recompute 'compiled' is for one suffix block, and {model.config.name} has {suffix}")
    if inner_lr is not None and inner_lr.shape not in ((suffix,), (suffix, 3)):
        raise UsageError(f"inner_lr must be [{suffix}] or [{suffix}, 3], not {list(inner_lr.shape)}")
