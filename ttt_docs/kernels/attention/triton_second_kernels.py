"""Window attention on the device, the backward of the backward; names and shapes as in `attention_kernels`.

G = s (a K^T + Q b^T)        H = dO c^T
g = rowsum(P*G)              m = rowsum(P*G*dP) + rowsum(P*H) - (2 (D - l) + l) g
E = P*(G - g)                T = P*(G*(dP - D + l) - g dP + H - m)
grad_Q  = s (T K + dS b)     grad_K = s (T^T Q + dS^T a)
grad_V  = E^T dO             grad_dO = E V + P c            grad_l = g
"""

import triton
import triton.language as tl

from ttt_docs.kernels.attention.triton_kernels import LOG2E, _range_of_keys
from ttt_docs.kernels.triton_tiles import accumulate, load_tile, scores, store_tile, zero_tile


@triton.jit
def _tile(
    q1, q2, do1, do2, a1, a2, k1, k2, v1, v2, b1, b2, log2_total, visible,
    D2: tl.constexpr, SCALE: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """P, dP and G of a tile [M, N]; rows and keys may change places: then q with k, dO with v, a with b."""
    zero = tl.zeros([M, N], dtype=ACC)
    s = scores(q1, q2, k1, k2, zero, D2, PRECISION)
    p = tl.where(visible, tl.exp2(s * (SCALE * LOG2E) - log2_total), 0.0)
    grad_p = scores(do1, do2, v1, v2, zero, D2, PRECISION)
    big_g = scores(a1, a2, k1, k2, zero, D2, PRECISION)
    big_g = scores(q1, q2, b1, b2, big_g, D2, PRECISION) * SCALE
    return p, grad_p, big_g


@triton.jit
def second_rows(
    q, k, v, grad_out, a, b, c, log_total, along, grad_log_total, grad_q, grad_grad_out, g_out, m_out,
    qb, qh, qr, kb, kh, kr, vb, vh, vr, new, keys, window,
    HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, SCALE: tl.constexpr, LOG_TOTAL_GRAD: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One pass over the keys for g, m and P c, whose row sums with dO are those of P*H; one for the rest."""
    KV_HEADS: tl.constexpr = HEADS // GROUP
    first_row = tl.program_id(0) * ROWS
    batch = (tl.program_id(1) // HEADS).to(tl.int64)
    head = (tl.program_id(1) % HEADS).to(tl.int64)
    rows = first_row + tl.arange(0, ROWS)
    i = keys - new + rows
    flat = (batch * new * HEADS + head) * HEAD
    q1, q2 = load_tile(q + batch * qb + head * qh, rows, qr, new, D1, D2, HEAD, True)
    do1, do2 = load_tile(grad_out + flat, rows, HEADS * HEAD, new, D1, D2, HEAD, True)
    a1, a2 = load_tile(a + flat, rows, HEADS * HEAD, new, D1, D2, HEAD, True)
    k += batch * kb + head // GROUP * kh
    v += batch * vb + head // GROUP * vh
    b += (batch * keys * KV_HEADS + head // GROUP) * HEAD
    c += (batch * keys * KV_HEADS + head // GROUP) * HEAD
    vector = (batch * HEADS + head) * new + rows
    log2_total = tl.load(log_total + vector, mask=rows < new, other=float("inf")) * LOG2E
    shift = tl.load(along + vector, mask=rows < new, other=0.0)
    low = tl.maximum(0, keys - new + first_row - window + 1)
    high = keys - new + tl.minimum(first_row + ROWS, new)

    g = tl.zeros([ROWS], dtype=ACC)
    m = tl.zeros([ROWS], dtype=ACC)
    gdo1, gdo2 = zero_tile(ROWS, D1, D2, ACC)
    for start in range(low, high, KEYS):
        j = start + tl.arange(0, KEYS)
        k1, k2 = load_tile(k, j, kr, keys, D1, D2, HEAD, True)
        v1, v2 = load_tile(v, j, vr, keys, D1, D2, HEAD, True)
        b1, b2 = load_tile(b, j, KV_HEADS * HEAD, keys, D1, D2, HEAD, True)
        visible = (j[None, :] <= i[:, None]) & (j[None, :] > i[:, None] - window)
        p, grad_p, big_g = _tile(
            q1, q2, do1, do2, a1, a2, k1, k2, v1, v2, b1, b2, log2_total[:, None], visible,
            D2, SCALE, ACC, PRECISION, ROWS, KEYS,
        )  # fmt: skip
        g += tl.sum(p * big_g, 1)
        m += tl.sum(p * big_g * grad_p, 1)
        c1, c2 = load_tile(c, j, KV_HEADS * HEAD, keys, D1, D2, HEAD, True)
        gdo1, gdo2 = accumulate(gdo1, gdo2, p.to(c1.dtype), c1, c2, D2, PRECISION)
    m += tl.sum(do1.to(ACC) * gdo1, 1)
    if D2 > 0:
        m += tl.sum(do2.to(ACC) * gdo2, 1)
    twice = 2 * shift
    if LOG_TOTAL_GRAD:
        twice += tl.load(grad_log_total + vector, mask=rows < new, other=0.0)
    m -= twice * g
    tl.store(g_out + vector, g, mask=rows < new)
    tl.store(m_out + vector, m, mask=rows < new)

    gq1, gq2 = zero_tile(ROWS, D1, D2, ACC)
    for start in range(low, high, KEYS):
        j = start + tl.arange(0, KEYS)
        k1, k2 = load_tile(k, j, kr, keys, D1, D2, HEAD, True)
        v1, v2 = load_tile(v, j, vr, keys, D1, D2, HEAD, True)
        b1, b2 = load_tile(b, j, KV_HEADS * HEAD, keys, D1, D2, HEAD, True)
        c1, c2 = load_tile(c, j, KV_HEADS * HEAD, keys, D1, D2, HEAD, True)
        visible = (j[None, :] <= i[:, None]) & (j[None, :] > i[:, None] - window)
        p, grad_p, big_g = _tile(
            q1, q2, do1, do2, a1, a2, k1, k2, v1, v2, b1, b2, log2_total[:, None], visible,
            D2, SCALE, ACC, PRECISION, ROWS, KEYS,
        )  # fmt: skip
        big_h = scores(do1, do2, c1, c2, tl.zeros([ROWS, KEYS], dtype=ACC), D2, PRECISION)
        e = p * (big_g - g[:, None])
        gdo1, gdo2 = accumulate(gdo1, gdo2, e.to(v1.dtype), v1, v2, D2, PRECISION)
        grad_s = p * (grad_p - shift[:, None])
        gq1, gq2 = accumulate(gq1, gq2, grad_s.to(b1.dtype), b1, b2, D2, PRECISION)
        t = p * (big_g * (grad_p - shift[:, None]) - g[:, None] * grad_p + big_h - m[:, None])
        gq1, gq2 = accumulate(gq1, gq2, t.to(k1.dtype), k1, k2, D2, PRECISION)
    store_tile(grad_q + flat, rows, HEADS * HEAD, new, gq1 * SCALE, gq2 * SCALE, D1, D2, HEAD)
    store_tile(grad_grad_out + flat, rows, HEADS * HEAD, new, gdo1, gdo2, D1, D2, HEAD)


@triton.jit
def second_keys(
    q, k, v, grad_out, a, b, c, log_total, along, g_in, m_in, grad_k, grad_v,
    qb, qh, qr, kb, kh, kr, vb, vh, vr, new, keys, window, constant,
    HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, SCALE: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """grad_K and grad_V of the keys after the first `constant`; tiles are [keys, rows]."""
    KV_HEADS: tl.constexpr = HEADS // GROUP
    first_key = constant + tl.program_id(0) * KEYS
    batch = (tl.program_id(1) // KV_HEADS).to(tl.int64)
    kv_head = (tl.program_id(1) % KV_HEADS).to(tl.int64)
    j = first_key + tl.arange(0, KEYS)
    flat_k = (batch * keys * KV_HEADS + kv_head) * HEAD
    k1, k2 = load_tile(k + batch * kb + kv_head * kh, j, kr, keys, D1, D2, HEAD, True)
    v1, v2 = load_tile(v + batch * vb + kv_head * vh, j, vr, keys, D1, D2, HEAD, True)
    b1, b2 = load_tile(b + flat_k, j, KV_HEADS * HEAD, keys, D1, D2, HEAD, True)
    c1, c2 = load_tile(c + flat_k, j, KV_HEADS * HEAD, keys, D1, D2, HEAD, True)
    gk1, gk2 = zero_tile(KEYS, D1, D2, ACC)
    gv1, gv2 = zero_tile(KEYS, D1, D2, ACC)
    low, high = _range_of_keys(first_key, new, keys, window, KEYS, ROWS)
    for member in range(GROUP):
        head = kv_head * GROUP + member
        flat = (batch * new * HEADS + head) * HEAD
        vector = (batch * HEADS + head) * new
        for start in range(low, high, ROWS):
            rows = start + tl.arange(0, ROWS)
            i = keys - new + rows
            q1, q2 = load_tile(q + batch * qb + head * qh, rows, qr, new, D1, D2, HEAD, True)
            do1, do2 = load_tile(grad_out + flat, rows, HEADS * HEAD, new, D1, D2, HEAD, True)
            a1, a2 = load_tile(a + flat, rows, HEADS * HEAD, new, D1, D2, HEAD, True)
            log2_total = tl.load(log_total + vector + rows, mask=rows < new, other=float("inf")) * LOG2E
            shift = tl.load(along + vector + rows, mask=rows < new, other=0.0)
            g = tl.load(g_in + vector + rows, mask=rows < new, other=0.0)
            m = tl.load(m_in + vector + rows, mask=rows < new, other=0.0)
            visible = (j[:, None] <= i[None, :]) & (j[:, None] > i[None, :] - window)
            p, grad_p, big_g = _tile(
                k1, k2, v1, v2, b1, b2, q1, q2, do1, do2, a1, a2, log2_total[None, :], visible,
                D2, SCALE, ACC, PRECISION, KEYS, ROWS,
            )  # fmt: skip
            big_h = scores(c1, c2, do1, do2, tl.zeros([KEYS, ROWS], dtype=ACC), D2, PRECISION)
            e = p * (big_g - g[None, :])
            gv1, gv2 = accumulate(gv1, gv2, e.to(do1.dtype), do1, do2, D2, PRECISION)
            grad_s = p * (grad_p - shift[None, :])
            gk1, gk2 = accumulate(gk1, gk2, grad_s.to(a1.dtype), a1, a2, D2, PRECISION)
            t = p * (big_g * (grad_p - shift[None, :]) - g[None, :] * grad_p + big_h - m[None, :])
            gk1, gk2 = accumulate(gk1, gk2, t.to(q1.dtype), q1, q2, D2, PRECISION)
    flat_k = (batch * (keys - constant) * KV_HEADS + kv_head) * HEAD
    store_tile(grad_k + flat_k, j - constant, KV_HEADS * HEAD, keys - constant, gk1 * SCALE, gk2 * SCALE, D1, D2, HEAD)
    store_tile(grad_v + flat_k, j - constant, KV_HEADS * HEAD, keys - constant, gv1, gv2, D1, D2, HEAD)
