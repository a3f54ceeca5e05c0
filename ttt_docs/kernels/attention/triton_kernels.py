"""Window attention on the device: forward, backward, and the backward of the backward (METHOD section 8).

Names as there: P the weights, dP = dO V^T, D = rowsum(P * dP), dS = P * (dP - D); a, b, c the cotangents of dQ, dK, dV;
s the scale. Because the log-sum-exp L of each row is a result too, with gradient l, D is D - l where it is subtracted
from dP (`along` below), while the correction m keeps one D of each kind.

Every kernel rebuilds a tile of P from q, k and L. A program owns a tile of query rows (`*_rows`) or of keys
(`*_keys`) and walks over the tiles of the other side that the window lets it see, and no others: memory is linear and
nothing is accumulated across programs, so results do not change from run to run.

q [batch, heads, new, HEAD], k, v [batch, kv_heads, keys, HEAD] with any strides but 1 for the last axis; all other
matrices are token-major, [batch, tokens, heads, HEAD] in memory; row vectors are [batch, heads, new].
"""

import triton
import triton.language as tl

from ttt_docs.kernels.triton_tiles import accumulate, load_tile, scores, store_tile, zero_tile

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _range_of_rows(first_row, new, keys, window, ROWS: tl.constexpr, STEP: tl.constexpr):
    """Keys that the tile of rows sees, [low, high), and inside it the part [left, right) that needs no mask."""
    first = keys - new + first_row
    last = keys - new + tl.minimum(first_row + ROWS, new) - 1
    low = tl.maximum(0, first - window + 1)
    left = low + tl.cdiv(tl.maximum(0, last - window + 1 - low), STEP) * STEP
    right = left + tl.maximum(0, first + 1 - left) // STEP * STEP
    return low, left, right, last + 1


