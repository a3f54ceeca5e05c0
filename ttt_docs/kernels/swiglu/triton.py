"""SwiGLU MLP on the device, twice differentiable, with weights shared by the batch or of each sequence's own.

The products go to cuBLAS. What stands between them is one element-wise pass: each input is read once, each output
written once. Kept for the backward pass are x and the first product; the activation is made again there, in the pass
that makes the gradient of the first product.

`both` [tokens, 2 * HIDDEN] is the first product: the gates and, right of them, the ups; h = silu(gate) * up. With s =
sigmoid(gate), silu' = s (1 + gate (1 - s)) and silu'' = s (1 - s) (2 + gate (1 - 2 s)).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ttt_docs.kernels.swiglu.definition import batched_linear
from ttt_docs.kernels.triton_common import load, second_derivative
from ttt_docs.kernels.workspace import needs_grad, traced, wanted

#: Elements per program: 16 bytes per thread and load, twice.
BLOCK = 2048
WARPS = 4


@triton.jit
def _offsets(count, HIDDEN: tl.constexpr, BLOCK: tl.constexpr):
    """A program's elements in [tokens, HIDDEN], their gates in [tokens, 2 * HIDDEN], and which of them exist."""
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return element, element + element // HIDDEN * HIDDEN, element < count


@triton.jit
def _load_both(both, gates, inside, HIDDEN: tl.constexpr):
    return load(both + gates, inside), load(both + gates + HIDDEN, inside)


@triton.jit
def gate_forward(both, h, count, HIDDEN: tl.constexpr, BLOCK: tl.constexpr):
    element, gates, inside = _offsets(count, HIDDEN, BLOCK)
    gate, up = _load_both(both, gates, inside, HIDDEN)
    tl.store(h + element, gate * tl.sigmoid(gate) * up, mask=inside)


