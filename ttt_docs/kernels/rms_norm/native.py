"""RMSNorm in one compiled pass, in bfloat16 on CPUs with AMX or AVX-512."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ttt_docs.kernels.native.calls import LEAST_ROWS, call
from ttt_docs.kernels.rms_norm.cpu import rms_norm_cpu, weight_gradient
from ttt_docs.kernels.workspace import traced, wanted


def _forward(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm, and 1 / rms of each row [...] (float32)."""
    out, scale = torch.empty_like(x), x.new_empty(x.shape[:-1], dtype=torch.float32)
    call("rms_norm_forward", scale.numel(), x.shape[-1], eps, x, weight, out, scale)
    return out, scale


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:  # type: ignore[override]
        out, scale = _forward(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:  # type: ignore[override]
        x, weight, scale = ctx.saved_tensors
        grad, grad_x = grad.contiguous(), torch.empty_like(x)
        call("rms_norm_backward", scale.numel(), x.shape[-1], grad, x, weight, scale, grad_x)
        normed = (x * scale.unsqueeze(-1)).to(x.dtype) if wanted(ctx, 1) else None
        return grad_x, None if normed is None else weight_gradient(normed, grad, weight), None


def rms_norm_native(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As `rms_norm_cpu`, which still does what the compiled one was not made for."""
    narrow = x.dtype == weight.dtype == torch.bfloat16
    if not narrow or x.shape[-1] % 16 or x.shape[:-1].numel() < LEAST_ROWS:
        return rms_norm_cpu(x, weight, eps)
    x = x.contiguous()
    return _RMSNorm.apply(x, traced(weight), eps) if torch.is_grad_enabled() else _forward(x, weight, eps)[0]
