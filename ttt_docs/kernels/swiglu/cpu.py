"""SwiGLU on a CPU: gradient for x and, where it is asked for, the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ttt_docs.kernels.swiglu.definition import batched_linear
from ttt_docs.kernels.workspace import narrow_product, traced, wanted


def per_sequence(product: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor) -> Tensor:
    """`product` of x [batch, rows, in] and a weight shared by the batch or of each sequence's own."""
    if weight.dim() == 2:
        return product(x.flatten(0, 1), weight).view(*x.shape[:2], -1)
    return torch.stack([product(row, own) for row, own in zip(x, weight, strict=True)])


def weight_gradient(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The sum over tokens of grad^T x: over the whole batch for a shared weight, else for each sequence by itself."""
    if weight.dim() == 2:
        return grad.flatten(0, 1).t() @ x.flatten(0, 1)
    return torch.stack([g.t() @ row for g, row in zip(grad, x, strict=True)])


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w13: Tensor, w2: Tensor) -> Tensor:  # type: ignore[override]
        both = batched_linear(x, w13)
        gate, up = both.chunk(2, dim=-1)
        activated = F.silu(gate)
        hidden = activated * up
        ctx.save_for_backward(x, w13, w2, both, activated, hidden if ctx.needs_input_grad[2] else None)
        return per_sequence(lambda h, w: narrow_product(h, w.t()), hidden, w2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # type: ignore[override]
        x, w13, w2, both, activated, hidden = ctx.saved_tensors
        gate, up = both.chunk(2, dim=-1)
        grad_hidden = per_sequence(torch.mm, grad, w2)
        grad_w2 = weight_gradient(grad, hidden, w2) if wanted(ctx, 2) else None
        grad_both = torch.empty_like(both)
        grad_gate, grad_up = grad_both.chunk(2, dim=-1)
        torch.mul(grad_hidden, activated, out=grad_up)
        torch.ops.aten.silu_backward.grad_input(grad_hidden.mul_(up), gate, grad_input=grad_gate)
        grad_w13 = weight_gradient(grad_both, x, w13) if wanted(ctx, 1) else None
        grad_x = per_sequence(narrow_product, grad_both, w13) if wanted(ctx, 0) else None
        return grad_x, grad_w13, grad_w2


def swiglu_cpu(x: Tensor, w13: Tensor, w2: Tensor) -> Tensor:
    """The CPU path, differentiable once. A gradient that is not asked for costs nothing."""
    if not torch.is_grad_enabled():
        gate, up = batched_linear(x, w13).chunk(2, dim=-1)
        return per_sequence(lambda h, w: narrow_product(h, w.t()), F.silu(gate).mul_(up), w2)
    return _SwiGLU.apply(traced(x), traced(w13), traced(w2))
