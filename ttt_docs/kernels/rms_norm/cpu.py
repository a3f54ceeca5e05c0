"""RMSNorm on a CPU: three passes over x instead of the definition's six, or one compiled pass in bfloat16."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ttt_docs.kernels.native.calls import LEAST_ROWS, call
from ttt_docs.kernels.workspace import traced, wanted, wide


def row_scale(x: Tensor, eps: float) -> Tensor:
    """1 / rms of each row, [..., 1] in float32 (float64 stays float64)."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide(x.dtype))
    return norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def weight_gradient(normed: Tensor, grad: Tensor, weight: Tensor) -> Tensor:
    """The weight's gradient [dim]; `normed` is x / rms(x) and is overwritten."""
    return normed.mul_(grad).flatten(0, -2).sum(0, dtype=wide(normed.dtype)).to(weight.dtype)


def _forward(x: Tensor, weight: Tensor, eps: float, native: bool) -> tuple[Tensor, Tensor]:
    """The norm, and 1 / rms of each row [..., 1]: in x's dtype, or float32 from the compiled pass."""
    if native:
        out, scale = torch.empty_like(x), x.new_empty(*x.shape[:-1], 1, dtype=torch.float32)
        call("rms_norm_forward", scale.numel(), x.shape[-1], eps, x, weight, out, scale)
        return out, scale
    scale = row_scale(x, eps).to(x.dtype)
    return (x * scale).mul_(weight), scale


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, native: bool) -> Tensor:  # type: ignore[override]
        out, scale = _forward(x, weight, eps, native)
        ctx.save_for_backward(x, weight, scale)
        ctx.native = native
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, scale = ctx.saved_tensors
        grad_weight = weight_gradient((x * scale).to(x.dtype), grad, weight) if wanted(ctx, 1) else None
        if ctx.native:
            grad_x = torch.empty_like(x)
            call("rms_norm_backward", scale.numel(), x.shape[-1], grad.contiguous(), x, weight, scale, grad_x)
            return grad_x, grad_weight, None, None
        weighted = (grad * weight).to(x.dtype)
        along = torch.linalg.vecdot(weighted, x).unsqueeze(-1)
        correction = (along.to(wide(x.dtype)) * scale.to(wide(x.dtype)).pow(3) / x.shape[-1]).to(x.dtype)
        return weighted.mul_(scale).addcmul_(x, correction, value=-1), grad_weight, None, None


def _rms_norm(x: Tensor, weight: Tensor, eps: float, native: bool) -> Tensor:
    if torch.is_grad_enabled():
        return _RMSNorm.apply(x, traced(weight), eps, native)
    return _forward(x, weight, eps, native)[0]


def rms_norm_cpu(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """By PyTorch, differentiable once. A weight whose gradient is not asked for costs nothing."""
    return _rms_norm(x, weight, eps, native=False)


def rms_norm_native(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The same in one compiled pass where that was made for x, on CPUs with AMX or AVX-512."""
    rows, dim = x.shape[:-1].numel(), x.shape[-1]
    fits = x.dtype == weight.dtype == torch.bfloat16 and dim % 16 == 0 and rows >= LEAST_ROWS
    return _rms_norm(x.contiguous() if fits else x, weight, eps, native=fits)
