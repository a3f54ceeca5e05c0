"""SwiGLU MLP, w2( silu(w1 x) * (w3 x) ), with weights shared by the batch or of each sequence's own.

x     [batch, tokens, dim]
w13   [2 * hidden, dim] or [batch, 2 * hidden, dim]   (w1 above w3: one product)
w2    [dim, hidden]     or [batch, dim, hidden]
"""

from __future__ import annotations

from collections.abc import Callable
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


#: Where oneDNN, on a product of few columns, splits the sum instead of the columns and loses half its speed: two
#: products of half the columns each are faster from this many rows on.
_SPLIT_ROWS = 512


def narrow_product(x: Tensor, weight: Tensor) -> Tensor:
    """x [rows, in] @ weight [in, out], out much smaller than in."""
    columns = weight.shape[1]
    if x.device.type != "cpu" or x.shape[0] < _SPLIT_ROWS or columns % 2 or columns > 1024:
        return x @ weight
    half = columns // 2
    return torch.cat([x @ weight[:, :half], x @ weight[:, half:]], dim=1)


def _per_sequence(product: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor) -> Tensor:
    """`product` of x [batch, rows, in] and a weight shared by the batch or of each sequence's own."""
    if weight.dim() == 2:
        return product(x.flatten(0, 1), weight).view(*x.shape[:2], -1)
    return torch.stack([product(row, own) for row, own in zip(x, weight, strict=True)])


def _down(hidden: Tensor, w2: Tensor) -> Tensor:
    return _per_sequence(lambda h, w: narrow_product(h, w.t()), hidden, w2)


def _weight_grad(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The sum over tokens of grad^T x: over the whole batch for a shared weight, else for each sequence by itself."""
    if weight.dim() == 2:
        return grad.flatten(0, 1).t() @ x.flatten(0, 1)
    return torch.stack([g.t() @ row for g, row in zip(grad, x, strict=True)])


class _SwiGLUCPU(torch.autograd.Function):
    """Gradient for x and, where asked for, the weights; frozen ones cost nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w13: Tensor, w2: Tensor) -> Tensor:  # type: ignore[override]
        both = batched_linear(x, w13)
        gate, up = both.chunk(2, dim=-1)
        activated = F.silu(gate)
        hidden = activated * up
        ctx.save_for_backward(x, w13, w2, both, activated, hidden if ctx.needs_input_grad[2] else None)
        return _down(hidden, w2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # type: ignore[override]
        x, w13, w2, both, activated, hidden = ctx.saved_tensors
        gate, up = both.chunk(2, dim=-1)
        grad_hidden = _per_sequence(torch.mm, grad, w2)
        grad_w2 = _weight_grad(grad, hidden, w2) if hidden is not None else None
        grad_both = torch.empty_like(both)
        grad_gate, grad_up = grad_both.chunk(2, dim=-1)
        torch.mul(grad_hidden, activated, out=grad_up)
        torch.ops.aten.silu_backward.grad_input(grad_hidden.mul_(up), gate, grad_input=grad_gate)
        grad_w13 = _weight_grad(grad_both, x, w13) if ctx.needs_input_grad[1] else None
        grad_x = _per_sequence(narrow_product, grad_both, w13) if ctx.needs_input_grad[0] else None
        return grad_x, grad_w13, grad_w2


def swiglu_cpu(x: Tensor, w13: Tensor, w2: Tensor) -> Tensor:
    """The CPU path, differentiable once."""
    if not torch.is_grad_enabled():
        gate, up = batched_linear(x, w13).chunk(2, dim=-1)
        return _down(F.silu(gate).mul_(up), w2)
    return _SwiGLUCPU.apply(x, w13, w2)
