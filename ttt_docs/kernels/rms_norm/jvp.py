"""RMSNorm of values and tangents: y = r x w and w (r t - r^3 mean(x t) x), with r = 1 / rms(x) and t the tangent of x.

A dual stacks both along the batch (see `swiglu/jvp.py`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ttt_docs.kernels.rms_norm.cpu import row_scale, weight_gradient


def _mean(u: Tensor, v: Tensor, like: Tensor) -> Tensor:
    return torch.linalg.vecdot(u, v).unsqueeze(-1).to(like.dtype) / u.shape[-1]


def _normed(dual: Tensor, scale: Tensor, along: Tensor) -> Tensor:
    """The result but for the weight."""
    x, y = dual.chunk(2)[0], dual * torch.cat([scale, scale]).to(dual.dtype)
    y[len(x) :].addcmul_(x, (scale.pow(3) * along).to(x.dtype), value=-1)
    return y


class _RMSNormJvp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dual: Tensor, weight: Tensor, eps: float) -> Tensor:  # type: ignore[override]
        x, t = dual.chunk(2)
        scale = row_scale(x, eps)
        along = _mean(x, t, scale)
        ctx.save_for_backward(dual, weight, scale, along)
        return _normed(dual, scale, along).mul_(weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # type: ignore[override]
        dual, weight, scale, along = ctx.saved_tensors
        x, t = dual.chunk(2)
        narrow, cube, grad_weight = x.dtype, scale.pow(3), None
        if ctx.needs_input_grad[1]:
            grad_weight = weight_gradient(_normed(dual, scale, along), grad, weight)
        weighted = (grad * weight).to(narrow)
        a, b = weighted.chunk(2)
        b_x = _mean(b, x, scale)
        of_x = cube * (3 * scale.square() * along * b_x - _mean(a, x, scale) - _mean(b, t, scale))
        result = weighted * torch.cat([scale, scale]).to(narrow)
        first, second = result.chunk(2)
        first.addcmul_(b, (cube * -along).to(narrow)).addcmul_(t, (cube * -b_x).to(narrow))
        first.addcmul_(x, of_x.to(narrow))
        second.addcmul_(x, (cube * -b_x).to(narrow))
        return result, grad_weight, None


def rms_norm_jvp(dual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm of a dual [2 * batch, ..., dim], differentiable once; weight [dim] is shared and has no tangent."""
    return _RMSNormJvp.apply(dual, weight, eps)
