"""QK norm and RoPE of all heads on the device, twice differentiable: one read of qkv, one write of queries, keys and
values each. `definition.py` defines the results.

This is a pass of its own and not part of the attention's loads. There, every tile of queries that sees a key would norm
and rotate it again (64 of them, for a window of 8,192). Here it happens once, on the way into the cache.

A row is a token's head. A program holds ROWS rows of one kind (queries, keys or values, by the grid's second axis) in
two halves, because RoPE rotates (i, i + DIM/2) by the token's angle:

    n = norm(x) or x;    y = n rotated,    queries for sinks z = n rotated by other angles (SINKS = 2) or n itself (1)

Backward, the gradients of y and z are rotated back and added up: that is the gradient of n, called dy below, and the
rest is RMSNorm's (see `rms_norm/triton.py` for its formulas, and for the second derivative's). Rotation is linear.

qkv [batch, tokens, HEADS + 2 KV_HEADS, DIM] and keys and values [batch, KV_HEADS, tokens, DIM] come with strides; all
other matrices are token-major and contiguous; angles are tables [tokens, DIM], of which the second half is read.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ttt_docs.kernels.heads.definition import Heads, HeadSplit
from ttt_docs.kernels.triton_common import load, second_derivative, widened
from ttt_docs.kernels.workspace import needs_grad, token_major, traced, wanted, wide

WARPS = 4


@triton.jit
def _rows_of(tokens, batch, stride, token_stride, HEADS, KV_HEADS, HALF, WIDTH, ROWS):
    """Of this program's rows: (kind (0 queries, 1 keys, 2 values), row, token in the document, columns of a half, which
    elements exist); document; head of the kind; where they begin in qkv and in its contiguous gradient."""
    kind = tl.program_id(1)
    heads = tl.where(kind == 0, HEADS, KV_HEADS)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    position = row // heads
    first = tl.where(kind == 0, 0, tl.where(kind == 1, HEADS, HEADS + KV_HEADS))
    document, token, head = position // tokens, position % tokens, row % heads
    column = tl.arange(0, WIDTH)
    inside = (position < tokens * batch)[:, None] & (column[None, :] < HALF)
    start = document * stride + token * token_stride + (first + head) * (2 * HALF)
    target = ((document * tokens + token) * (HEADS + 2 * KV_HEADS) + first + head) * (2 * HALF)
    return (kind, row, token, column, inside), document, head, start, target


@triton.jit
def _pair(pointers, inside, HALF):
    return tl.load(pointers, mask=inside, other=0.0), tl.load(pointers + HALF, mask=inside, other=0.0)


@triton.jit
def _load_halves(base, start, column, inside, HALF):
    """Both halves of rows that begin at `start`."""
    low, high = _pair(base + start[:, None] + column[None, :], inside, HALF)
    return widened(low), widened(high)


@triton.jit
def _store_halves(base, start, column, inside, low, high, HALF):
    pointers = base + start[:, None] + column[None, :]
    tl.store(pointers, low, mask=inside)
    tl.store(pointers + HALF, high, mask=inside)


@triton.jit
def _angles(cos, sin, token, column, inside, HALF):
    where = token[:, None] * (2 * HALF) + HALF + column[None, :]
    return load(cos + where, inside), load(sin + where, inside)


@triton.jit
def _weights(q_weight, k_weight, kind, column, HALF):
    if kind == 0:
        w1, w2 = _pair(q_weight + column, column < HALF, HALF)
    else:
        w1, w2 = _pair(k_weight + column, column < HALF, HALF)
    return widened(w1)[None, :], widened(w2)[None, :]


@triton.jit
def _store_share(weights, kind, column, products, FIRST, HALF):
    """This program's share of the gradient of half a weight: its rows' sum."""
    shares = weights + (kind * tl.num_programs(0) + tl.program_id(0)) * (2 * HALF) + column
    tl.store(shares + FIRST, tl.sum(products, 0), mask=column < HALF)


@triton.jit
def _along(a1, a2, b1, b2):
    """Each row's inner product."""
    return tl.sum(a1 * b1 + a2 * b2, 1)[:, None]


@triton.jit
def _scale(x1, x2, EPS, HALF):
    """1 / rms of each row."""
    return 1.0 / tl.sqrt(_along(x1, x2, x1, x2) / (2 * HALF) + EPS)


