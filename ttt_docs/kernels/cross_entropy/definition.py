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

from ttt_docs.kernels.swiglu.definition import narrow_product
from ttt_docs.kernels.workspace import wide, workspace

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
    return x.view(rows, pieces, columns // pieces).sum(-1).to(wide(x.dtype)).sum(-1, keepdim=True)


class _Sums(NamedTuple):
    total: Tensor  # [rows, 1] float32: sum over the vocabulary of exp(logit - shift)
    score: Tensor  # [rows, 1] float32: the target's logit
    mean: Tensor | None  # [rows, dim] float32: sum over the vocabulary of exp(logit - shift) * head


def _sums(x: Tensor, head: Tensor, target: Tensor, shift: Tensor | None, with_mean: bool) -> _Sums:
    """One pass over the vocabulary, tile by tile; one exponential per logit. x [rows, dim], target [rows, 1]."""
    rows, dim = x.shape
    total, score = x.new_zeros(rows, 1, dtype=wide(x.dtype)), x.new_zeros(rows, 1, dtype=wide(x.dtype))
    mean = x.new_zeros(rows, dim, dtype=wide(x.dtype)) if with_mean else None
    for first in range(0, head.shape[0], COLUMNS):
        part = head[first : first + COLUMNS]
        logits = torch.mm(x, part.t(), out=workspace("logits", (rows, part.shape[0]), x.dtype))
        local = target - first
        inside = (local >= 0) & (local < part.shape[0])
        score = torch.where(inside, logits.gather(1, local.clamp(0, part.shape[0] - 1)).to(total.dtype), score)
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
        losses.append((sums.total.log() + (0 if shift is None else shift.to(sums.total.dtype)) - sums.score).squeeze(1))
        if sums.mean is not None:
            grads.append(sums.mean.div_(sums.total).sub_(head[target.squeeze(1)]).to(x.dtype))
    return torch.cat(losses), torch.cat(grads) if with_grad else None


class _LinearCrossEntropyCPU(torch.autograd.Function):
    """The gradient for x is made in the forward pass, while a tile's exponentials are at hand; a trained head's costs a
    second look at the logits."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, head: Tensor, targets: Tensor, ignore: int | None) -> Tensor:  # type: ignore[override]
        counted = None if ignore is None else targets != ignore
        raw, grad = _score(x, head, targets, with_grad=True)
        nll = raw
        if counted is not None:
            nll = nll * counted
        kept = (x, head, targets, raw) if ctx.needs_input_grad[1] else ()
        ctx.save_for_backward(grad, counted, *kept)
        return nll

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_nll: Tensor) -> tuple[Tensor, Tensor | None, None, None]:  # type: ignore[override]
        grad, counted, *of_head = ctx.saved_tensors
        if counted is not None:
            grad_nll = grad_nll * counted
        grad_head = None
        if of_head:
            x, head, targets, nll = of_head
            grad_head = _head_grad(x, head, targets, nll, grad_nll)
        return grad * grad_nll.to(grad.dtype).unsqueeze(1), grad_head, None, None


def _head_grad(x: Tensor, head: Tensor, targets: Tensor, nll: Tensor, grad_nll: Tensor) -> Tensor:
    """The head's gradient [vocab, dim] for losses nll [rows]: the sum over rows of (softmax - onehot) x."""
    grad = torch.zeros(head.shape, dtype=wide(head.dtype))
    score = torch.linalg.vecdot(x.to(grad.dtype), head[targets].to(grad.dtype))
    log_total = (nll + score).unsqueeze(1)
    for start in range(0, len(x), ROWS):
        rows = slice(start, start + ROWS)
        piece, weight = x[rows], grad_nll[rows].unsqueeze(1)
        for first in range(0, head.shape[0], COLUMNS):
            part = head[first : first + COLUMNS]
            logits = torch.mm(piece, part.t(), out=workspace("logits", (len(piece), len(part)), x.dtype))
            p = logits.to(grad.dtype).sub_(log_total[rows]).exp_().mul_(weight).to(x.dtype)
            grad[first : first + COLUMNS] += p.t() @ piece
    return grad.index_add_(0, targets, -grad_nll.unsqueeze(1) * x.to(grad.dtype)).to(head.dtype)


def linear_cross_entropy_cpu(x: Tensor, head: Tensor, targets: Tensor, ignore: int | None = None) -> Tensor:
    """The CPU path, differentiable once."""
    if torch.is_grad_enabled() and (x.requires_grad or head.requires_grad):
        return _LinearCrossEntropyCPU.apply(x, head, targets, ignore)
    nll, _ = _score(x.detach(), head, targets, with_grad=False)
    return nll if ignore is None else nll * (targets != ignore)
