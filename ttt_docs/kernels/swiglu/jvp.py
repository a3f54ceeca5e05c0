"""SwiGLU of values and tangents.

A dual is a tensor whose batch holds values in its first half and, in its second, their derivatives along one direction
(tangents). The outer loop needs the gradient of `<g, v>`, g a chunk's inner gradient and v a fixed direction. `<g, v>`
is the chunk's loss differentiated along v. So one forward pass over duals makes it, and one backward pass makes its
gradient together with the loss's own: each operation knows its value, its directional derivative and the gradient of
both (Pearlmutter's way to a Hessian's product with a vector). What is linear needs nothing of its own: adding,
splitting, rotating and products with shared weights treat the two halves alike.

All `jvp.py` are differentiable once, with respect to everything but the tangents of weights (the direction is given).
They have the arguments of the other kernels, and 2 * batch where those have a batch, so a decoder runs on duals
unchanged.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ttt_docs.kernels.swiglu import cpu
from ttt_docs.kernels.workspace import narrow_product


def _silu_slope(grad: Tensor, gate: Tensor) -> Tensor:
    """grad * silu'(gate)"""
    return torch.ops.aten.silu_backward(grad, gate)


def _silu_curvature(gate: Tensor) -> Tensor:
    """silu''(gate) = s (1 - s) (2 + gate (1 - 2 s)), s the sigmoid"""
    s = torch.sigmoid(gate)
    bend = torch.addcmul(gate, gate, s, value=-2).add_(2)
    return bend.mul_(s).mul_(1 - s)


class _SwiGLUJvp(torch.autograd.Function):
    """Values h = silu(gate) * up, tangents of the product rule; weights [2 * batch, ...] are duals themselves."""

    @staticmethod
    def forward(ctx: Any, dual: Tensor, w13: Tensor, w2: Tensor) -> Tensor:  # type: ignore[override]
        both = _product(dual, w13)
        (gate, up), (gate_t, up_t) = (half.chunk(2, dim=-1) for half in both.chunk(2))
        active = F.silu(gate)
        hidden = dual.new_empty(*both.shape[:2], w2.shape[-1])
        value, tangent = hidden.chunk(2)
        torch.mul(active, up, out=value)
        torch.mul(active, up_t, out=tangent)
        tangent.add_(_silu_slope(gate_t * up, gate))
        ctx.save_for_backward(dual, w13, w2, both, active, hidden if ctx.needs_input_grad[2] else None)
        return _product(hidden, w2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # type: ignore[override]
        dual, w13, w2, both, active, hidden = ctx.saved_tensors
        (gate, up), (gate_t, up_t) = (half.chunk(2, dim=-1) for half in both.chunk(2))
        a, b = _product_gradient(grad, w2).chunk(2)  # of the value and of the tangent
        grad_both = torch.empty_like(both)
        (grad_gate, grad_up), (grad_gate_t, grad_up_t) = (half.chunk(2, dim=-1) for half in grad_both.chunk(2))
        b_up, b_gate_t = b * up, b * gate_t
        grad_gate_t.copy_(_silu_slope(b_up, gate))
        torch.mul(b, active, out=grad_up_t)
        torch.mul(a, active, out=grad_up)
        grad_up.add_(_silu_slope(b_gate_t, gate))
        grad_gate.copy_(_silu_slope((a * up).addcmul_(b, up_t), gate))
        grad_gate.addcmul_(b_up.mul_(gate_t), _silu_curvature(gate))
        grad_w2 = _weight_gradient(grad, hidden, w2) if ctx.needs_input_grad[2] else None
        grad_w13 = _weight_gradient(grad_both, dual, w13) if ctx.needs_input_grad[1] else None
        return _product_gradient(grad_both, w13), grad_w13, grad_w2


def _product(dual: Tensor, weight: Tensor) -> Tensor:
    """The dual of x W^T: (x W^T, t W^T + x V^T), V the weight's tangent (none where it is shared)."""
    if weight.dim() == 2:
        return cpu.per_sequence(lambda rows, w: narrow_product(rows, w.t()), dual, weight)
    w, v = weight.chunk(2)
    batch = len(w)
    out = dual.new_empty(*dual.shape[:2], weight.shape[1])
    for i in range(batch):
        torch.mm(dual[i], w[i].t(), out=out[i])
        torch.mm(dual[batch + i], w[i].t(), out=out[batch + i])
        out[batch + i] += dual[i] @ v[i].t()
    return out


def _product_gradient(grad: Tensor, weight: Tensor) -> Tensor:
    """The gradient of `_product` for its dual: (a W + b V, b W)."""
    if weight.dim() == 2:
        return cpu.per_sequence(narrow_product, grad, weight)
    w, v = weight.chunk(2)
    a, b = grad.chunk(2)
    values = [narrow_product(a[i], w[i]) + narrow_product(b[i], v[i]) for i in range(len(w))]
    return torch.stack([*values, *map(narrow_product, b, w)])


def _weight_gradient(grad: Tensor, dual: Tensor, weight: Tensor) -> Tensor:
    """The gradient of `_product` for its weight; the tangent's is left at zero, as a direction is given."""
    if weight.dim() == 2:
        return cpu.weight_gradient(grad, dual, weight)
    batch = len(weight) // 2
    out = torch.zeros_like(weight)
    for i in range(batch):
        torch.mm(grad[i].t(), dual[i], out=out[i])
        out[i].addmm_(grad[batch + i].t(), dual[batch + i])
    return out


def swiglu_jvp(dual: Tensor, w13: Tensor, w2: Tensor) -> Tensor:
    """SwiGLU of a dual [2 * batch, tokens, dim]; weights are shared or, each sequence its own, duals."""
    return _SwiGLUJvp.apply(dual, w13, w2)
