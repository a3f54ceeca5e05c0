"""RMSNorm on a CPU: three passes over x instead of the definition's six."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ttt_docs.kernels.workspace import traced, wanted, wide


def row_scale(x: Tensor, eps: float) -> Tensor:
    """1 / rms of each row, [..., 1] in float32 (float64 stays float64)."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide(x.dtype))
    return norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def weight_gradient(normed: Tensor, grad: Tensor, weight: Tensor) -> Tensor:
    """The weight's gradient [dim]; `normed` is x / rms(x) and is overwritten."""
    return normed.mul_(grad).flatten(0, -2).sum(0, dtype=wide(normed.dtype)).to(weight.dtype)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:  # type: ignore[override]
        scale = row_scale(x, eps).to(x.dtype)
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:  # type: ignore[override]
        x, weight, scale = ctx.saved_tensors
        grad_weight = weight_gradient(x * scale, grad, weight) if wanted(ctx, 1) else None
        weighted = (grad * weight).to(x.dtype)
        along = torch.linalg.vecdot(weighted, x).unsqueeze(-1)
        correction = (along.to(wide(x.dtype)) * scale.to(wide(x.dtype)).pow(3) / x.shape[-1]).to(x.dtype)
        return weighted.mul_(scale).addcmul_(x, correction, value=-1), grad_weight, None


def rms_norm_cpu(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The CPU path, differentiable once. A weight whose gradient is not asked for costs nothing."""
    if not torch.is_grad_enabled():
        return (x * row_scale(x, eps).to(x.dtype)).mul_(weight)
    return _RMSNorm.apply(x, traced(weight), eps)