@triton.jit
def _gradient_of_normed(grad_q, grad_k, grad_z, angles, at, SINKS, HALF):
    """dy of queries or keys."""
    cos, sin, sink_cos, sink_sin = angles
    kind, row, token, column, inside = at
    start = row * (2 * HALF)
    c, s = _angles(cos, sin, token, column, inside, HALF)
    if kind == 0:
        g1, g2 = _load_halves(grad_q, start, column, inside, HALF)
    else:
        g1, g2 = _load_halves(grad_k, start, column, inside, HALF)
    d1, d2 = g1 * c + g2 * s, g2 * c - g1 * s
    if SINKS > 0:  # noqa: SIM102  (a constant: without sinks the rest is not compiled)
        if kind == 0:
            g1, g2 = _load_halves(grad_z, start, column, inside, HALF)
            if SINKS == 2:
                c, s = _angles(sink_cos, sink_sin, token, column, inside, HALF)
                d1 += g1 * c + g2 * s
                d2 += g2 * c - g1 * s
            else:
                d1 += g1
                d2 += g2
    return d1, d2


@triton.jit
def _store_rotated(q, k, z, of_keys, n1, n2, angles, at, SINKS, HALF):
    """y and z of queries, y of keys (in rows that begin at `of_keys`)."""
    cos, sin, sink_cos, sink_sin = angles
    kind, row, token, column, inside = at
    c, s = _angles(cos, sin, token, column, inside, HALF)
    if kind == 0:
        _store_halves(q, row * (2 * HALF), column, inside, n1 * c - n2 * s, n2 * c + n1 * s, HALF)
        if SINKS > 0:
            if SINKS == 2:
                c, s = _angles(sink_cos, sink_sin, token, column, inside, HALF)
                _store_halves(z, row * (2 * HALF), column, inside, n1 * c - n2 * s, n2 * c + n1 * s, HALF)
            else:
                _store_halves(z, row * (2 * HALF), column, inside, n1, n2, HALF)
    else:
        _store_halves(k, of_keys, column, inside, n1 * c - n2 * s, n2 * c + n1 * s, HALF)


