"""RMSNorm, weight only: x / sqrt(mean(x^2) + eps) * weight over the last axis (docs/method.md section 2)."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The definition: x [..., dim], weight [dim]; statistics in float32 (float64 stays float64)."""
    wide = x if x.dtype == torch.float64 else x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight.to(x.dtype)
