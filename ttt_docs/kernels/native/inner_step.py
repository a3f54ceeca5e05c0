"""The inner step in compiled passes over memory: bfloat16 gradients and products, float32 weights."""

from __future__ import annotations

import torch
from torch import Tensor

from ttt_docs.kernels.inner_step import gradient_norm_reference, weight_step_reference
from ttt_docs.kernels.native.calls import call

#: Numbers of a gradient that are summed by one thread; the order of a sum depends on nothing else.
PIECE = 1 << 15


def _fits(grad: Tensor) -> bool:
    return grad.dtype == torch.bfloat16 and grad[0].numel() % 32 == 0 and grad[0].is_contiguous()


def gradient_norm_native(grad: Tensor) -> Tensor:
    """As `gradient_norm_reference`, which still does what the compiled one was not made for."""
    if not _fits(grad):
        return gradient_norm_reference(grad)
    count = grad[0].numel()
    sums = torch.empty(grad.shape[0], -(-count // PIECE))
    for own, to in zip(grad, sums, strict=True):
        call("squares", count, PIECE, own, to)
    return sums.double().sum(dim=1).sqrt().float()


def weight_step_native(weight: Tensor, grad: Tensor, size: Tensor, product: Tensor) -> Tensor:
    """As `weight_step_reference`, which still does what the compiled one was not made for."""
    kinds = weight.dtype, product.dtype
    if not _fits(grad) or kinds != (torch.float32, torch.bfloat16) or not weight[0].is_contiguous():
        return weight_step_reference(weight, grad, size, product)
    after = torch.empty_like(weight, memory_format=torch.contiguous_format)
    for w, g, s, to, p in zip(weight, grad, size.tolist(), after, product, strict=True):
        call("weight_step", w.numel(), w, g, -s, to, p)
    return after