@triton.jit
def heads_forward(
    qkv, q_weight, k_weight, cos, sin, sink_cos, sink_sin, q, k, v, z,
    tokens, batch, stride, token_stride, kb, kh, kt, vb, vh, vt,
    EPS: tl.constexpr, NORM: tl.constexpr, SINKS: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr,
    HALF: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    at, document, head, start, _ = _rows_of(tokens, batch, stride, token_stride, HEADS, KV_HEADS, HALF, WIDTH, ROWS)
    kind, _, token, column, inside = at
    x1, x2 = _load_halves(qkv, start, column, inside, HALF)
    if kind == 2:
        _store_halves(v, document * vb + head * vh + token * vt, column, inside, x1, x2, HALF)
    else:
        if NORM:
            w1, w2 = _weights(q_weight, k_weight, kind, column, HALF)
            r = _scale(x1, x2, EPS, HALF)
            x1, x2 = x1 * r * w1, x2 * r * w2
        of_keys = document * kb + head * kh + token * kt
        _store_rotated(q, k, z, of_keys, x1, x2, (cos, sin, sink_cos, sink_sin), at, SINKS, HALF)


@triton.jit
def heads_backward(
    qkv, q_weight, k_weight, cos, sin, sink_cos, sink_sin, grad_q, grad_k, grad_v, grad_z, grad_qkv, grad_weight,
    tokens, batch, stride, token_stride, FOR_WEIGHT: tl.constexpr,
    EPS: tl.constexpr, NORM: tl.constexpr, SINKS: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr,
    HALF: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The gradient of qkv, contiguous, and each program's share of the weights' [2, programs, DIM]."""
    at, _, _, start, target = _rows_of(tokens, batch, stride, token_stride, HEADS, KV_HEADS, HALF, WIDTH, ROWS)
    kind, row, _, column, inside = at
    if kind == 2:
        d1, d2 = _load_halves(grad_v, row * (2 * HALF), column, inside, HALF)
        _store_halves(grad_qkv, target, column, inside, d1, d2, HALF)
    else:
        angles = (cos, sin, sink_cos, sink_sin)
        d1, d2 = _gradient_of_normed(grad_q, grad_k, grad_z, angles, at, SINKS, HALF)
        if NORM:
            x1, x2 = _load_halves(qkv, start, column, inside, HALF)
            w1, w2 = _weights(q_weight, k_weight, kind, column, HALF)
            r = _scale(x1, x2, EPS, HALF)
            if FOR_WEIGHT:
                _store_share(grad_weight, kind, column, d1 * x1 * r, 0, HALF)
                _store_share(grad_weight, kind, column, d2 * x2 * r, HALF, HALF)
            v1, v2 = d1 * w1, d2 * w2
            back = r * r * r * _along(x1, x2, v1, v2) / (2 * HALF)
            d1, d2 = r * v1 - back * x1, r * v2 - back * x2
        _store_halves(grad_qkv, target, column, inside, d1, d2, HALF)


@triton.jit
def heads_second(
    qkv, q_weight, k_weight, cos, sin, sink_cos, sink_sin, grad_q, grad_k, grad_z, a, e,
    of_q, of_k, of_v, of_z, of_qkv, of_weight,
    tokens, batch, stride, token_stride, WITH_E: tl.constexpr, FOR_WEIGHT: tl.constexpr,
    EPS: tl.constexpr, NORM: tl.constexpr, SINKS: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr,
    HALF: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """From cotangents of `heads_backward`'s results, a of grad_qkv (contiguous) and e [2, DIM] of the weights'
    gradients: those of grad_q, grad_k, grad_v, grad_z, and, with NORM, of qkv and each program's share of the weights'.
    """
    at, _, _, start, target = _rows_of(tokens, batch, stride, token_stride, HEADS, KV_HEADS, HALF, WIDTH, ROWS)
    kind, row, _, column, inside = at
    a1, a2 = _load_halves(a, target, column, inside, HALF)
    if kind == 2:
        _store_halves(of_v, row * (2 * HALF), column, inside, a1, a2, HALF)
        if NORM:
            _store_halves(of_qkv, target, column, inside, tl.zeros_like(a1), tl.zeros_like(a2), HALF)
    else:
        angles = (cos, sin, sink_cos, sink_sin)
        if NORM:
            d1, d2 = _gradient_of_normed(grad_q, grad_k, grad_z, angles, at, SINKS, HALF)
            x1, x2 = _load_halves(qkv, start, column, inside, HALF)
            w1, w2 = _weights(q_weight, k_weight, kind, column, HALF)
            r = _scale(x1, x2, EPS, HALF)
            cube = r * r * r / (2 * HALF)
            v1, v2 = d1 * w1, d2 * w2
            q = _along(x1, x2, a1, a2)
            t = _along(x1, x2, v1, v2)
            p = _along(a1, a2, v1, v2)
            rejected1, rejected2 = r * a1 - cube * q * x1, r * a2 - cube * q * x2
            if FOR_WEIGHT:
                _store_share(of_weight, kind, column, d1 * rejected1, 0, HALF)
                _store_share(of_weight, kind, column, d2 * rejected2, HALF, HALF)
            of_x1, of_x2 = -cube * (t * a1 + q * v1), -cube * (t * a2 + q * v2)
            a1, a2 = rejected1 * w1, rejected2 * w2
            if WITH_E:
                e1, e2 = _pair(e + kind * (2 * HALF) + column, column < HALF, HALF)
                e1, e2 = widened(e1)[None, :], widened(e2)[None, :]
                p += _along(x1, x2, e1 * d1, e2 * d2)
                of_x1, of_x2 = of_x1 + r * e1 * d1, of_x2 + r * e2 * d2
                a1, a2 = a1 + r * e1 * x1, a2 + r * e2 * x2
            of_x1 += (3.0 * cube * r * r * q * t / (2 * HALF) - cube * p) * x1
            of_x2 += (3.0 * cube * r * r * q * t / (2 * HALF) - cube * p) * x2
            _store_halves(of_qkv, target, column, inside, of_x1, of_x2, HALF)
        _store_rotated(of_q, of_k, of_z, row * (2 * HALF), a1, a2, angles, at, SINKS, HALF)


def _sizes(qkv: Tensor, split: HeadSplit) -> tuple[int, int, int, int]:
    """WIDTH, ROWS and HEADS of a launch, and its programs for each kind."""
    batch, tokens, all_heads, dim = qkv.shape
    width, heads = triton.next_power_of_2(dim // 2), all_heads - 2 * split.kv_heads
    rows = max(1, WARPS * 32 * 8 // width)
    return width, rows, heads, triton.cdiv(batch * tokens * heads, rows)


def _launch(
    kernel: Any, qkv: Tensor, norms: tuple[Tensor | None, ...], split: HeadSplit, tensors: tuple[Tensor | None, ...],
    strides: tuple[int, ...] = (), **options: bool,
) -> None:  # fmt: skip
    """`tensors` are what the kernel takes after the angles."""
    width, rows, heads, programs = _sizes(qkv, split)
    angles = *(t.contiguous() for t in split.rotation), *(split.sink_rotation or (None, None))
    sinks = 0 if not split.for_sinks else 1 if split.sink_rotation is None else 2
    kernel[programs, 3](
        qkv, *norms, *angles, *tensors, qkv.shape[1], qkv.shape[0], qkv.stride(0), qkv.stride(1), *strides,
        EPS=split.eps, NORM=norms[0] is not None, SINKS=sinks, HEADS=heads, KV_HEADS=split.kv_heads,
        HALF=qkv.shape[3] // 2, WIDTH=width, ROWS=rows, num_warps=WARPS, **options,
    )  # fmt: skip


def _empty_heads(qkv: Tensor, split: HeadSplit) -> Heads:
    """Each [batch, heads, tokens, head_dim], in memory token by token; keys and values in the split's slots, if any."""

    def empty(heads: int) -> Tensor:
        return qkv.new_empty(*qkv.shape[:2], heads, qkv.shape[3]).transpose(1, 2)

    # The slots are aliased: a view would tell autograd of the cache that they are a part of.
    k, v = (empty(split.kv_heads) for _ in range(2)) if split.slots is None else (slot.detach() for slot in split.slots)
    q_heads = qkv.shape[2] - 2 * split.kv_heads
    return Heads(empty(q_heads), k, v, empty(q_heads) if split.for_sinks else None)


def _shares(qkv: Tensor, split: HeadSplit, asked: bool) -> Tensor | None:
    """Room for what each program adds to the gradients of the norms' weights, if they are asked for."""
    return qkv.new_empty(2, _sizes(qkv, split)[3], qkv.shape[3], dtype=wide(qkv.dtype)) if asked else None


def _summed(shares: Tensor | None, like: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    if shares is None or like is None:
        return None, None
    q, k = shares.sum(1).to(like.dtype)
    return q, k


def _forward(qkv: Tensor, q_norm: Tensor | None, k_norm: Tensor | None, split: HeadSplit) -> Heads:
    made = _empty_heads(qkv, split)
    _launch(heads_forward, qkv, (q_norm, k_norm), split, made, (*made.k.stride()[:3], *made.v.stride()[:3]))
    return made


class _Heads(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, qkv: Tensor, q_norm: Tensor | None, k_norm: Tensor | None, split: HeadSplit
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(qkv, q_norm, k_norm)
        ctx.split = split._replace(slots=None)
        return tuple(_forward(qkv, q_norm, k_norm, split))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        qkv, q_norm, k_norm = ctx.saved_tensors
        for_norms = q_norm is not None and (wanted(ctx, 1) or wanted(ctx, 2))
        grads = tuple(None if g is None else token_major(g) for g in grads)
        return *_HeadsBackward.apply(qkv, q_norm, k_norm, *grads, ctx.split, for_norms), None


class _HeadsBackward(torch.autograd.Function):
    """Gradients for qkv and, if asked for, both norms' weights."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, qkv: Tensor, q_norm: Tensor | None, k_norm: Tensor | None,
        grad_q: Tensor, grad_k: Tensor, grad_v: Tensor, grad_sink_q: Tensor | None, split: HeadSplit, for_norms: bool,
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        ctx.save_for_backward(qkv, q_norm, k_norm, grad_q, grad_k, grad_sink_q)
        ctx.split = split
        ctx.set_materialize_grads(False)
        grad_qkv = qkv.new_empty(qkv.shape)
        shares = _shares(qkv, split, for_norms)
        tensors = grad_q, grad_k, grad_v, grad_sink_q, grad_qkv, shares
        _launch(heads_backward, qkv, (q_norm, k_norm), split, tensors, FOR_WEIGHT=for_norms)
        return grad_qkv, *_summed(shares, q_norm)

    @staticmethod
    @second_derivative
    def backward(ctx: Any, a: Tensor | None, *of_norms: Tensor | None) -> tuple[Tensor | None, ...]:
        qkv, q_norm, k_norm, grad_q, grad_k, grad_sink_q = ctx.saved_tensors
        a = qkv.new_zeros(qkv.shape) if a is None else a.contiguous()
        e = None
        if of_norms != (None, None):
            e = torch.stack([torch.zeros_like(q_norm) if own is None else own for own in of_norms])
        made = _empty_heads(qkv, ctx.split)
        of_qkv = None if q_norm is None else torch.empty_like(a)
        for_norms = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        shares = _shares(qkv, ctx.split, for_norms)
        tensors = grad_q, grad_k, grad_sink_q, a, e, *made, of_qkv, shares
        _launch(heads_second, qkv, (q_norm, k_norm), ctx.split, tensors, WITH_E=e is not None, FOR_WEIGHT=for_norms)
        return of_qkv, *_summed(shares, q_norm), *made


def heads_triton(qkv: Tensor, q_norm: Tensor | None, k_norm: Tensor | None, split: HeadSplit) -> Heads:
    """As `split_heads_reference`, differentiable twice with respect to qkv and the norms' weights."""
    if not (qkv.stride(3) == 1 and qkv.stride(2) == qkv.shape[3]):
        qkv = qkv.contiguous()
    if needs_grad(qkv, q_norm, k_norm):
        return Heads(*_Heads.apply(traced(qkv), traced(q_norm), traced(k_norm), split))
    return _forward(qkv, q_norm, k_norm, split)
