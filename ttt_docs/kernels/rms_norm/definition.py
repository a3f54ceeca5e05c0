"""RMSNorm, weight only: x / sqrt(mean(x^2) + eps) * weight over the last axis (METHOD section 2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ttt_docs.kernels.workspace import wide


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The definition: x [..., dim], weight [dim]; statistics in float32 (float64 stays float64)."""
    wide = x if x.dtype == torch.float64 else x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight.to(x.dtype)


def _scale(x: Tensor, eps: float) -> Tensor:
    """1 / rms of each row, in x's dtype: [..., 1]."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide(x.dtype))
    return norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_().to(x.dtype)


class _RMSNormCPU(torch.autograd.Function):
    """Three passes over x instead of the definition's six; a frozen weight costs nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:  # type: ignore[override]
        scale = _scale(x, eps)
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:  # type: ignore[override]
        x, weight, scale = ctx.saved_tensors
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (x * scale).mul_(grad).flatten(0, -2).sum(0, dtype=wide(x.dtype)).to(weight.dtype)
        weighted = (grad * weight).to(x.dtype)
        along = torch.linalg.vecdot(weighted, x).unsqueeze(-1)
        correction = (along.to(wide(x.dtype)) * scale.to(wide(x.dtype)).pow(3) / x.shape[-1]).to(x.dtype)
        return weighted.mul_(scale).addcmul_(x, correction, value=-1), grad_weight, None


def rms_norm_cpu(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The CPU path, differentiable once."""
    if not torch.is_grad_enabled():
        return (x * _scale(x, eps)).mul_(weight)
    return _RMSNormCPU.apply(x, weight, eps)
