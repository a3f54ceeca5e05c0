"""Next-token loss of a linear head over a large vocabulary, without holding all logits.

x        [rows, dim]     hidden states after the final norm
head     [vocab, dim]
targets  [rows]          int64; `ignore` (one id, or None) marks targets that do not count
returns  [rows] float32  -log p(target) in nats, 0 where ignored
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ttt_docs.kernels.workspace import workspace

#: Rows per tile: 256 rows of a 49K vocabulary are 25 MB in bfloat16.
ROWS = 256


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


def _score(x: Tensor, head: Tensor, targets: Tensor, with_grad: bool) -> tuple[Tensor, Tensor | None]:
    """Losses [rows] and, if asked for, their gradient with respect to x [rows, dim]; one exponential per logit."""
    rows, vocab = x.shape[0], head.shape[0]
    nll = torch.empty(rows, dtype=torch.float32)
    grad = torch.empty_like(x) if with_grad else None
    for first in range(0, rows, ROWS):
        piece = slice(first, min(first + ROWS, rows))
        target = targets[piece].unsqueeze(1)
        logits = workspace("logits", (target.shape[0], vocab), x.dtype)
        torch.mm(x[piece], head.t(), out=logits)
        top = logits.amax(dim=1, keepdim=True)
        score = logits.gather(1, target).float()
        exponentials = logits.sub_(top).exp_()
        total = _row_sums(exponentials)
        nll[piece] = (top.float() + total.log() - score).squeeze(1)
        if grad is not None:
            expected = (exponentials @ head).div_(total.to(x.dtype))
            torch.sub(expected, head[target.squeeze(1)], out=grad[piece])
    return nll, grad


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
