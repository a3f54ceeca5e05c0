"""What the kernels share: products of tiles, tiles of [rows, head_dim] loaded in two parts, and the launch side's view.

`tl.dot` takes powers of two. A head dimension that is none (80, 96) is not padded to the next one, which would waste up
to half of the matrix units' work: it is cut into two parts that are (64 + 16, 64 + 32), D1 and D2 below.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a @ b. Float32 operands are multiplied in float32 ("ieee"), not rounded to tf32 first."""
    if PRECISION == "upcast":  # Triton's interpreter keeps bfloat16 as integers and would multiply those
        result = tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    else:
        result = tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=acc.dtype)
    return result


@triton.jit
def _part(
    base, rows, stride, limit, FIRST: tl.constexpr, WIDTH: tl.constexpr, HEAD: tl.constexpr, MASKED: tl.constexpr
):
    columns = FIRST + tl.arange(0, WIDTH)
    pointers = base + rows[:, None] * stride + columns[None, :]
    if MASKED:
        if FIRST + WIDTH > HEAD:
            part = tl.load(pointers, mask=(rows[:, None] < limit) & (columns[None, :] < HEAD), other=0.0)
        else:
            part = tl.load(pointers, mask=rows[:, None] < limit, other=0.0)
    else:
        if FIRST + WIDTH > HEAD:  # noqa: SIM108  (constants: only one branch is compiled)
            part = tl.load(pointers, mask=columns[None, :] < HEAD, other=0.0)
        else:
            part = tl.load(pointers)
    return part


@triton.jit
def load_tile(base, rows, stride, limit, D1: tl.constexpr, D2: tl.constexpr, HEAD: tl.constexpr, MASKED: tl.constexpr):
    """Rows of a [.., HEAD] matrix in two parts, zeros beyond `limit`. Without a second (D2 = 0) it is the first."""
    first = _part(base, rows, stride, limit, 0, D1, HEAD, MASKED)
    second = first
    if D2 > 0:
        second = _part(base, rows, stride, limit, D1, D2, HEAD, MASKED)
    return first, second


@triton.jit
def zero_tile(ROWS: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, ACC: tl.constexpr):
    first = tl.zeros([ROWS, D1], dtype=ACC)
    second = tl.zeros([ROWS, 16], dtype=ACC)
    if D2 > 0:
        second = tl.zeros([ROWS, D2], dtype=ACC)
    return first, second


@triton.jit
def store_tile(base, rows, stride, limit, first, second, D1: tl.constexpr, D2: tl.constexpr, HEAD: tl.constexpr):
    columns = tl.arange(0, D1)
    inside = (rows[:, None] < limit) & (columns[None, :] < HEAD)
    tl.store(base + rows[:, None] * stride + columns[None, :], first.to(base.dtype.element_ty), mask=inside)
    if D2 > 0:
        columns = D1 + tl.arange(0, D2)
        inside = (rows[:, None] < limit) & (columns[None, :] < HEAD)
        tl.store(base + rows[:, None] * stride + columns[None, :], second.to(base.dtype.element_ty), mask=inside)


@triton.jit
def scores(a1, a2, b1, b2, acc, D2: tl.constexpr, PRECISION: tl.constexpr):
    """acc + a @ b^T over both parts: a [m, head_dim], b [n, head_dim] -> [m, n]."""
    acc = dot(a1, tl.trans(b1), acc, PRECISION)
    if D2 > 0:
        acc = dot(a2, tl.trans(b2), acc, PRECISION)
    return acc


@triton.jit
def accumulate(acc1, acc2, weights, x1, x2, D2: tl.constexpr, PRECISION: tl.constexpr):
    """acc + weights @ x over both parts: weights [m, n], x [n, head_dim] -> [m, head_dim]."""
    acc1 = dot(weights, x1, acc1, PRECISION)
    if D2 > 0:
        acc2 = dot(weights, x2, acc2, PRECISION)
    return acc1, acc2


def parts(head_dim: int) -> tuple[int, int]:
    """(D1, D2) as above; D2 = 0 where one part is as good."""
    above = max(16, triton.next_power_of_2(head_dim))
    rest = head_dim - above // 2
    if above == head_dim or above <= 16 or rest > above // 4:
        return above, 0
    return above // 2, max(16, triton.next_power_of_2(rest))


def precision(dtype: torch.dtype) -> str:
    """How `dot` multiplies operands of `dtype`."""
    return "upcast" if dtype == torch.bfloat16 and triton.knobs.runtime.interpret else "ieee"


def accumulator(dtype: torch.dtype) -> tl.dtype:
    """Sums are float32; float64 (in the interpreter only) stays float64."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def token_major(x: Tensor) -> Tensor:
    """x [batch, heads, tokens, d], in memory [batch, tokens, heads, d]: the order of the projections."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def empty_token_major(like: Tensor, tokens: int, heads: int | None = None) -> Tensor:
    batch, own_heads, _, d = like.shape
    return like.new_empty(batch, tokens, heads or own_heads, d).transpose(1, 2)


def traced(x: Tensor) -> Tensor:
    """x as `wanted` can tell whether its gradient is: autograd does not say so of leaves."""
    return x.view_as(x) if x.requires_grad and x.is_leaf else x


def wanted(ctx: Any, tensor: int) -> bool:
    """Inside a backward pass: whether the gradient of the forward pass's tensor number `tensor` is asked for now.

    `ctx.needs_input_grad` says only that it could be. The inner step asks for the fast weights' gradients alone while
    all parameters require gradient; it must not pay for the others' products.
    """
    node = ctx.next_functions[tensor][0]
    return node is not None and torch._C._will_engine_execute_node(node)