@triton.jit
def gate_backward(
    both, grad_h, grad_both, h, count, WITH_H: tl.constexpr, HIDDEN: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """grad_both from grad_h; with WITH_H also h again, which the forward pass did not keep."""
    element, gates, inside = _offsets(count, HIDDEN, BLOCK)
    gate, up = _load_both(both, gates, inside, HIDDEN)
    grad = load(grad_h + element, inside)
    s = tl.sigmoid(gate)
    silu = gate * s
    tl.store(grad_both + gates, grad * up * (s + silu * (1.0 - s)), mask=inside)
    tl.store(grad_both + gates + HIDDEN, grad * silu, mask=inside)
    if WITH_H:
        tl.store(h + element, silu * up, mask=inside)


@triton.jit
def gate_second(
    both, grad_h, a, b, of_grad_h, of_both, count, WITH_B: tl.constexpr, HIDDEN: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Gradients for grad_h and for both, given the cotangents a of grad_both and (WITH_B) b of h."""
    element, gates, inside = _offsets(count, HIDDEN, BLOCK)
    gate, up = _load_both(both, gates, inside, HIDDEN)
    grad = load(grad_h + element, inside)
    a_gate, a_up = _load_both(a, gates, inside, HIDDEN)
    s = tl.sigmoid(gate)
    silu = gate * s
    slope = s + silu * (1.0 - s)
    bend = s * (1.0 - s) * (2.0 + gate * (1.0 - 2.0 * s))
    d_grad = a_gate * up * slope + a_up * silu
    d_up = a_gate * grad * slope
    d_gate = a_gate * grad * up * bend + a_up * grad * slope
    if WITH_B:
        cotangent = load(b + element, inside)
        d_up += cotangent * silu
        d_gate += cotangent * up * slope
    tl.store(of_grad_h + element, d_grad, mask=inside)
    tl.store(of_both + gates, d_gate, mask=inside)
    tl.store(of_both + gates + HIDDEN, d_up, mask=inside)


def _launch(kernel: Any, both: Tensor, *others: Tensor | None, **options: bool) -> None:
    count, hidden = both.numel() // 2, both.shape[-1] // 2
    grid = (triton.cdiv(count, BLOCK),)
    kernel[grid](both, *others, count, HIDDEN=hidden, BLOCK=BLOCK, num_warps=WARPS, **options)


def _empty_hidden(both: Tensor) -> Tensor:
    return both.new_empty(*both.shape[:-1], both.shape[-1] // 2)


def _activated(both: Tensor) -> Tensor:
    h = _empty_hidden(both)
    _launch(gate_forward, both, h)
    return h


def _activation_grad(both: Tensor, grad_h: Tensor, with_h: bool) -> tuple[Tensor, Tensor | None]:
    """grad_both and, if asked for, h."""
    grad_both, h = torch.empty_like(both), _empty_hidden(both) if with_h else None
    _launch(gate_backward, both, grad_h, grad_both, h, WITH_H=with_h)
    return grad_both, h


def _back(grad: Tensor, weight: Tensor) -> Tensor:
    """grad [batch, tokens, out] times weight [out, in] or [batch, out, in]."""
    if weight.dim() == 2:
        return grad @ weight
    return (grad[0] @ weight[0]).unsqueeze(0) if weight.shape[0] == 1 else torch.bmm(grad, weight)


def _weight_grad(grad: Tensor, x: Tensor, like: Tensor) -> Tensor:
    """The sum over tokens of grad^T x: [out, in] over the batch too, or [batch, out, in]."""
    if like.dim() == 2:
        return grad.flatten(0, 1).t() @ x.flatten(0, 1)
    return (grad[0].t() @ x[0]).unsqueeze(0) if like.shape[0] == 1 else torch.bmm(grad.transpose(1, 2), x)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w13: Tensor, w2: Tensor) -> Tensor:  # type: ignore[override]
        both = batched_linear(x, w13)
        ctx.save_for_backward(x, w13, w2, both)
        return batched_linear(_activated(both), w2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, w13, w2, both = ctx.saved_tensors
        return _SwiGLUBackward.apply(x, w13, w2, grad.contiguous(), both, *(wanted(ctx, i) for i in range(3)))


class _SwiGLUBackward(torch.autograd.Function):
    """Gradients for x, w13 and w2, those that are wanted; `both` = x w13^T is a constant to autograd."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, w13: Tensor, w2: Tensor, grad: Tensor, both: Tensor, *asked: bool
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(x, w13, w2, grad, both)
        ctx.set_materialize_grads(False)
        for_x, for_w13, for_w2 = asked
        grad_both, h = _activation_grad(both, _back(grad, w2), with_h=for_w2)
        return (
            _back(grad_both, w13) if for_x else None,
            _weight_grad(grad_both, x, w13) if for_w13 else None,
            _weight_grad(grad, h, w2) if h is not None else None,
        )

    @staticmethod
    @second_derivative
    def backward(ctx: Any, of_x: Tensor | None, of_w13: Tensor | None, of_w2: Tensor | None) -> tuple[Any, ...]:
        x, w13, w2, grad, both = ctx.saved_tensors
        grad_h = _back(grad, w2)
        # Cotangents: a of grad_both (through the gradients for x and w13), b of h (through the one for w2).
        a = _sum(
            None if of_x is None else batched_linear(of_x, w13), None if of_w13 is None else batched_linear(x, of_w13)
        )
        a = torch.zeros_like(both) if a is None else a
        b = None if of_w2 is None else _back(grad, of_w2)
        of_grad_h, of_both = torch.empty_like(grad_h), torch.empty_like(both)
        _launch(gate_second, both, grad_h, a, b, of_grad_h, of_both, WITH_B=b is not None)
        grad_both, h = _activation_grad(both, grad_h, with_h=of_w2 is not None)

        next_x = next_w13 = next_w2 = next_grad = None
        if ctx.needs_input_grad[0]:
            next_x = _sum(_back(of_both, w13), None if of_w13 is None else _back(grad_both, of_w13))
        if ctx.needs_input_grad[1]:
            next_w13 = _sum(_weight_grad(of_both, x, w13), None if of_x is None else _weight_grad(grad_both, of_x, w13))
        if ctx.needs_input_grad[2]:
            next_w2 = _weight_grad(grad, of_grad_h, w2)
        if ctx.needs_input_grad[3]:
            next_grad = _sum(batched_linear(of_grad_h, w2), None if h is None else batched_linear(h, of_w2))  # type: ignore[arg-type]
        return next_x, next_w13, next_w2, next_grad


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """a + b of what there is, in place."""
    if a is None or b is None:
        return b if a is None else a
    return a.add_(b)


def swiglu_triton(x: Tensor, w13: Tensor, w2: Tensor) -> Tensor:
    """As `swiglu_reference`, differentiable twice with respect to all three."""
    if needs_grad(x, w13, w2):
        return _SwiGLU.apply(traced(x), traced(w13), traced(w2))
    return batched_linear(_activated(batched_linear(x, w13)), w2)