@triton.jit
def _forward_tiles(
    acc1, acc2, top, total, q1, q2, k, v, stride_k, stride_v, i, low, high, keys, window,
    HEAD: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, KEYS: tl.constexpr, SCALE: tl.constexpr,
    MASKED: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Online softmax over keys [low, high): `top` the largest score so far (in log2 units), `total` the sum."""
    for start in range(low, high, KEYS):
        rows = tl.arange(0, KEYS)
        here_k = k + tl.cast(start, tl.int64) * stride_k
        here_v = v + tl.cast(start, tl.int64) * stride_v
        k1, k2 = load_tile(here_k, rows, stride_k, keys - start, D1, D2, HEAD, MASKED)
        s = scores(q1, q2, k1, k2, tl.zeros([ROWS, KEYS], dtype=ACC), D2, PRECISION)
        if MASKED:
            j = start + rows
            visible = (j[None, :] <= i[:, None]) & (j[None, :] > i[:, None] - window)
            s = tl.where(visible, s, float("-inf"))
            new_top = tl.maximum(top, tl.max(s, 1) * (SCALE * LOG2E))
            base = tl.where(new_top == float("-inf"), 0.0, new_top)
        else:
            new_top = tl.maximum(top, tl.max(s, 1) * (SCALE * LOG2E))
            base = new_top
        p = tl.exp2(s * (SCALE * LOG2E) - base[:, None])
        shrink = tl.exp2(top - base)
        total = total * shrink + tl.sum(p, 1)
        acc1 = acc1 * shrink[:, None]
        if D2 > 0:
            acc2 = acc2 * shrink[:, None]
        v1, v2 = load_tile(here_v, rows, stride_v, keys - start, D1, D2, HEAD, MASKED)
        acc1, acc2 = accumulate(acc1, acc2, p.to(v1.dtype), v1, v2, D2, PRECISION)
        top = new_top
    return acc1, acc2, top, total


@triton.jit
def forward_rows(
    q, k, v, sink_q, sink_k, sink_v, sink_hidden, out, log_total,
    qb, qh, qr, kb, kh, kr, vb, vh, vr, new, keys, window, sinks,
    HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, SCALE: tl.constexpr, SINKS: tl.constexpr, HIDDEN: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out = P V and log_total; with SINKS (their number, padded) the sinks' keys join the softmax."""
    first_row = tl.program_id(0) * ROWS
    batch = (tl.program_id(1) // HEADS).to(tl.int64)
    head = (tl.program_id(1) % HEADS).to(tl.int64)
    rows = first_row + tl.arange(0, ROWS)
    i = keys - new + rows
    q1, q2 = load_tile(q + batch * qb + head * qh, rows, qr, new, D1, D2, HEAD, True)
    k += batch * kb + head // GROUP * kh
    v += batch * vb + head // GROUP * vh
    flat = (batch * new * HEADS + head) * HEAD

    acc1, acc2 = zero_tile(ROWS, D1, D2, ACC)
    top = tl.full([ROWS], float("-inf"), dtype=ACC)
    total = tl.zeros([ROWS], dtype=ACC)
    if SINKS > 0:
        sink = tl.arange(0, SINKS)
        sink_base = (batch * (HEADS // GROUP) + head // GROUP) * sinks * HEAD
        sq1, sq2 = load_tile(sink_q + flat, rows, HEADS * HEAD, new, D1, D2, HEAD, True)
        sk1, sk2 = load_tile(sink_k + sink_base, sink, HEAD, sinks, D1, D2, HEAD, True)
        s = scores(sq1, sq2, sk1, sk2, tl.zeros([ROWS, SINKS], dtype=ACC), D2, PRECISION)
        shown = (sink[None, :] < sinks) & (rows[:, None] < new)
        if HIDDEN:
            shown = shown & (tl.load(sink_hidden + rows[:, None] * sinks + sink[None, :], mask=shown, other=1) == 0)
        s = tl.where(shown, s, float("-inf"))
        top = tl.max(s, 1) * (SCALE * LOG2E)
        base = tl.where(top == float("-inf"), 0.0, top)
        p = tl.exp2(s * (SCALE * LOG2E) - base[:, None])
        total = tl.sum(p, 1)
        sv1, sv2 = load_tile(sink_v + sink_base, sink, HEAD, sinks, D1, D2, HEAD, True)
        acc1, acc2 = accumulate(acc1, acc2, p.to(sv1.dtype), sv1, sv2, D2, PRECISION)

    low, left, right, high = _range_of_rows(first_row, new, keys, window, ROWS, KEYS)
    acc1, acc2, top, total = _forward_tiles(
        acc1, acc2, top, total, q1, q2, k, v, kr, vr, i, low, left, keys, window,
        HEAD, D1, D2, KEYS, SCALE, True, ACC, PRECISION, ROWS,
    )  # fmt: skip
    acc1, acc2, top, total = _forward_tiles(
        acc1, acc2, top, total, q1, q2, k, v, kr, vr, i, left, right, keys, window,
        HEAD, D1, D2, KEYS, SCALE, False, ACC, PRECISION, ROWS,
    )  # fmt: skip
    acc1, acc2, top, total = _forward_tiles(
        acc1, acc2, top, total, q1, q2, k, v, kr, vr, i, right, high, keys, window,
        HEAD, D1, D2, KEYS, SCALE, True, ACC, PRECISION, ROWS,
    )  # fmt: skip

    acc1 = acc1 / total[:, None]
    if D2 > 0:
        acc2 = acc2 / total[:, None]
    store_tile(out + flat, rows, HEADS * HEAD, new, acc1, acc2, D1, D2, HEAD)
    vector = (batch * HEADS + head) * new + rows
    tl.store(log_total + vector, top / LOG2E + tl.log(total), mask=rows < new)


@triton.jit
def _backward_tiles(
    acc1, acc2, q1, q2, do1, do2, log2_total, along, k, v, stride_k, stride_v, i, low, high, keys, window,
    HEAD: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, KEYS: tl.constexpr, SCALE: tl.constexpr,
    MASKED: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    for start in range(low, high, KEYS):
        rows = tl.arange(0, KEYS)
        here_k = k + tl.cast(start, tl.int64) * stride_k
        here_v = v + tl.cast(start, tl.int64) * stride_v
        k1, k2 = load_tile(here_k, rows, stride_k, keys - start, D1, D2, HEAD, MASKED)
        v1, v2 = load_tile(here_v, rows, stride_v, keys - start, D1, D2, HEAD, MASKED)
        s = scores(q1, q2, k1, k2, tl.zeros([ROWS, KEYS], dtype=ACC), D2, PRECISION)
        p = tl.exp2(s * (SCALE * LOG2E) - log2_total[:, None])
        if MASKED:
            j = start + rows
            visible = (j[None, :] <= i[:, None]) & (j[None, :] > i[:, None] - window)
            p = tl.where(visible, p, 0.0)
        grad_p = scores(do1, do2, v1, v2, tl.zeros([ROWS, KEYS], dtype=ACC), D2, PRECISION)
        grad_s = p * (grad_p - along[:, None])
        acc1, acc2 = accumulate(acc1, acc2, grad_s.to(k1.dtype), k1, k2, D2, PRECISION)
    return acc1, acc2


@triton.jit
def backward_rows(
    q, k, v, sink_q, sink_k, sink_v, sink_hidden, out, grad_out, log_total, grad_log_total,
    grad_q, grad_sink_q, along_out,
    qb, qh, qr, kb, kh, kr, vb, vh, vr, new, keys, window, sinks,
    HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, SCALE: tl.constexpr, SINKS: tl.constexpr, HIDDEN: tl.constexpr,
    LOG_TOTAL_GRAD: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dQ = s dS K, the sinks' queries likewise, and `along` = rowsum(dO * O) - l for `backward_keys`."""
    first_row = tl.program_id(0) * ROWS
    batch = (tl.program_id(1) // HEADS).to(tl.int64)
    head = (tl.program_id(1) % HEADS).to(tl.int64)
    rows = first_row + tl.arange(0, ROWS)
    i = keys - new + rows
    q1, q2 = load_tile(q + batch * qb + head * qh, rows, qr, new, D1, D2, HEAD, True)
    k += batch * kb + head // GROUP * kh
    v += batch * vb + head // GROUP * vh
    flat = (batch * new * HEADS + head) * HEAD
    do1, do2 = load_tile(grad_out + flat, rows, HEADS * HEAD, new, D1, D2, HEAD, True)
    o1, o2 = load_tile(out + flat, rows, HEADS * HEAD, new, D1, D2, HEAD, True)
    along = tl.sum(do1.to(ACC) * o1.to(ACC), 1)
    if D2 > 0:
        along += tl.sum(do2.to(ACC) * o2.to(ACC), 1)
    vector = (batch * HEADS + head) * new + rows
    if LOG_TOTAL_GRAD:
        along -= tl.load(grad_log_total + vector, mask=rows < new, other=0.0)
    tl.store(along_out + vector, along, mask=rows < new)
    log2_total = tl.load(log_total + vector, mask=rows < new, other=float("inf")) * LOG2E

    low, left, right, high = _range_of_rows(first_row, new, keys, window, ROWS, KEYS)
    acc1, acc2 = zero_tile(ROWS, D1, D2, ACC)
    acc1, acc2 = _backward_tiles(
        acc1, acc2, q1, q2, do1, do2, log2_total, along, k, v, kr, vr, i, low, left, keys, window,
        HEAD, D1, D2, KEYS, SCALE, True, ACC, PRECISION, ROWS,
    )  # fmt: skip
    acc1, acc2 = _backward_tiles(
        acc1, acc2, q1, q2, do1, do2, log2_total, along, k, v, kr, vr, i, left, right, keys, window,
        HEAD, D1, D2, KEYS, SCALE, False, ACC, PRECISION, ROWS,
    )  # fmt: skip
    acc1, acc2 = _backward_tiles(
        acc1, acc2, q1, q2, do1, do2, log2_total, along, k, v, kr, vr, i, right, high, keys, window,
        HEAD, D1, D2, KEYS, SCALE, True, ACC, PRECISION, ROWS,
    )  # fmt: skip
    store_tile(grad_q + flat, rows, HEADS * HEAD, new, acc1 * SCALE, acc2 * SCALE, D1, D2, HEAD)

    if SINKS > 0:
        sink = tl.arange(0, SINKS)
        sink_base = (batch * (HEADS // GROUP) + head // GROUP) * sinks * HEAD
        sq1, sq2 = load_tile(sink_q + flat, rows, HEADS * HEAD, new, D1, D2, HEAD, True)
        sk1, sk2 = load_tile(sink_k + sink_base, sink, HEAD, sinks, D1, D2, HEAD, True)
        sv1, sv2 = load_tile(sink_v + sink_base, sink, HEAD, sinks, D1, D2, HEAD, True)
        s = scores(sq1, sq2, sk1, sk2, tl.zeros([ROWS, SINKS], dtype=ACC), D2, PRECISION)
        shown = (sink[None, :] < sinks) & (rows[:, None] < new)
        if HIDDEN:
            shown = shown & (tl.load(sink_hidden + rows[:, None] * sinks + sink[None, :], mask=shown, other=1) == 0)
        p = tl.where(shown, tl.exp2(s * (SCALE * LOG2E) - log2_total[:, None]), 0.0)
        grad_p = scores(do1, do2, sv1, sv2, tl.zeros([ROWS, SINKS], dtype=ACC), D2, PRECISION)
        grad_s = p * (grad_p - along[:, None])
        acc1, acc2 = zero_tile(ROWS, D1, D2, ACC)
        acc1, acc2 = accumulate(acc1, acc2, grad_s.to(sk1.dtype), sk1, sk2, D2, PRECISION)
        store_tile(grad_sink_q + flat, rows, HEADS * HEAD, new, acc1 * SCALE, acc2 * SCALE, D1, D2, HEAD)


@triton.jit
def _range_of_keys(first_key, new, keys, window, KEYS: tl.constexpr, STEP: tl.constexpr):
    """Rows [low, high) that see any of a tile's keys; `low` is rounded down to whole tiles."""
    offset = keys - new
    low = tl.maximum(0, first_key - offset) // STEP * STEP
    high = tl.minimum(new, tl.minimum(first_key + KEYS, keys) - 1 + window - offset)
    return low, high


@triton.jit
def backward_keys(
    q, k, v, grad_out, log_total, along, grad_k, grad_v,
    qb, qh, qr, kb, kh, kr, vb, vh, vr, new, keys, window, constant,
    HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, SCALE: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dK = s dS^T Q and dV = P^T dO of the keys after the first `constant`, summed over the query heads of a group."""
    KV_HEADS: tl.constexpr = HEADS // GROUP
    first_key = constant + tl.program_id(0) * KEYS
    batch = (tl.program_id(1) // KV_HEADS).to(tl.int64)
    kv_head = (tl.program_id(1) % KV_HEADS).to(tl.int64)
    j = first_key + tl.arange(0, KEYS)
    k1, k2 = load_tile(k + batch * kb + kv_head * kh, j, kr, keys, D1, D2, HEAD, True)
    v1, v2 = load_tile(v + batch * vb + kv_head * vh, j, vr, keys, D1, D2, HEAD, True)
    dk1, dk2 = zero_tile(KEYS, D1, D2, ACC)
    dv1, dv2 = zero_tile(KEYS, D1, D2, ACC)
    low, high = _range_of_keys(first_key, new, keys, window, KEYS, ROWS)
    for member in range(GROUP):
        head = kv_head * GROUP + member
        flat = grad_out + (batch * new * HEADS + head) * HEAD
        vector = (batch * HEADS + head) * new
        for start in range(low, high, ROWS):
            rows = start + tl.arange(0, ROWS)
            q1, q2 = load_tile(q + batch * qb + head * qh, rows, qr, new, D1, D2, HEAD, True)
            do1, do2 = load_tile(flat, rows, HEADS * HEAD, new, D1, D2, HEAD, True)
            log2_total = tl.load(log_total + vector + rows, mask=rows < new, other=float("inf")) * LOG2E
            shift = tl.load(along + vector + rows, mask=rows < new, other=0.0)
            i = keys - new + rows
            visible = (j[:, None] <= i[None, :]) & (j[:, None] > i[None, :] - window)
            s = scores(k1, k2, q1, q2, tl.zeros([KEYS, ROWS], dtype=ACC), D2, PRECISION)
            p = tl.where(visible, tl.exp2(s * (SCALE * LOG2E) - log2_total[None, :]), 0.0)
            dv1, dv2 = accumulate(dv1, dv2, p.to(do1.dtype), do1, do2, D2, PRECISION)
            grad_p = scores(v1, v2, do1, do2, tl.zeros([KEYS, ROWS], dtype=ACC), D2, PRECISION)
            grad_s = p * (grad_p - shift[None, :])
            dk1, dk2 = accumulate(dk1, dk2, grad_s.to(q1.dtype), q1, q2, D2, PRECISION)
    flat_k = (batch * (keys - constant) * KV_HEADS + kv_head) * HEAD
    store_tile(grad_k + flat_k, j - constant, KV_HEADS * HEAD, keys - constant, dk1 * SCALE, dk2 * SCALE, D1, D2, HEAD)
    store_tile(grad_v + flat_k, j - constant, KV_HEADS * HEAD, keys - constant, dv1, dv2, D1, D2, HEAD)
