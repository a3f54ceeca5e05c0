"""Operations on pairs: a tensor whose batch is values in its first half and, in its second, their derivatives along one
direction (tangents).

The outer loop needs the gradient of `<g, v>`, g a chunk's inner gradient and v a fixed direction. `<g, v>` is the
chunk's loss differentiated along v, so one forward pass over pairs makes it and one backward pass makes its gradient
together with the loss's own: each operation here knows its value, its directional derivative and the gradient of both
(Pearlmutter's way to a Hessian's product with a vector). What is linear needs nothing of its own: adding, splitting,
rotating and products with shared weights treat the two halves alike. Attention is in `pair_attention.py`.

All are differentiable once, with respect to everything but the tangents of weights (the direction is given). The names
and arguments are those of `Kernels`, tensors with a batch have 2 * batch, so a decoder runs on pairs unchanged.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ttt_docs.kernels.swiglu.definition import _per_sequence, narrow_product
from ttt_docs.kernels.workspace import wide


def pair_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [2 * batch, tokens, in] times shared weight [out, in]; the bias is no part of the tangent."""
    y = F.linear(x, weight)
    if bias is None:
        return y
    value, tangent = y.chunk(2)
    return torch.cat([value + bias, tangent])


class _PairRMSNorm(torch.autograd.Function):
    """y = r x w and its tangent w (r t - r^3 mean(x t) x), with r = 1 / rms(x) and t the tangent of x."""

    @staticmethod
    def forward(ctx: Any, pair: Tensor, weight: Tensor, eps: float) -> Tensor:  # type: ignore[override]
        x, t = pair.chunk(2)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide(x.dtype))
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        along = torch.linalg.vecdot(x, t).unsqueeze(-1).to(scale.dtype) / x.shape[-1]
        ctx.save_for_backward(pair, weight, scale, along)
        y = pair * torch.cat([scale, scale]).to(x.dtype)
        y[len(x) :].addcmul_(x, (scale.pow(3) * along).to(x.dtype), value=-1)
        return y.mul_(weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # type: ignore[override]
        pair, weight, scale, along = ctx.saved_tensors
        x, t = pair.chunk(2)
        narrow, cube = x.dtype, scale.pow(3)
        grad_weight = None
        if ctx.needs_input_grad[1]:
            plain = pair * torch.cat([scale, scale]).to(narrow)
            plain[len(x) :].addcmul_(x, (cube * along).to(narrow), value=-1)
            products = (plain * grad).flatten(0, -2)
            grad_weight = products.sum(0, dtype=scale.dtype).to(weight.dtype)
        weighted = (grad * weight).to(narrow)
        a, b = weighted.chunk(2)

        def mean(u: Tensor, v: Tensor) -> Tensor:
            return torch.linalg.vecdot(u, v).unsqueeze(-1).to(scale.dtype) / x.shape[-1]

        b_x = mean(b, x)
        of_x = cube * (3 * scale.square() * along * b_x - mean(a, x) - mean(b, t))
        result = weighted * torch.cat([scale, scale]).to(narrow)
        first, second = result.chunk(2)
        first.addcmul_(b, (cube * -along).to(narrow)).addcmul_(t, (cube * -b_x).to(narrow))
        first.addcmul_(x, of_x.to(narrow))
        second.addcmul_(x, (cube * -b_x).to(narrow))
        return result, grad_weight, None


def pair_rms_norm(pair: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm of a pair [2 * batch, ..., dim]; weight [dim] is shared and has no tangent."""
    return _PairRMSNorm.apply(pair, weight, eps)


def _silu_slope(grad: Tensor, gate: Tensor) -> Tensor:
    """grad * silu'(gate)"""
    return torch.ops.aten.silu_backward(grad, gate)


def _silu_curvature(gate: Tensor) -> Tensor:
    """silu''(gate) = s (1 - s) (2 + gate (1 - 2 s)), s the sigmoid"""
    s = torch.sigmoid(gate)
    bend = torch.addcmul(gate, gate, s, value=-2).add_(2)
    return bend.mul_(s).mul_(1 - s)


class _PairSwiGLU(torch.autograd.Function):
    """Values h = silu(gate) * up, tangents of the product rule; weights [2 * batch, ...] are pairs themselves."""

    @staticmethod
    def forward(ctx: Any, pair: Tensor, w13: Tensor, w2: Tensor) -> Tensor:  # type: ignore[override]
        both = _forth(pair, w13)
        (gate, up), (gate_t, up_t) = (half.chunk(2, dim=-1) for half in both.chunk(2))
        active = F.silu(gate)
        hidden = pair.new_empty(*both.shape[:2], w2.shape[-1])
        value, tangent = hidden.chunk(2)
        torch.mul(active, up, out=value)
        torch.mul(active, up_t, out=tangent)
        tangent.add_(_silu_slope(gate_t * up, gate))
        keep = hidden if ctx.needs_input_grad[2] else None
        ctx.save_for_backward(pair, w13, w2, both, active, keep)
        return _forth(hidden, w2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # type: ignore[override]
        pair, w13, w2, both, active, hidden = ctx.saved_tensors
        (gate, up), (gate_t, up_t) = (half.chunk(2, dim=-1) for half in both.chunk(2))
        grad_hidden = _back(grad, w2)
        a, b = grad_hidden.chunk(2)  # of the value and of the tangent
        grad_both = torch.empty_like(both)
        (grad_gate, grad_up), (grad_gate_t, grad_up_t) = (half.chunk(2, dim=-1) for half in grad_both.chunk(2))
        b_up, b_gate_t = b * up, b * gate_t
        grad_gate_t.copy_(_silu_slope(b_up, gate))
        torch.mul(b, active, out=grad_up_t)
        torch.mul(a, active, out=grad_up)
        grad_up.add_(_silu_slope(b_gate_t, gate))
        grad_gate.copy_(_silu_slope((a * up).addcmul_(b, up_t), gate))
        grad_gate.addcmul_(b_up.mul_(gate_t), _silu_curvature(gate))
        grad_w2 = _weight_grad(grad, hidden, w2) if ctx.needs_input_grad[2] else None
        grad_w13 = _weight_grad(grad_both, pair, w13) if ctx.needs_input_grad[1] else None
        return _back(grad_both, w13), grad_w13, grad_w2


def _forth(pair: Tensor, weight: Tensor) -> Tensor:
    """The pair of x W^T: (x W^T, t W^T + x V^T), V the weight's tangent (none where it is shared)."""
    if weight.dim() == 2:
        return _per_sequence(lambda rows, w: narrow_product(rows, w.t()), pair, weight)
    w, v = weight.chunk(2)
    batch = len(w)
    out = pair.new_empty(*pair.shape[:2], weight.shape[1])
    for i in range(batch):
        torch.mm(pair[i], w[i].t(), out=out[i])
        torch.mm(pair[batch + i], w[i].t(), out=out[batch + i])
        out[batch + i] += pair[i] @ v[i].t()
    return out


def _back(grad: Tensor, weight: Tensor) -> Tensor:
    """The gradient of `_forth` for its pair: (a W + b V, b W)."""
    if weight.dim() == 2:
        return _per_sequence(narrow_product, grad, weight)
    w, v = weight.chunk(2)
    batch = len(w)
    out = grad.new_empty(*grad.shape[:2], weight.shape[2])
    for i in range(batch):
        out[i] = narrow_product(grad[i], w[i]) + narrow_product(grad[batch + i], v[i])
        out[batch + i] = narrow_product(grad[batch + i], w[i])
    return out


def _weight_grad(grad: Tensor, pair: Tensor, weight: Tensor) -> Tensor:
    """The gradient of `_forth` for its weight; the tangent's is left at zero, as a direction is given."""
    if weight.dim() == 2:
        return grad.flatten(0, 1).t() @ pair.flatten(0, 1)
    batch = len(weight) // 2
    out = torch.zeros_like(weight)
    for i in range(batch):
        torch.mm(grad[i].t(), pair[i], out=out[i])
        out[i].addmm_(grad[batch + i].t(), pair[batch + i])
    return out


def pair_swiglu(pair: Tensor, w13: Tensor, w2: Tensor) -> Tensor:
    """SwiGLU of a pair [2 * batch, tokens, dim]; weights are shared or, each sequence its own, pairs."""
    return _PairSwiGLU.apply(pair, w13, w2)
