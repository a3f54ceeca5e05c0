"""QK norm and RoPE of all heads on the device: one read of qkv, one write of queries, keys and values each.

A row is a token's head. A program holds ROWS rows of one kind (queries, keys or values, by the grid's second axis) in
two halves, because RoPE turns pairs (i, i + DIM/2) by the token's angle:

    n = norm(x) or x;    y = n turned,    queries for sinks z = n turned by other angles (SINKS = 2) or n itself (1)

Backward, the gradients of y and z are turned back and added up: that is the gradient of n, called dy below, and the
rest is RMSNorm's (see `rms_norm_kernels` for its formulas, and for the second derivative's). Turning is linear.

qkv [batch, tokens, HEADS + 2 KV_HEADS, DIM] and keys and values [batch, KV_HEADS, tokens, DIM] come with strides; all
other matrices are token-major and contiguous; angles are tables [tokens, DIM], of which the second half is read.
"""

import triton
import triton.language as tl


@triton.jit
def _rows(tokens, batch, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, ROWS: tl.constexpr):
    """Of this program's rows: kind (0 queries, 1 keys, 2 values), row, document, token in it, head of the kind, where
    the kind's heads begin, and which rows exist."""
    kind = tl.program_id(1)
    heads = tl.where(kind == 0, HEADS, KV_HEADS)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    position = row // heads
    first = tl.where(kind == 0, 0, tl.where(kind == 1, HEADS, HEADS + KV_HEADS))
    return kind, row, position // tokens, position % tokens, row % heads, first, position < tokens * batch


@triton.jit
def _pair(pointers, mask, HALF: tl.constexpr):
    return tl.load(pointers, mask=mask, other=0.0), tl.load(pointers + HALF, mask=mask, other=0.0)


@triton.jit
def _load(base, start, column, inside, HALF: tl.constexpr, ACC: tl.constexpr):
    """Both halves of rows that begin at `start`."""
    low, high = _pair(base + start[:, None] + column[None, :], inside, HALF)
    return low.to(ACC), high.to(ACC)


@triton.jit
def _store(base, start, column, inside, low, high, HALF: tl.constexpr):
    pointers = base + start[:, None] + column[None, :]
    tl.store(pointers, low.to(base.dtype.element_ty), mask=inside)
    tl.store(pointers + HALF, high.to(base.dtype.element_ty), mask=inside)


@triton.jit
def _angles(cos, sin, token, column, inside, HALF: tl.constexpr, ACC: tl.constexpr):
    where = token[:, None] * (2 * HALF) + HALF + column[None, :]
    return tl.load(cos + where, mask=inside, other=0.0).to(ACC), tl.load(sin + where, mask=inside, other=0.0).to(ACC)


@triton.jit
def _weights(q_weight, k_weight, kind, column, HALF: tl.constexpr, ACC: tl.constexpr):
    there = column < HALF
    if kind == 0:
        low, high = _pair(q_weight + column, there, HALF)
    else:
        low, high = _pair(k_weight + column, there, HALF)
    return low.to(ACC)[None, :], high.to(ACC)[None, :]


@triton.jit
def _along(a1, a2, b1, b2):
    """Each row's inner product."""
    return tl.sum(a1 * b1 + a2 * b2, 1)[:, None]


