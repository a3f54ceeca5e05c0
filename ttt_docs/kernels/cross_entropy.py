"""Next-token loss of a linear head over a large vocabulary, without holding all logits.

x        [rows, dim]     hidden states after the final norm
head     [vocab, dim]
targets  [rows]          int64; `ignore` (one id, or None) marks targets that do not count
returns  [rows] float32  -log p(target) in nats, 0 where ignored
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ttt_docs.kernels.swiglu import narrow_product
from ttt_docs.kernels.workspace import workspace

#: Logits are made in tiles of this many rows and vocabulary entries: 16 MB in bfloat16, which caches still hold.
ROWS = 1024
COLUMNS = 8192


def linear_cross_entropy_reference(x: Tensor, head: Tensor, targets: Tensor, ignore: int | None = None) -> Tensor:
    """The definition (float32 log-softmax), differentiable any number of times; holds all logits."""
    logits = F.linear(x, head)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    ignore_index = -100 if ignore is None else ignore
    return F.cross_entropy(logits, targets, reduction="none", ignore_index=ignore_index)


def _row_sums(x: Tensor) -> Tensor:
    """Sums over the last axis in float32 [rows, 1]. Asking sum() for float32 converts all of a bfloat16 x first (30
    times slower), so pieces are summed in x's dtype, whose rounding averages out, and the pieces in float32."""
    rows, columns = x.shape
    pieces = math.gcd(columns, 256)
    return x.view(rows, pieces, columns // pieces).sum(-1).float().sum(-1, keepdim=True)


class _Sums(NamedTuple):
    total: Tensor  # [rows, 1] float32: sum over the vocabulary of exp(logit - shift)
    score: Tensor  # [rows, 1] float32: the target's logit
    mean: Tensor | None  # [rows, dim] float32: sum over the vocabulary of exp(logit - shift) * head


def _sums(x: Tensor, head: Tensor, target: Tensor, shift: Tensor | None, with_mean: bool) -> _Sums:
    """One pass over the vocabulary, tile by tile; one exponential per logit. x [rows, dim], target [rows, 1]."""
    rows, dim = x.shape
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    total, score = x.new_zeros(rows, 1, dtype=wide), x.new_zeros(rows, 1, dtype=wide)
    mean = x.new_zeros(rows, dim, dtype=wide) if with_mean else None
    for first in range(0, head.shape[0], COLUMNS):
        part = head[first : first + COLUMNS]
        logits = torch.mm(x, part.t(), out=workspace("logits", (rows, part.shape[0]), x.dtype))
        local = target - first
        inside = (local >= 0) & (local < part.shape[0])
        score = torch.where(inside, logits.gather(1, local.clamp(0, part.shape[0] - 1)).to(wide), score)
        exponentials = (logits if shift is None else logits.sub_(shift)).exp_()
        total += _row_sums(exponentials)
        if mean is not None:
            mean += narrow_product(exponentials, part)
    return _Sums(total, score, mean)


def _largest_logit(x: Tensor, head: Tensor) -> Tensor:
    """[rows, 1]"""
    tiles = (head[first : first + COLUMNS] for first in range(0, head.shape[0], COLUMNS))
    return torch.stack([(x @ part.t()).amax(dim=1, keepdim=True) for part in tiles]).amax(dim=0)


def _score(x: Tensor, head: Tensor, targets: Tensor, with_grad: bool) -> tuple[Tensor, Tensor | None]:
    """Losses [rows] and, if asked for, their gradient with respect to x [rows, dim].

    Logits of language models stay far inside the range of exp, so they are not shifted at first: finding each row's
    largest and subtracting it would cost as much as the exponentials. Rows whose sum shows otherwise are done again.
    """
    losses, grads = [], []
    for piece, target in zip(x.split(ROWS), targets.unsqueeze(1).split(ROWS), strict=True):
        shift = None
        sums = _sums(piece, head, target, shift, with_grad)
        if not bool(((sums.total > 1e-30) & (sums.total < 1e30)).all()):
            shift = _largest_logit(piece, head)
            sums = _sums(piece, head, target, shift, with_grad)
        losses.append((sums.total.log() + (0 if shift is None else shift.float()) - sums.score).squeeze(1))
        if sums.mean is not None:
            grads.append(sums.mean.div_(sums.total).sub_(head[target.squeeze(1)]).to(x.dtype))
    return torch.cat(losses), torch.cat(grads) if with_grad else None


class _LinearCrossEntropyCPU(torch.autograd.Function):
    """The gradient for x is made in the forward pass, while a tile's exponentials are at hand; the head is frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, head: Tensor, targets: Tensor, ignore: int | None) -> Tensor:  # type: ignore[override]
        counted = None if ignore is None else targets != ignore
        nll, grad = _score(x, head, targets, with_grad=True)
        if counted is not None:
            nll = nll * counted
        ctx.save_for_backward(grad, counted)
        return nll

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_nll: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        grad, counted = ctx.saved_tensors
        if counted is not None:
            grad_nll = grad_nll * counted
        return grad * grad_nll.to(grad.dtype).unsqueeze(1), None, None, None


def linear_cross_entropy_cpu(x: Tensor, head: Tensor, targets: Tensor, ignore: int | None = None) -> Tensor:
    """The CPU path of reading, differentiable once with respect to x."""
    if torch.is_grad_enabled() and x.requires_grad:
        return _LinearCrossEntropyCPU.apply(x, head, targets, ignore)
    nll, _ = _score(x.detach(), head, targets, with_grad=False)
    return nll if ignore is None else nll * (targets != ignore)
