"""RMSNorm on the device. A program holds ROWS whole rows: one read of each input, one write of each output.

With r = (mean(x^2) + eps)^(-1/2), v = dy * w, n the length of a row and sums over it:

    y  = r x w
    dx = r v - r^3 (x.v) x / n            dw = sum over rows of r x dy
    cotangents a of dx, e of dw; q = x.a, t = x.v, z = x.(e dy):
    grad_dy = w (r a - r^3 q x / n) + r e x
    grad_w  = sum over rows of dy (r a - r^3 q x / n)
    grad_x  = r e dy - r^3 ((a.v + z) x + t a + q v) / n + 3 r^5 q t x / n^2

Row `i` of x starts at (i // GROUPS) * stride + (i % GROUPS) * group_stride, so that heads inside a wider matrix need no
copy; all other matrices are contiguous [rows, DIM].
"""

import triton
import triton.language as tl


@triton.jit
def _load(base, offsets, inside, ACC: tl.constexpr):
    return tl.load(base + offsets, mask=inside, other=0.0).to(ACC)


@triton.jit
def _scale(x, eps, DIM: tl.constexpr):
    """1 / rms of each row."""
    return 1.0 / tl.sqrt(tl.sum(x * x, 1) / DIM + eps)


@triton.jit
def norm_forward(
    x, weight, y, rows, stride, group_stride,
    EPS: tl.constexpr, GROUPS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    inside = (row[:, None] < rows) & (column[None, :] < DIM)
    start = (row // GROUPS) * stride + (row % GROUPS) * group_stride
    value = _load(x, start[:, None] + column[None, :], inside, ACC)
    w = tl.load(weight + column, mask=column < DIM, other=0.0).to(ACC)
    normed = value * _scale(value, EPS, DIM)[:, None] * w[None, :]
    tl.store(y + row[:, None] * DIM + column[None, :], normed.to(y.dtype.element_ty), mask=inside)


@triton.jit
def add_norm_forward(
    x, delta, post_weight, weight, total, y, rows,
    POST: tl.constexpr, EPS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """total = x + delta (or x + its norm, with POST) and y = the norm of total: a residual and the next pre-norm."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    inside = (row[:, None] < rows) & (column[None, :] < DIM)
    offsets = row[:, None] * DIM + column[None, :]
    added = _load(delta, offsets, inside, ACC)
    if POST:
        w = tl.load(post_weight + column, mask=column < DIM, other=0.0).to(ACC)
        added = added * _scale(added, EPS, DIM)[:, None] * w[None, :]
    summed = _load(x, offsets, inside, ACC) + added
    tl.store(total + offsets, summed.to(total.dtype.element_ty), mask=inside)
    w = tl.load(weight + column, mask=column < DIM, other=0.0).to(ACC)
    rounded = summed.to(total.dtype.element_ty).to(ACC)
    normed = rounded * _scale(rounded, EPS, DIM)[:, None] * w[None, :]
    tl.store(y + offsets, normed.to(y.dtype.element_ty), mask=inside)


@triton.jit
def norm_backward(
    x, weight, grad_y, addend, grad_x, grad_weight, rows, stride, group_stride,
    ADD: tl.constexpr, FOR_WEIGHT: tl.constexpr, EPS: tl.constexpr, GROUPS: tl.constexpr,
    DIM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, TIMES: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """dx (plus `addend`: the gradient that reaches x past the norm) and each program's share of dw [programs, DIM]."""
    column = tl.arange(0, WIDTH)
    w = tl.load(weight + column, mask=column < DIM, other=0.0).to(ACC)
    share = tl.zeros([WIDTH], dtype=ACC)
    for step in range(TIMES):
        row = (tl.program_id(0).to(tl.int64) * TIMES + step) * ROWS + tl.arange(0, ROWS)
        inside = (row[:, None] < rows) & (column[None, :] < DIM)
        offsets = row[:, None] * DIM + column[None, :]
        start = (row // GROUPS) * stride + (row % GROUPS) * group_stride
        value = _load(x, start[:, None] + column[None, :], inside, ACC)
        dy = _load(grad_y, offsets, inside, ACC)
        r = _scale(value, EPS, DIM)
        v = dy * w[None, :]
        t = tl.sum(value * v, 1)
        dx = r[:, None] * v - (r * r * r * t / DIM)[:, None] * value
        if ADD:
            dx += _load(addend, offsets, inside, ACC)
        tl.store(grad_x + offsets, dx.to(grad_x.dtype.element_ty), mask=inside)
        if FOR_WEIGHT:
            share += tl.sum(dy * value * r[:, None], 0)
    if FOR_WEIGHT:
        tl.store(grad_weight + tl.program_id(0) * DIM + column, share, mask=column < DIM)


@triton.jit
def norm_second(
    x, weight, grad_y, a, e, grad_x, grad_grad_y, grad_weight, rows, stride, group_stride,
    WITH_E: tl.constexpr, FOR_WEIGHT: tl.constexpr, EPS: tl.constexpr, GROUPS: tl.constexpr,
    DIM: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, TIMES: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, WIDTH)
    share = tl.zeros([WIDTH], dtype=ACC)
    for step in range(TIMES):
        row = (tl.program_id(0).to(tl.int64) * TIMES + step) * ROWS + tl.arange(0, ROWS)
        inside = (row[:, None] < rows) & (column[None, :] < DIM)
        offsets = row[:, None] * DIM + column[None, :]
        start = (row // GROUPS) * stride + (row % GROUPS) * group_stride
        value = _load(x, start[:, None] + column[None, :], inside, ACC)
        dy = _load(grad_y, offsets, inside, ACC)
        cotangent = _load(a, offsets, inside, ACC)
        w = tl.load(weight + column, mask=column < DIM, other=0.0).to(ACC)
        r = _scale(value, EPS, DIM)
        cube = r * r * r / DIM
        v = dy * w[None, :]
        q = tl.sum(value * cotangent, 1)
        t = tl.sum(value * v, 1)
        p = tl.sum(cotangent * v, 1)
        turned = r[:, None] * cotangent - (cube * q)[:, None] * value
        if FOR_WEIGHT:
            share += tl.sum(dy * turned, 0)
        d_dy = turned * w[None, :]
        d_x = -(cube * t)[:, None] * cotangent - (cube * q)[:, None] * v
        if WITH_E:
            of_weight = tl.load(e + column, mask=column < DIM, other=0.0).to(ACC)
            along = of_weight[None, :] * dy
            p += tl.sum(value * along, 1)
            d_dy += r[:, None] * of_weight[None, :] * value
            d_x += r[:, None] * along
        d_x += (3.0 * cube * r * r * q * t / DIM - cube * p)[:, None] * value
        tl.store(grad_x + offsets, d_x.to(grad_x.dtype.element_ty), mask=inside)
        tl.store(grad_grad_y + offsets, d_dy.to(grad_grad_y.dtype.element_ty), mask=inside)
    if FOR_WEIGHT:
        tl.store(grad_weight + tl.program_id(0) * DIM + column, share, mask=column < DIM)