@triton.jit
def _gradient_of_normed(
    grad_q, grad_k, grad_z, cos, sin, sink_cos, sink_sin, kind, row, token, column, inside,
    SINKS: tl.constexpr, HALF: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """dy of queries or keys."""
    start = row * (2 * HALF)
    c, s = _angles(cos, sin, token, column, inside, HALF, ACC)
    if kind == 0:
        g1, g2 = _load(grad_q, start, column, inside, HALF, ACC)
    else:
        g1, g2 = _load(grad_k, start, column, inside, HALF, ACC)
    d1, d2 = g1 * c + g2 * s, g2 * c - g1 * s
    if SINKS > 0:  # noqa: SIM102  (a constant: without sinks the rest is not compiled)
        if kind == 0:
            g1, g2 = _load(grad_z, start, column, inside, HALF, ACC)
            if SINKS == 2:
                c, s = _angles(sink_cos, sink_sin, token, column, inside, HALF, ACC)
                d1 += g1 * c + g2 * s
                d2 += g2 * c - g1 * s
            else:
                d1 += g1
                d2 += g2
    return d1, d2


@triton.jit
def _store_turned(
    q, k, z, cos, sin, sink_cos, sink_sin, n1, n2, kind, row, of_keys, token, column, inside,
    SINKS: tl.constexpr, HALF: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """y and z of queries, y of keys (in rows that begin at `of_keys`)."""
    c, s = _angles(cos, sin, token, column, inside, HALF, ACC)
    if kind == 0:
        _store(q, row * (2 * HALF), column, inside, n1 * c - n2 * s, n2 * c + n1 * s, HALF)
        if SINKS > 0:
            if SINKS == 2:
                c, s = _angles(sink_cos, sink_sin, token, column, inside, HALF, ACC)
                _store(z, row * (2 * HALF), column, inside, n1 * c - n2 * s, n2 * c + n1 * s, HALF)
            else:
                _store(z, row * (2 * HALF), column, inside, n1, n2, HALF)
    else:
        _store(k, of_keys, column, inside, n1 * c - n2 * s, n2 * c + n1 * s, HALF)


@triton.jit
def heads_forward(
    qkv, q_weight, k_weight, cos, sin, sink_cos, sink_sin, q, k, v, z,
    tokens, batch, stride, token_stride, kb, kh, kt, vb, vh, vt,
    EPS: tl.constexpr, NORM: tl.constexpr, SINKS: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr,
    HALF: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    kind, row, document, token, head, first, exists = _rows(tokens, batch, HEADS, KV_HEADS, ROWS)
    column = tl.arange(0, WIDTH)
    inside = exists[:, None] & (column[None, :] < HALF)
    start = document * stride + token * token_stride + (first + head) * (2 * HALF)
    x1, x2 = _load(qkv, start, column, inside, HALF, ACC)
    if kind == 2:
        _store(v, document * vb + head * vh + token * vt, column, inside, x1, x2, HALF)
    else:
        if NORM:
            w1, w2 = _weights(q_weight, k_weight, kind, column, HALF, ACC)
            r = 1.0 / tl.sqrt(_along(x1, x2, x1, x2) / (2 * HALF) + EPS)
            x1, x2 = x1 * r * w1, x2 * r * w2
        _store_turned(
            q, k, z, cos, sin, sink_cos, sink_sin, x1, x2, kind, row, document * kb + head * kh + token * kt, token,
            column, inside, SINKS, HALF, ACC,
        )  # fmt: skip


@triton.jit
def heads_backward(
    qkv, q_weight, k_weight, cos, sin, sink_cos, sink_sin, grad_q, grad_k, grad_v, grad_z, grad_qkv, grad_weight,
    tokens, batch, stride, token_stride,
    EPS: tl.constexpr, NORM: tl.constexpr, FOR_WEIGHT: tl.constexpr, SINKS: tl.constexpr, HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr, HALF: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The gradient of qkv, contiguous, and each program's share of the weights' [2, programs, DIM]."""
    kind, row, document, token, head, first, exists = _rows(tokens, batch, HEADS, KV_HEADS, ROWS)
    column = tl.arange(0, WIDTH)
    inside = exists[:, None] & (column[None, :] < HALF)
    target = ((document * tokens + token) * (HEADS + 2 * KV_HEADS) + first + head) * (2 * HALF)
    if kind == 2:
        d1, d2 = _load(grad_v, row * (2 * HALF), column, inside, HALF, ACC)
        _store(grad_qkv, target, column, inside, d1, d2, HALF)
    else:
        d1, d2 = _gradient_of_normed(
            grad_q, grad_k, grad_z, cos, sin, sink_cos, sink_sin, kind, row, token, column, inside, SINKS, HALF, ACC
        )
        if NORM:
            start = document * stride + token * token_stride + (first + head) * (2 * HALF)
            x1, x2 = _load(qkv, start, column, inside, HALF, ACC)
            w1, w2 = _weights(q_weight, k_weight, kind, column, HALF, ACC)
            r = 1.0 / tl.sqrt(_along(x1, x2, x1, x2) / (2 * HALF) + EPS)
            if FOR_WEIGHT:
                shares = grad_weight + (kind * tl.num_programs(0) + tl.program_id(0)) * (2 * HALF) + column
                tl.store(shares, tl.sum(d1 * x1 * r, 0), mask=column < HALF)
                tl.store(shares + HALF, tl.sum(d2 * x2 * r, 0), mask=column < HALF)
            v1, v2 = d1 * w1, d2 * w2
            back = r * r * r * _along(x1, x2, v1, v2) / (2 * HALF)
            d1, d2 = r * v1 - back * x1, r * v2 - back * x2
        _store(grad_qkv, target, column, inside, d1, d2, HALF)


@triton.jit
def heads_second(
    qkv, q_weight, k_weight, cos, sin, sink_cos, sink_sin, grad_q, grad_k, grad_z, a, e,
    of_q, of_k, of_v, of_z, of_qkv, of_weight,
    tokens, batch, stride, token_stride,
    EPS: tl.constexpr, NORM: tl.constexpr, WITH_E: tl.constexpr, FOR_WEIGHT: tl.constexpr, SINKS: tl.constexpr,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """From cotangents of `heads_backward`'s results, a of grad_qkv (contiguous) and e [2, DIM] of the weights'
    gradients: those of grad_q, grad_k, grad_v, grad_z, and, with NORM, of qkv and each program's share of the weights'.
    """
    kind, row, document, token, head, first, exists = _rows(tokens, batch, HEADS, KV_HEADS, ROWS)
    column = tl.arange(0, WIDTH)
    inside = exists[:, None] & (column[None, :] < HALF)
    target = ((document * tokens + token) * (HEADS + 2 * KV_HEADS) + first + head) * (2 * HALF)
    a1, a2 = _load(a, target, column, inside, HALF, ACC)
    if kind == 2:
        _store(of_v, row * (2 * HALF), column, inside, a1, a2, HALF)
        if NORM:
            _store(of_qkv, target, column, inside, tl.zeros_like(a1), tl.zeros_like(a2), HALF)
    else:
        if NORM:
            d1, d2 = _gradient_of_normed(
                grad_q, grad_k, grad_z, cos, sin, sink_cos, sink_sin, kind, row, token, column, inside, SINKS, HALF,
                ACC,
            )  # fmt: skip
            start = document * stride + token * token_stride + (first + head) * (2 * HALF)
            x1, x2 = _load(qkv, start, column, inside, HALF, ACC)
            w1, w2 = _weights(q_weight, k_weight, kind, column, HALF, ACC)
            r = 1.0 / tl.sqrt(_along(x1, x2, x1, x2) / (2 * HALF) + EPS)
            cube = r * r * r / (2 * HALF)
            v1, v2 = d1 * w1, d2 * w2
            q = _along(x1, x2, a1, a2)
            t = _along(x1, x2, v1, v2)
            p = _along(a1, a2, v1, v2)
            turned1, turned2 = r * a1 - cube * q * x1, r * a2 - cube * q * x2
            if FOR_WEIGHT:
                shares = of_weight + (kind * tl.num_programs(0) + tl.program_id(0)) * (2 * HALF) + column
                tl.store(shares, tl.sum(d1 * turned1, 0), mask=column < HALF)
                tl.store(shares + HALF, tl.sum(d2 * turned2, 0), mask=column < HALF)
            of_x1, of_x2 = -cube * (t * a1 + q * v1), -cube * (t * a2 + q * v2)
            a1, a2 = turned1 * w1, turned2 * w2
            if WITH_E:
                e1, e2 = _pair(e + kind * (2 * HALF) + column, column < HALF, HALF)
                e1, e2 = e1.to(ACC)[None, :], e2.to(ACC)[None, :]
                p += _along(x1, x2, e1 * d1, e2 * d2)
                of_x1, of_x2 = of_x1 + r * e1 * d1, of_x2 + r * e2 * d2
                a1, a2 = a1 + r * e1 * x1, a2 + r * e2 * x2
            of_x1 += (3.0 * cube * r * r * q * t / (2 * HALF) - cube * p) * x1
            of_x2 += (3.0 * cube * r * r * q * t / (2 * HALF) - cube * p) * x2
            _store(of_qkv, target, column, inside, of_x1, of_x2, HALF)
        _store_turned(
            of_q, of_k, of_z, cos, sin, sink_cos, sink_sin, a1, a2, kind, row, row * (2 * HALF), token, column, inside,
            SINKS, HALF, ACC,
        )  # fmt: skip
