"""Next-token loss through compiled products: reading in bfloat16 on CPUs with AMX or AVX-512."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ttt_docs.kernels.cross_entropy.definition import linear_cross_entropy_cpu
from ttt_docs.kernels.native.calls import call

#: From here on faster than oneDNN's product and exponentials after it: the guard's 16 rows are.
LEAST_ROWS = 8
#: Rows at a time: their weights for a part of the vocabulary take 8 MB.
ROWS = 1024


def _score(x: Tensor, head: Tensor, targets: Tensor, with_grad: bool) -> tuple[Tensor, Tensor | None] | None:
    """Losses [rows] and, if asked for, their gradient for x [rows, dim]; None if a logit is out of exp's range."""
    losses, grads = [], []
    for piece, target in zip(x.split(ROWS), targets.split(ROWS), strict=True):
        rows, dim = piece.shape
        total, score = x.new_empty(rows, dtype=torch.float32), x.new_empty(rows, dtype=torch.float32)
        mean = x.new_empty(rows, dim, dtype=torch.float32) if with_grad else None
        call("cross_entropy", rows, head.shape[0], dim, piece, head, target, total, score, mean)
        if not bool(((total > 1e-30) & (total < 1e30)).all()):
            return None
        losses.append(total.log() - score)
        if mean is not None:
            grads.append(mean.div_(total.unsqueeze(1)).sub_(head[target]).to(x.dtype))
    return torch.cat(losses), torch.cat(grads) if with_grad else None


class _LinearCrossEntropyNative(torch.autograd.Function):
    """The gradient for x is made in the forward pass, while the exponentials are at hand; the head is frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, nll: Tensor, grad: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(grad)
        return nll

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_nll: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (grad,) = ctx.saved_tensors
        return grad * grad_nll.to(grad.dtype).unsqueeze(1), None, None


def linear_cross_entropy_native(x: Tensor, head: Tensor, targets: Tensor, ignore: int | None = None) -> Tensor:
    """As `linear_cross_entropy_cpu`, which still does what the compiled products were not made for."""
    fits = x.dtype == torch.bfloat16 and x.shape[0] >= LEAST_ROWS and not any(size % 32 for size in head.shape)
    learning = torch.is_grad_enabled() and x.requires_grad
    scored = _score(x.detach().contiguous(), head.contiguous(), targets.contiguous(), learning) if fits else None
    if scored is None:
        return linear_cross_entropy_cpu(x, head, targets, ignore)
    nll, grad = scored
    if grad is not None:
        nll = _LinearCrossEntropyNative.apply(x, nll, grad)
    return nll if ignore is None else nll * (targets != ignore)
