"""SwiGLU MLP, w2( silu(w1 x) * (w3 x) ), with weights shared by the batch or of each sequence's own.

x     [batch, tokens, dim]
w13   [2 * hidden, dim] or [batch, 2 * hidden, dim]   (w1 above w3: one product)
w2    [dim, hidden]     or [batch, dim, hidden]
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def batched_linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [batch, tokens, in] times weight [out, in] or, each sequence its own, [batch, out, in]."""
    if weight.dim() == 2:
        return F.linear(x, weight)
    if weight.shape[0] == 1:  # one product, not a batched one: oneDNN and cuBLAS are faster at it
        return F.linear(x, weight[0])
    if x.device.type == "cpu" and x.shape[1] >= 128:  # one document at a time already fills two cores
        return torch.stack([F.linear(row, own) for row, own in zip(x, weight, strict=True)])
    return torch.bmm(x, weight.transpose(1, 2))


def swiglu_reference(x: Tensor, w13: Tensor, w2: Tensor) -> Tensor:
    """The definition, differentiable any number of times."""
    gate, up = batched_linear(x, w13).chunk(2, dim=-1)
    return batched_linear(F.silu(gate) * up, w2)


def _outer(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Gradient of a weight: sum over tokens of grad^T x, in the weight's shape."""
    if weight.shape[0] == 1:
        return (grad[0].t() @ x[0]).unsqueeze(0)
    return torch.stack([g.t() @ row for g, row in zip(grad, x, strict=True)])


def _back(grad: Tensor, weight: Tensor) -> Tensor:
    """Gradient of a product's input."""
    if weight.dim() == 2:
        return grad @ weight
    if weight.shape[0] == 1:
        return grad @ weight[0]
    return torch.stack([g @ own for g, own in zip(grad, weight, strict=True)])


class _SwiGLUCPU(torch.autograd.Function):
    """Gradient for x and, where asked for, per-sequence weights; frozen weights cost nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w13: Tensor, w2: Tensor) -> Tensor:  # type: ignore[override]
        both = batched_linear(x, w13)
        gate, up = both.chunk(2, dim=-1)
        ctx.save_for_backward(x, w13, w2, both)
        return batched_linear(F.silu(gate).mul_(up), w2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # type: ignore[override]
        x, w13, w2, both = ctx.saved_tensors
        gate, up = both.chunk(2, dim=-1)
        activated = F.silu(gate)
        grad_hidden = _back(grad, w2)
        grad_w2 = _outer(grad, activated * up, w2) if ctx.needs_input_grad[2] else None
        grad_both = torch.empty_like(both)
        grad_gate, grad_up = grad_both.chunk(2, dim=-1)
        torch.mul(grad_hidden, activated, out=grad_up)
        torch.ops.aten.silu_backward.grad_input(grad_hidden.mul_(up), gate, grad_input=grad_gate)
        grad_w13 = _outer(grad_both, x, w13) if ctx.needs_input_grad[1] else None
        grad_x = _back(grad_both, w13) if ctx.needs_input_grad[0] else None
        return grad_x, grad_w13, grad_w2


def swiglu_cpu(x: Tensor, w13: Tensor, w2: Tensor) -> Tensor:
    """The CPU path of reading, differentiable once."""
    if not torch.is_grad_enabled():
        gate, up = batched_linear(x, w13).chunk(2, dim=-1)
        return batched_linear(F.silu(gate).mul_(up), w2)
    return _SwiGLUCPU.apply(x, w13, w2)
