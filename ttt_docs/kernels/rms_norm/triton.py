"""RMSNorm on the device, twice differentiable, and a residual with the norms around it in one pass.

A program holds whole rows: one read of each input, one write of each output. All matrices are contiguous [rows, DIM].
With r = (mean(x^2) + eps)^(-1/2),
v = dy * w, n the length of a row and sums over it:

    y  = r x w
    dx = r v - r^3 (x.v) x / n            dw = sum over rows of r x dy
    cotangents a of dx, e of dw; q = x.a, t = x.v, z = x.(e dy):
    grad_dy = w (r a - r^3 q x / n) + r e x
    grad_w  = sum over rows of dy (r a - r^3 q x / n)
    grad_x  = r e dy - r^3 ((a.v + z) x + t a + q v) / n + 3 r^5 q t x / n^2
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ttt_docs.kernels.triton_common import load, second_derivative, sums_of
from ttt_docs.kernels.workspace import needs_grad, traced, wanted, wide

#: Programs that keep a device busy. Where there would be more, each does several groups of rows one after the other,
#: and fewer shares of the weight's gradient go through memory.
PROGRAMS = 1024


@triton.jit
def _rows_of(group, rows, DIM, WIDTH, ROWS):
    """Of a group of rows: where they lie in a matrix [ROWS, WIDTH], and which elements exist."""
    row = group.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    return row[:, None] * DIM + column[None, :], (row[:, None] < rows) & (column[None, :] < DIM)


@triton.jit
def _load_row(x, DIM, WIDTH):
    column = tl.arange(0, WIDTH)
    return load(x + column, column < DIM)[None, :]


@triton.jit
def _scale(x, eps, DIM):
    """1 / rms of each row."""
    return 1.0 / tl.sqrt(tl.sum(x * x, 1) / DIM + eps)


@triton.jit
def norm_forward(
    x, delta, post_weight, weight, total, y, rows, ADD: tl.constexpr, POST: tl.constexpr,
    EPS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """y = the norm of x. With ADD of total = x + delta (with POST, x + the norm of delta): a residual and the next
    pre-norm."""
    offsets, inside = _rows_of(tl.program_id(0), rows, DIM, WIDTH, ROWS)
    if ADD:  # x is loaded after the post-norm: it would hold registers meanwhile
        added = load(delta + offsets, inside)
        if POST:
            w = _load_row(post_weight, DIM, WIDTH)
            added = added * _scale(added, EPS, DIM)[:, None] * w
        value = load(x + offsets, inside) + added
        tl.store(total + offsets, value, mask=inside)
        value = value.to(total.dtype.element_ty).to(value.dtype)  # as the backward pass will read it
    else:
        value = load(x + offsets, inside)
    w = _load_row(weight, DIM, WIDTH)
    tl.store(y + offsets, value * _scale(value, EPS, DIM)[:, None] * w, mask=inside)


@triton.jit
def norm_backward(
    x, weight, grad_y, addend, grad_x, grad_weight, rows,
    ADD: tl.constexpr, FOR_WEIGHT: tl.constexpr, EPS: tl.constexpr,
    DIM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, TIMES: tl.constexpr,
):  # fmt: skip
    """dx (plus `addend`: the gradient that reaches x past the norm) and each program's share of dw [programs, DIM]."""
    w = _load_row(weight, DIM, WIDTH)
    share = tl.zeros([WIDTH], dtype=sums_of(x.dtype.element_ty))
    for step in range(TIMES):
        offsets, inside = _rows_of(tl.program_id(0) * TIMES + step, rows, DIM, WIDTH, ROWS)
        value = load(x + offsets, inside)
        dy = load(grad_y + offsets, inside)
        r = _scale(value, EPS, DIM)
        v = dy * w
        t = tl.sum(value * v, 1)
        dx = r[:, None] * v - (r * r * r * t / DIM)[:, None] * value
        if ADD:
            dx += load(addend + offsets, inside)
        tl.store(grad_x + offsets, dx, mask=inside)
        if FOR_WEIGHT:
            share += tl.sum(dy * value * r[:, None], 0)
    if FOR_WEIGHT:
        column = tl.arange(0, WIDTH)
        tl.store(grad_weight + tl.program_id(0) * DIM + column, share, mask=column < DIM)


@triton.jit
def norm_second(
    x, weight, grad_y, a, e, grad_x, grad_grad_y, grad_weight, rows,
    WITH_E: tl.constexpr, FOR_WEIGHT: tl.constexpr, EPS: tl.constexpr,
    DIM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, TIMES: tl.constexpr,
):  # fmt: skip
    share = tl.zeros([WIDTH], dtype=sums_of(x.dtype.element_ty))
    for step in range(TIMES):
        offsets, inside = _rows_of(tl.program_id(0) * TIMES + step, rows, DIM, WIDTH, ROWS)
        value = load(x + offsets, inside)
        dy = load(grad_y + offsets, inside)
        cotangent = load(a + offsets, inside)
        w = _load_row(weight, DIM, WIDTH)
        r = _scale(value, EPS, DIM)
        cube = r * r * r / DIM
        v = dy * w
        q = tl.sum(value * cotangent, 1)
        t = tl.sum(value * v, 1)
        p = tl.sum(cotangent * v, 1)
        rejected = r[:, None] * cotangent - (cube * q)[:, None] * value
        if FOR_WEIGHT:
            share += tl.sum(dy * rejected, 0)
        d_dy = rejected * w
        d_x = -(cube * t)[:, None] * cotangent - (cube * q)[:, None] * v
        if WITH_E:
            of_weight = _load_row(e, DIM, WIDTH)
            along = of_weight * dy
            p += tl.sum(value * along, 1)
            d_dy += r[:, None] * of_weight * value
            d_x += r[:, None] * along
        d_x += (3.0 * cube * r * r * q * t / DIM - cube * p)[:, None] * value
        tl.store(grad_x + offsets, d_x, mask=inside)
        tl.store(grad_grad_y + offsets, d_dy, mask=inside)
    if FOR_WEIGHT:
        column = tl.arange(0, WIDTH)
        tl.store(grad_weight + tl.program_id(0) * DIM + column, share, mask=column < DIM)


