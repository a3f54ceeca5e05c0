"""Window attention on the device, the backward of the backward. Names and shapes are those of `triton.py`.

G = s (a K^T + Q b^T)        H = dO c^T
g = rowsum(P*G)              m = rowsum(P*G*dP) + rowsum(P*H) - (2 (D - l) + l) g
E = P*(G - g)                T = P*(G*(dP - D + l) - g dP + H - m)
grad_Q  = s (T K + dS b)     grad_K = s (T^T Q + dS^T a)
grad_V  = E^T dO             grad_dO = E V + P c            grad_l = g
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ttt_docs.kernels.attention.triton_tiles import (
    LOG2E,
    accumulate,
    add_scores,
    head_of,
    launch,
    load_tile,
    range_of_keys,
    range_of_rows,
    row_sums,
    scores,
    store_tile,
    visible,
    zero_tile,
)
from ttt_docs.kernels.triton_common import sums_of
from ttt_docs.kernels.workspace import empty_token_major, token_major


@triton.jit
def _tile(q, do, a, k, v, b, lse_log2, seen, SCALE):
    """P, dP and G of a tile; rows and keys may be exchanged: then q with k, dO with v, a with b."""
    s = scores(q, k)
    p = tl.where(seen, tl.exp2(s * (SCALE * LOG2E) - lse_log2), 0.0)
    grad_p = scores(do, v)
    return p, grad_p, add_scores(scores(a, k), q, b) * SCALE


@triton.jit
def second_rows(
    q, k, v, grad_out, a, b, c, lse, delta, grad_lse, grad_q, grad_grad_out, g_out, m_out,
    qb, qh, qr, kb, kh, kr, vb, vh, vr, new, keys, window, LSE_GRAD: tl.constexpr,
    HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One pass over the keys for g, m and P c, whose row sums with dO are those of P*H; one for the rest."""
    SCALE: tl.constexpr = HEAD**-0.5
    KV_HEADS: tl.constexpr = HEADS // GROUP
    ACC: tl.constexpr = sums_of(q.dtype.element_ty)
    first_row = tl.program_id(0) * ROWS
    batch, head = head_of(HEADS)
    rows = first_row + tl.arange(0, ROWS)
    i = keys - new + rows
    flat = (batch * new * HEADS + head) * HEAD
    q = load_tile(q + batch * qb + head * qh, rows, qr, new, HEAD)
    do = load_tile(grad_out + flat, rows, HEADS * HEAD, new, HEAD)
    a = load_tile(a + flat, rows, HEADS * HEAD, new, HEAD)
    k += batch * kb + head // GROUP * kh
    v += batch * vb + head // GROUP * vh
    b += (batch * keys * KV_HEADS + head // GROUP) * HEAD
    c += (batch * keys * KV_HEADS + head // GROUP) * HEAD
    vector = (batch * HEADS + head) * new + rows
    lse_log2 = tl.load(lse + vector, mask=rows < new, other=float("inf")) * LOG2E
    shift = tl.load(delta + vector, mask=rows < new, other=0.0)
    low, _, _, high = range_of_rows(first_row, new, keys, window, ROWS, KEYS)

    g = tl.zeros([ROWS], dtype=ACC)
    m = tl.zeros([ROWS], dtype=ACC)
    gdo = zero_tile(ROWS, HEAD, ACC)
    for start in range(low, high, KEYS):
        j = start + tl.arange(0, KEYS)
        own_k = load_tile(k, j, kr, keys, HEAD)
        own_v = load_tile(v, j, vr, keys, HEAD)
        own_b = load_tile(b, j, KV_HEADS * HEAD, keys, HEAD)
        seen = visible(i[:, None], j[None, :], window)
        p, grad_p, big_g = _tile(q, do, a, own_k, own_v, own_b, lse_log2[:, None], seen, SCALE)
        g += tl.sum(p * big_g, 1)
        m += tl.sum(p * big_g * grad_p, 1)
        gdo = accumulate(gdo, p, load_tile(c, j, KV_HEADS * HEAD, keys, HEAD))
    m += row_sums(do, gdo)
    twice = 2 * shift
    if LSE_GRAD:
        twice += tl.load(grad_lse + vector, mask=rows < new, other=0.0)
    m -= twice * g
    tl.store(g_out + vector, g, mask=rows < new)
    tl.store(m_out + vector, m, mask=rows < new)

    gq = zero_tile(ROWS, HEAD, ACC)
    for start in range(low, high, KEYS):
        j = start + tl.arange(0, KEYS)
        own_k = load_tile(k, j, kr, keys, HEAD)
        own_v = load_tile(v, j, vr, keys, HEAD)
        own_b = load_tile(b, j, KV_HEADS * HEAD, keys, HEAD)
        own_c = load_tile(c, j, KV_HEADS * HEAD, keys, HEAD)
        seen = visible(i[:, None], j[None, :], window)
        p, grad_p, big_g = _tile(q, do, a, own_k, own_v, own_b, lse_log2[:, None], seen, SCALE)
        big_h = scores(do, own_c)
        gdo = accumulate(gdo, p * (big_g - g[:, None]), own_v)
        gq = accumulate(gq, p * (grad_p - shift[:, None]), own_b)
        t = p * (big_g * (grad_p - shift[:, None]) - g[:, None] * grad_p + big_h - m[:, None])
        gq = accumulate(gq, t, own_k)
    store_tile(grad_q + flat, rows, HEADS * HEAD, new, [part * SCALE for part in gq], HEAD)
    store_tile(grad_grad_out + flat, rows, HEADS * HEAD, new, gdo, HEAD)


@triton.jit
def second_keys(
    q, k, v, grad_out, a, b, c, lse, delta, g_in, m_in, grad_k, grad_v,
    qb, qh, qr, kb, kh, kr, vb, vh, vr, new, keys, window, constant,
    HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """grad_K and grad_V of the keys after the first `constant`; tiles are [keys, rows]."""
    SCALE: tl.constexpr = HEAD**-0.5
    KV_HEADS: tl.constexpr = HEADS // GROUP
    ACC: tl.constexpr = sums_of(q.dtype.element_ty)
    first_key = constant + tl.program_id(0) * KEYS
    batch, kv_head = head_of(KV_HEADS)
    j = first_key + tl.arange(0, KEYS)
    flat_k = (batch * keys * KV_HEADS + kv_head) * HEAD
    k = load_tile(k + batch * kb + kv_head * kh, j, kr, keys, HEAD)
    v = load_tile(v + batch * vb + kv_head * vh, j, vr, keys, HEAD)
    b = load_tile(b + flat_k, j, KV_HEADS * HEAD, keys, HEAD)
    c = load_tile(c + flat_k, j, KV_HEADS * HEAD, keys, HEAD)
    gk = zero_tile(KEYS, HEAD, ACC)
    gv = zero_tile(KEYS, HEAD, ACC)
    low, high = range_of_keys(first_key, new, keys, window, KEYS, ROWS)
    for member in range(GROUP):
        head = kv_head * GROUP + member
        flat = (batch * new * HEADS + head) * HEAD
        vector = (batch * HEADS + head) * new
        for start in range(low, high, ROWS):
            rows = start + tl.arange(0, ROWS)
            i = keys - new + rows
            own_q = load_tile(q + batch * qb + head * qh, rows, qr, new, HEAD)
            do = load_tile(grad_out + flat, rows, HEADS * HEAD, new, HEAD)
            own_a = load_tile(a + flat, rows, HEADS * HEAD, new, HEAD)
            lse_log2 = tl.load(lse + vector + rows, mask=rows < new, other=float("inf")) * LOG2E
            shift = tl.load(delta + vector + rows, mask=rows < new, other=0.0)
            g = tl.load(g_in + vector + rows, mask=rows < new, other=0.0)
            m = tl.load(m_in + vector + rows, mask=rows < new, other=0.0)
            seen = visible(i[None, :], j[:, None], window)
            p, grad_p, big_g = _tile(k, v, b, own_q, do, own_a, lse_log2[None, :], seen, SCALE)
            big_h = scores(c, do)
            gv = accumulate(gv, p * (big_g - g[None, :]), do)
            gk = accumulate(gk, p * (grad_p - shift[None, :]), own_a)
            t = p * (big_g * (grad_p - shift[None, :]) - g[None, :] * grad_p + big_h - m[None, :])
            gk = accumulate(gk, t, own_q)
    flat_k = (batch * (keys - constant) * KV_HEADS + kv_head) * HEAD
    store_tile(grad_k + flat_k, j - constant, KV_HEADS * HEAD, keys - constant, [part * SCALE for part in gk], HEAD)
    store_tile(grad_v + flat_k, j - constant, KV_HEADS * HEAD, keys - constant, gv, HEAD)


def second_backward(
    saved: tuple[Tensor, ...], cotangents: tuple[Tensor, ...], window: int
) -> tuple[Tensor | None, ...]:
    """From the cotangents of the gradients for q and for the last keys and values: gradients for q, those keys and
    values, grad_out and grad_lse. `saved` are q, k, v, grad_out, grad_lse (or None), lse, delta."""
    q, k, v, grad_out, grad_lse, lse, delta = saved
    a, own_b, own_c = cotangents
    constant = k.shape[2] - own_b.shape[2]
    b, c = (token_major(torch.nn.functional.pad(x, (0, 0, constant, 0))) for x in (own_b, own_c))
    known = q, k, v, grad_out, token_major(a), b, c, lse, delta
    grad_q, grad_grad_out = empty_token_major(q), empty_token_major(q)
    g, m = torch.empty_like(delta), torch.empty_like(delta)
    made = grad_q, grad_grad_out, g, m
    launch(second_rows, (*known, grad_lse, *made), window, LSE_GRAD=grad_lse is not None)
    grad_k, grad_v = empty_token_major(own_b), empty_token_major(own_c)
    launch(second_keys, (*known, g, m, grad_k, grad_v), window, constant, over_keys=True)
    return grad_q, grad_k, grad_v, grad_grad_out, None if grad_lse is None else g
