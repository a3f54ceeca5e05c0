"""SwiGLU on a CPU: gradient for x and, where it is asked for, the weights.

There are two ways: PyTorch's products, and for bfloat16 compiled ones with the element-wise work inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ttt_docs.kernels.native.calls import LEAST_ROWS, call, multiply
from ttt_docs.kernels.swiglu.definition import batched_linear
from ttt_docs.kernels.workspace import narrow_product, traced, wanted, workspace

#: Up to this many rows (the guard's, a few tokens scored) a product is as fast as memory hands out its weights.
FEW_ROWS = 16


def per_sequence(product: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor) -> Tensor:
    """`product` of x [batch, rows, in] and a weight shared by the batch or of each sequence's own."""
    if weight.dim() == 2:
        return product(x.flatten(0, 1), weight).view(*x.shape[:2], -1)
    return torch.stack([product(row, own) for row, own in zip(x, weight, strict=True)])


def weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, native: bool = False) -> Tensor:
    """The sum over tokens of grad^T x: over the whole batch for a shared weight, else for each sequence by itself."""
    if weight.dim() == 2:
        return grad.flatten(0, 1).t() @ x.flatten(0, 1)
    if native:
        return _multiplied(grad.mT, x)
    return torch.stack([g.t() @ row for g, row in zip(grad, x, strict=True)])


def _multiplied(x: Tensor, y: Tensor) -> Tensor:
    """x [batch, rows, in] @ y [batch, in, out] by the compiled product."""
    out = x.new_empty(*x.shape[:2], y.shape[-1])
    for row, own, to in zip(x, y, out, strict=True):
        multiply(row, own, to)
    return out


def _product(x: Tensor, weight: Tensor, native: bool) -> Tensor:
    """x [batch, tokens, in] @ weight [in, out] or [batch, in, out]"""
    return _multiplied(x, weight) if native else per_sequence(narrow_product, x, weight)


def _apart(x: Tensor, columns: int) -> Tensor:
    """An empty [batch, tokens, columns] whose rows lie a cache line further apart than they need to: at distances of
    (nearly) powers of two, rows would drive each other out of the caches."""
    return x.new_empty(*x.shape[:2], columns + 32)[..., :columns]


def _activate(x: Tensor, w13: Tensor, both: Tensor | None) -> Tensor:
    """silu(w1 x) * (w3 x) for x [batch, tokens, dim], compiled; `both` [batch, tokens, 2 * hidden], if given, gets w1 x
    beside w3 x."""
    (_, tokens, dim), hidden = x.shape, w13.shape[-2] // 2
    activated = _apart(x, hidden)
    for i, own in enumerate(w13):
        kept = (None, 0) if both is None else (both[i], both.stride(1))
        weights = own[:hidden], own[hidden:]
        call("swiglu_forward", tokens, hidden, dim, x[i], *weights, *kept, activated[i], activated.stride(1))
    return activated


def _gate_gradient(grad: Tensor, w2: Tensor, both: Tensor, silu: Tensor | None) -> Tensor:
    """The gradient of w1 x beside that of w3 x [batch, tokens, 2 * hidden]. Without silu(w1 x): compiled."""
    if silu is None:
        (batch, tokens, dim), hidden = grad.shape, w2.shape[-1]
        grad_both = workspace("gradient of gate and up", (batch, tokens, both.stride(1)), grad.dtype)
        for i, own in enumerate(w2):
            call("swiglu_backward", tokens, hidden, dim, grad[i], own, both[i], grad_both[i], both.stride(1))
        return grad_both[..., : 2 * hidden]
    (gate, up), grad_hidden, grad_both = both.chunk(2, dim=-1), per_sequence(torch.mm, grad, w2), torch.empty_like(both)
    grad_gate, grad_up = grad_both.chunk(2, dim=-1)
    torch.mul(grad_hidden, silu, out=grad_up)
    torch.ops.aten.silu_backward.grad_input(grad_hidden.mul_(up), gate, grad_input=grad_gate)
    return grad_both


class _SwiGLU(torch.autograd.Function):
    """A gradient that is not asked for costs nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w13: Tensor, w2: Tensor, native: bool) -> Tensor:  # type: ignore[override]
        if native:
            both, silu = _apart(x, w13.shape[-2]), None
            hidden = _activate(x, w13, both)
        else:
            both = batched_linear(x, w13)
            gate, up = both.chunk(2, dim=-1)
            silu = F.silu(gate)
            hidden = silu * up
        ctx.save_for_backward(x, w13, w2, both, silu, hidden if ctx.needs_input_grad[2] else None)
        return _product(hidden, w2.mT, native)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, w13, w2, both, silu, hidden = ctx.saved_tensors
        native = silu is None
        grad = grad.contiguous() if native else grad
        grad_both = _gate_gradient(grad, w2, both, silu)
        grad_w2 = weight_gradient(grad, hidden, w2, native) if wanted(ctx, 2) else None
        grad_w13 = weight_gradient(grad_both, x, w13, native) if wanted(ctx, 1) else None
        return _product(grad_both, w13, native) if wanted(ctx, 0) else None, grad_w13, grad_w2, None


def swiglu_cpu(x: Tensor, w13: Tensor, w2: Tensor) -> Tensor:
    """By PyTorch's products, differentiable once."""
    if torch.is_grad_enabled():
        return _SwiGLU.apply(traced(x), traced(w13), traced(w2), False)
    gate, up = batched_linear(x, w13).chunk(2, dim=-1)
    return _product(F.silu(gate).mul_(up), w2.mT, native=False)


def _few(x: Tensor, w13: Tensor, w2: Tensor) -> Tensor:
    """SwiGLU without gradient for x [batch, at most `FEW_ROWS`, dim], compiled."""
    rows, hidden = x.shape[1], w2.shape[-1]
    out, both = torch.empty_like(x), x.new_empty(rows, 2 * hidden)
    for row, own13, own2, to in zip(x, w13, w2, out, strict=True):
        call("multiply_few", rows, 2 * hidden, x.shape[-1], row, own13, both)
        activated = F.silu(both[:, :hidden]).mul_(both[:, hidden:])
        call("multiply_few", rows, x.shape[-1], hidden, activated, own2, to)
    return out


def _dense(weight: Tensor) -> Tensor:
    """The weights without gaps inside a sequence's own. Between sequences there may be some: fast weights are views."""
    last = weight[0] if weight.dim() == 3 else weight
    return weight if last.is_contiguous() else weight.contiguous()


def swiglu_native(x: Tensor, w13: Tensor, w2: Tensor) -> Tensor:
    """By compiled products where they were made for x, differentiable once."""
    few = x.shape[1] <= FEW_ROWS and not torch.is_grad_enabled()
    fits = x.shape[-1] % 32 == w2.shape[-1] % 32 == 0 and (few or x.shape[1] >= LEAST_ROWS)
    if x.dtype != torch.bfloat16 or not fits:
        return swiglu_cpu(x, w13, w2)
    x = x.contiguous()
    w13, w2 = (_dense(w).expand(len(x), -1, -1) for w in (w13, w2))  # one per sequence, perhaps the same
    if few:
        return _few(x, w13, w2)
    if torch.is_grad_enabled():
        return _SwiGLU.apply(traced(x), traced(w13), traced(w2), True)
    return _product(_activate(x, w13, None), w2.mT, native=True)