def times(programs: int, for_weight: bool) -> int:
    """Groups of rows that a program does."""
    return max(1, programs // PROGRAMS) if for_weight else 1


def _meta(dim: int, operands: int) -> dict[str, int]:
    """Rows per program such that a thread holds at most some 16 elements of each of few operands, fewer of many."""
    width = triton.next_power_of_2(dim)
    warps = 4 if width <= 2048 else 8 if width <= 4096 else 16
    rows = max(1, (warps * 32 * (16 if operands <= 3 else 8)) // width)
    return {"DIM": dim, "WIDTH": width, "ROWS": rows, "num_warps": warps}


def _forward(
    x: Tensor, delta: Tensor | None, post_weight: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """What is normed (x + delta, if there is one), and its norm."""
    x, delta = x.contiguous(), None if delta is None else delta.contiguous()
    total, y = x if delta is None else torch.empty_like(x), torch.empty_like(x)
    rows, meta = x.numel() // x.shape[-1], _meta(x.shape[-1], 2 if delta is None else 4)
    options = {"ADD": delta is not None, "POST": post_weight is not None, "EPS": eps}
    norm_forward[(triton.cdiv(rows, meta["ROWS"]),)](x, delta, post_weight, weight, total, y, rows, **options, **meta)
    return total, y


def _launch_gradient(
    kernel: Any, operands: int, x: Tensor, weight: Tensor, others: tuple[Tensor | None, ...], eps: float,
    for_weight: bool, **options: bool,
) -> Tensor | None:  # fmt: skip
    """Runs `norm_backward` or `norm_second`; `others` are what they take between the weight and its gradient. Returns
    that one, if it is asked for."""
    x, dim = x.contiguous(), x.shape[-1]
    rows, meta = x.numel() // dim, _meta(dim, operands)
    meta["TIMES"] = times(triton.cdiv(rows, meta["ROWS"]), for_weight)
    programs = triton.cdiv(rows, meta["ROWS"] * meta["TIMES"])
    shares = x.new_empty(programs, dim, dtype=wide(x.dtype)) if for_weight else None
    kernel[(programs,)](x, weight, *others, shares, rows, FOR_WEIGHT=for_weight, EPS=eps, **options, **meta)
    return None if shares is None else shares.sum(0).to(weight.dtype)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return _forward(x, None, None, weight, eps)[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return *_RMSNormBackward.apply(*ctx.saved_tensors, grad, None, ctx.eps, wanted(ctx, 1)), None


class _RMSNormBackward(torch.autograd.Function):
    """(x, weight, grad, addend) -> gradient for x, with `addend` added, and for the weight (None unless asked)."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, grad: Tensor, addend: Tensor | None, eps: float, for_weight: bool
    ) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(x, weight, grad)
        ctx.eps = eps
        ctx.set_materialize_grads(False)
        grad_x, add = x.new_empty(x.shape), addend is not None
        others = grad.contiguous(), None if addend is None else addend.contiguous(), grad_x
        return grad_x, _launch_gradient(norm_backward, 3, x, weight, others, eps, for_weight, ADD=add)

    @staticmethod
    @second_derivative
    def backward(ctx: Any, a: Tensor | None, e: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight, grad = ctx.saved_tensors
        grad_x, grad_grad = (x.new_empty(x.shape) for _ in range(2))
        cotangent = x.new_zeros(x.shape) if a is None else a.contiguous()
        others = grad.contiguous(), cotangent, e, grad_x, grad_grad
        for_weight, with_e = ctx.needs_input_grad[1], e is not None
        grad_weight = _launch_gradient(norm_second, 6, x, weight, others, ctx.eps, for_weight, WITH_E=with_e)
        return grad_x, grad_weight, grad_grad, a if ctx.needs_input_grad[3] else None


def rms_norm_triton(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As `rms_norm_reference`, differentiable twice with respect to x [..., dim] and weight [dim]."""
    if needs_grad(x, weight):
        return _RMSNorm.apply(traced(x), traced(weight), eps)
    return _forward(x, None, None, weight, eps)[1]


class _AddRMSNorm(torch.autograd.Function):
    """The gradient of the sum and of its norm meet in one launch; the post-norm's follows in a second."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, delta: Tensor, post_weight: Tensor | None, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        total, y = _forward(x, delta, post_weight, weight, eps)
        ctx.save_for_backward(delta if post_weight is not None else None, post_weight, weight, total)
        ctx.eps = eps
        return total, y

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, grad_y: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        delta, post_weight, weight, total = ctx.saved_tensors
        needs = ctx.needs_input_grad
        grad_x, grad_weight = _RMSNormBackward.apply(total, weight, grad_y, grad_total, ctx.eps, needs[3])
        if post_weight is None:
            return grad_x, grad_x, None, grad_weight, None
        grad_delta, grad_post = _RMSNormBackward.apply(delta, post_weight, grad_x, None, ctx.eps, needs[2])
        return grad_x, grad_delta, grad_post, grad_weight, None


def add_rms_norm_triton(
    x: Tensor, delta: Tensor, post_weight: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """As `Kernels.residual_norm`: x + delta (normed with `post_weight` first, if given) and the norm of that sum."""
    run = _AddRMSNorm.apply if needs_grad(x, delta, post_weight, weight) else _forward
    return run(x, delta, post_weight, weight, eps)
