"""RMSNorm in one compiled pass: reading in bfloat16 on CPUs with AMX or AVX-512."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ttt_docs.kernels.native.calls import LEAST_ROWS, call
from ttt_docs.kernels.rms_norm.definition import rms_norm_cpu


def _forward(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm, and 1 / rms of each row (float32)."""
    rows, dim = x.shape[:-1].numel(), x.shape[-1]
    out, scale = torch.empty_like(x), x.new_empty(rows, dtype=torch.float32)
    call("rms_norm_forward", rows, dim, eps, x, weight, out, scale)
    return out, scale


class _RMSNormNative(torch.autograd.Function):
    """No gradient for the weight (frozen while reading)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:  # type: ignore[override]
        out, scale = _forward(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        x, weight, scale = ctx.saved_tensors
        grad_x = torch.empty_like(x)
        call("rms_norm_backward", len(scale), x.shape[-1], grad.contiguous(), x, weight, scale, grad_x)
        return grad_x, None, None


def rms_norm_native(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As `rms_norm_cpu`, which still does what the compiled one was not made for."""
    if x.dtype != torch.bfloat16 or x.shape[-1] % 16 or x.shape[:-1].numel() < LEAST_ROWS:
        return rms_norm_cpu(x, weight, eps)
    x = x.contiguous()
    return _RMSNormNative.apply(x, weight, eps) if torch.is_grad_enabled() else _forward(x, weight, eps)[0]
