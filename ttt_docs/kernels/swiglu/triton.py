"""SwiGLU MLP on the device, twice differentiable, with shared or per-sequence weights.

The products go to cuBLAS; what stands between them is one pass each. Kept for the backward pass: x and the first
product. The activation is made again there, in the pass that makes the gradient of the first product.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from ttt_docs.kernels.swiglu.definition import batched_linear
from ttt_docs.kernels.swiglu.triton_kernels import gate_backward, gate_forward, gate_second
from ttt_docs.kernels.triton_tiles import accumulator, traced, wanted

#: Elements per program: 16 bytes per thread and load, twice.
BLOCK = 2048
WARPS = 4


def _launch(both: Tensor) -> tuple[tuple[int], int, dict[str, Any]]:
    hidden = both.shape[-1] // 2
    count = both.numel() // 2
    meta = {"HIDDEN": hidden, "BLOCK": BLOCK, "ACC": accumulator(both.dtype), "num_warps": WARPS}
    return (triton.cdiv(count, BLOCK),), count, meta


def _half(both: Tensor) -> Tensor:
    return both.new_empty(*both.shape[:-1], both.shape[-1] // 2)


def _activate(both: Tensor) -> Tensor:
    h = _half(both)
    grid, count, meta = _launch(both)
    gate_forward[grid](both, h, count, **meta)
    return h


def _deactivate(both: Tensor, grad_h: Tensor, with_h: bool) -> tuple[Tensor, Tensor | None]:
    """grad_both and, if asked for, h."""
    grad_both, h = torch.empty_like(both), _half(both) if with_h else None
    grid, count, meta = _launch(both)
    gate_backward[grid](both, grad_h, grad_both, h, count, WITH_H=with_h, **meta)
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
        return batched_linear(_activate(both), w2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, w13, w2, both = ctx.saved_tensors
        return _SwiGLUBackward.apply(x, w13, w2, grad.contiguous(), both, *(wanted(ctx, i) for i in range(3)))


class _SwiGLUBackward(torch.autograd.Function):
    """Gradients for x, w13 and w2, those that are wanted; `both` = x w13^T is a constant to autograd."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, w13: Tensor, w2: Tensor, grad: Tensor, both: Tensor,
        for_x: bool, for_w13: bool, for_w2: bool,
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        ctx.save_for_backward(x, w13, w2, grad, both)
        ctx.set_materialize_grads(False)
        grad_both, h = _deactivate(both, _back(grad, w2), with_h=for_w2)
        return (
            _back(grad_both, w13) if for_x else None,
            _weight_grad(grad_both, x, w13) if for_w13 else None,
            _weight_grad(grad, h, w2) if h is not None else None,
        )

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_x: Tensor | None, of_w13: Tensor | None, of_w2: Tensor | None) -> tuple[Any, ...]:  # type: ignore[override]
        x, w13, w2, grad, both = ctx.saved_tensors
        if of_x is None and of_w13 is None and of_w2 is None:
            return (None,) * 8
        needs_x, needs_w13, needs_w2, needs_grad = ctx.needs_input_grad[:4]
        grad_h = _back(grad, w2)
        # Cotangents: a of grad_both (through the gradients for x and w13), b of h (through the one for w2).
        a = torch.zeros_like(both) if of_x is None and of_w13 is None else None
        if of_x is not None:
            a = batched_linear(of_x, w13)
        if of_w13 is not None:
            through = batched_linear(x, of_w13)
            a = through if a is None else a.add_(through)
        b = None if of_w2 is None else _back(grad, of_w2)

        of_grad_h, of_both = torch.empty_like(grad_h), torch.empty_like(both)
        grid, count, meta = _launch(both)
        gate_second[grid](both, grad_h, a, b, of_grad_h, of_both, count, WITH_B=b is not None, **meta)
        grad_both, h = _deactivate(both, grad_h, with_h=of_w2 is not None)

        next_x = next_w13 = next_w2 = next_grad = None
        if needs_x:
            next_x = _back(of_both, w13)
            if of_w13 is not None:
                next_x += _back(grad_both, of_w13)
        if needs_w13:
            next_w13 = _weight_grad(of_both, x, w13)
            if of_x is not None:
                next_w13 += _weight_grad(grad_both, of_x, w13)
        if needs_w2:
            next_w2 = _weight_grad(grad, of_grad_h, w2)
        if needs_grad:
            next_grad = batched_linear(of_grad_h, w2)
            if of_w2 is not None:
                assert h is not None
                next_grad += batched_linear(h, of_w2)
        return next_x, next_w13, next_w2, next_grad, None, None, None, None


def swiglu_triton(x: Tensor, w13: Tensor, w2: Tensor) -> Tensor:
    """As `swiglu_reference`, differentiable twice with respect to all three."""
    if torch.is_grad_enabled() and (x.requires_grad or w13.requires_grad or w2.requires_grad):
        return _SwiGLU.apply(traced(x), traced(w13), traced(w2))
    return batched_linear(_activate(batched_linear(x, w13)), w2)
