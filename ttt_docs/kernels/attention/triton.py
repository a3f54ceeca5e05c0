"""Window attention on the device, twice differentiable. Results are those of `window_attention_reference`.

Names are those of docs/method.md section 8: P the weights, dP = dO V^T, D = rowsum(P * dP), dS = P * (dP - D), s the
scale; a, b, c the cotangents of dQ, dK, dV. The log-sum-exp L of each row (`lse`) is a result too, with gradient l. The
kernels therefore subtract D - l from dP, and call it `delta`.

Every kernel rebuilds a tile of P from q, k and L. A program owns a tile of query rows (`*_rows`) or of keys
(`*_keys`) and walks over the tiles of the other side that the window lets it see, and no others: memory is linear and
nothing is accumulated across programs, so results do not change from run to run.

q [batch, heads, new, HEAD], k, v [batch, kv_heads, keys, HEAD] with any strides but 1 for the last axis; all other
matrices are token-major, [batch, tokens, heads, HEAD] in memory; row vectors are [batch, heads, new].
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ttt_docs.kernels.attention.definition import Sinks
from ttt_docs.kernels.attention.triton_second import second_backward
from ttt_docs.kernels.attention.triton_tiles import (
    LOG2E,
    accumulate,
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
from ttt_docs.kernels.triton_common import second_derivative, sums_of
from ttt_docs.kernels.workspace import empty_token_major, needs_grad, token_major, wide


@triton.jit
def _sink_tiles(
    sink_q, sink_k, sink_v, sink_hidden, flat, rows, new, sinks, batch, head, HEADS, GROUP, HEAD, SINKS, HIDDEN
):  # fmt: skip
    """Keys and values of the sinks, scores [rows, SINKS], and which of them count."""
    sink = tl.arange(0, SINKS)
    sink_base = (batch * (HEADS // GROUP) + head // GROUP) * sinks * HEAD
    own_q = load_tile(sink_q + flat, rows, HEADS * HEAD, new, HEAD)
    own_k = load_tile(sink_k + sink_base, sink, HEAD, sinks, HEAD)
    own_v = load_tile(sink_v + sink_base, sink, HEAD, sinks, HEAD)
    shown = (sink[None, :] < sinks) & (rows[:, None] < new)
    if HIDDEN:
        shown = shown & (tl.load(sink_hidden + rows[:, None] * sinks + sink[None, :], mask=shown, other=1) == 0)
    return own_k, own_v, scores(own_q, own_k), shown


@triton.jit
def _forward_tiles(acc, top, total, q, k, v, kr, vr, i, low, high, keys, window, HEAD, KEYS, SCALE, MASKED):
    """Online softmax over keys [low, high): `top` the largest score so far (in log2 units), `total` the sum."""
    for start in range(low, high, KEYS):
        rows = tl.arange(0, KEYS)
        here_k = k + tl.cast(start, tl.int64) * kr
        here_v = v + tl.cast(start, tl.int64) * vr
        s = scores(q, load_tile(here_k, rows, kr, keys - start, HEAD, MASKED))
        if MASKED:
            s = tl.where(visible(i[:, None], (start + rows)[None, :], window), s, float("-inf"))
            new_top = tl.maximum(top, tl.max(s, 1) * (SCALE * LOG2E))
            base = tl.where(new_top == float("-inf"), 0.0, new_top)
        else:
            new_top = tl.maximum(top, tl.max(s, 1) * (SCALE * LOG2E))
            base = new_top
        p = tl.exp2(s * (SCALE * LOG2E) - base[:, None])
        shrink = tl.exp2(top - base)
        total = total * shrink + tl.sum(p, 1)
        acc = [part * shrink[:, None] for part in acc]
        acc = accumulate(acc, p, load_tile(here_v, rows, vr, keys - start, HEAD, MASKED))
        top = new_top
    return acc, top, total


@triton.jit
def forward_rows(
    q, k, v, sink_q, sink_k, sink_v, sink_hidden, out, lse,
    qb, qh, qr, kb, kh, kr, vb, vh, vr, new, keys, window, sinks, SINKS: tl.constexpr, HIDDEN: tl.constexpr,
    HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """out = P V and lse; with SINKS (their number, padded) the sinks' keys join the softmax."""
    SCALE: tl.constexpr = HEAD**-0.5
    ACC: tl.constexpr = sums_of(q.dtype.element_ty)
    first_row = tl.program_id(0) * ROWS
    batch, head = head_of(HEADS)
    rows = first_row + tl.arange(0, ROWS)
    i = keys - new + rows
    q = load_tile(q + batch * qb + head * qh, rows, qr, new, HEAD)
    k += batch * kb + head // GROUP * kh
    v += batch * vb + head // GROUP * vh
    flat = (batch * new * HEADS + head) * HEAD

    acc = zero_tile(ROWS, HEAD, ACC)
    top = tl.full([ROWS], float("-inf"), dtype=ACC)
    total = tl.zeros([ROWS], dtype=ACC)
    if SINKS > 0:
        _, own_v, s, shown = _sink_tiles(
            sink_q, sink_k, sink_v, sink_hidden, flat, rows, new, sinks, batch, head, HEADS, GROUP, HEAD, SINKS, HIDDEN
        )
        s = tl.where(shown, s, float("-inf"))
        top = tl.max(s, 1) * (SCALE * LOG2E)
        base = tl.where(top == float("-inf"), 0.0, top)
        p = tl.exp2(s * (SCALE * LOG2E) - base[:, None])
        total = tl.sum(p, 1)
        acc = accumulate(acc, p, own_v)

    bounds = range_of_rows(first_row, new, keys, window, ROWS, KEYS)
    for step in tl.static_range(3):
        acc, top, total = _forward_tiles(
            acc, top, total, q, k, v, kr, vr, i, bounds[step], bounds[step + 1], keys, window,
            HEAD, KEYS, SCALE, step != 1,
        )  # fmt: skip

    store_tile(out + flat, rows, HEADS * HEAD, new, [part / total[:, None] for part in acc], HEAD)
    vector = (batch * HEADS + head) * new + rows
    tl.store(lse + vector, top / LOG2E + tl.log(total), mask=rows < new)


@triton.jit
def _backward_tiles(acc, q, do, lse_log2, delta, k, v, kr, vr, i, low, high, keys, window, HEAD, KEYS, SCALE, MASKED):
    for start in range(low, high, KEYS):
        rows = tl.arange(0, KEYS)
        own_k = load_tile(k + tl.cast(start, tl.int64) * kr, rows, kr, keys - start, HEAD, MASKED)
        own_v = load_tile(v + tl.cast(start, tl.int64) * vr, rows, vr, keys - start, HEAD, MASKED)
        p = tl.exp2(scores(q, own_k) * (SCALE * LOG2E) - lse_log2[:, None])
        if MASKED:
            p = tl.where(visible(i[:, None], (start + rows)[None, :], window), p, 0.0)
        acc = accumulate(acc, p * (scores(do, own_v) - delta[:, None]), own_k)
    return acc


@triton.jit
def backward_rows(
    q, k, v, sink_q, sink_k, sink_v, sink_hidden, out, grad_out, lse, grad_lse,
    grad_q, grad_sink_q, delta_out,
    qb, qh, qr, kb, kh, kr, vb, vh, vr, new, keys, window, sinks,
    SINKS: tl.constexpr, HIDDEN: tl.constexpr, LSE_GRAD: tl.constexpr,
    HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """dQ = s dS K, the sinks' queries likewise, and `delta` = rowsum(dO * O) - l for `backward_keys`."""
    SCALE: tl.constexpr = HEAD**-0.5
    ACC: tl.constexpr = sums_of(q.dtype.element_ty)
    first_row = tl.program_id(0) * ROWS
    batch, head = head_of(HEADS)
    rows = first_row + tl.arange(0, ROWS)
    i = keys - new + rows
    q = load_tile(q + batch * qb + head * qh, rows, qr, new, HEAD)
    k += batch * kb + head // GROUP * kh
    v += batch * vb + head // GROUP * vh
    flat = (batch * new * HEADS + head) * HEAD
    do = load_tile(grad_out + flat, rows, HEADS * HEAD, new, HEAD)
    delta = row_sums(do, load_tile(out + flat, rows, HEADS * HEAD, new, HEAD))
    vector = (batch * HEADS + head) * new + rows
    if LSE_GRAD:
        delta -= tl.load(grad_lse + vector, mask=rows < new, other=0.0)
    tl.store(delta_out + vector, delta, mask=rows < new)
    lse_log2 = tl.load(lse + vector, mask=rows < new, other=float("inf")) * LOG2E

    bounds = range_of_rows(first_row, new, keys, window, ROWS, KEYS)
    acc = zero_tile(ROWS, HEAD, ACC)
    for step in tl.static_range(3):
        acc = _backward_tiles(
            acc, q, do, lse_log2, delta, k, v, kr, vr, i, bounds[step], bounds[step + 1], keys, window,
            HEAD, KEYS, SCALE, step != 1,
        )  # fmt: skip
    store_tile(grad_q + flat, rows, HEADS * HEAD, new, [part * SCALE for part in acc], HEAD)

    if SINKS > 0:
        own_k, own_v, s, shown = _sink_tiles(
            sink_q, sink_k, sink_v, sink_hidden, flat, rows, new, sinks, batch, head, HEADS, GROUP, HEAD, SINKS, HIDDEN
        )
        p = tl.where(shown, tl.exp2(s * (SCALE * LOG2E) - lse_log2[:, None]), 0.0)
        grad_s = p * (scores(do, own_v) - delta[:, None])
        acc = accumulate(zero_tile(ROWS, HEAD, ACC), grad_s, own_k)
        store_tile(grad_sink_q + flat, rows, HEADS * HEAD, new, [part * SCALE for part in acc], HEAD)


@triton.jit
def backward_keys(
    q, k, v, grad_out, lse, delta, grad_k, grad_v,
    qb, qh, qr, kb, kh, kr, vb, vh, vr, new, keys, window, constant,
    HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """dK = s dS^T Q and dV = P^T dO of the keys after the first `constant`, summed over the query heads of a group."""
    SCALE: tl.constexpr = HEAD**-0.5
    KV_HEADS: tl.constexpr = HEADS // GROUP
    ACC: tl.constexpr = sums_of(q.dtype.element_ty)
    first_key = constant + tl.program_id(0) * KEYS
    batch, kv_head = head_of(KV_HEADS)
    j = first_key + tl.arange(0, KEYS)
    k = load_tile(k + batch * kb + kv_head * kh, j, kr, keys, HEAD)
    v = load_tile(v + batch * vb + kv_head * vh, j, vr, keys, HEAD)
    dk = zero_tile(KEYS, HEAD, ACC)
    dv = zero_tile(KEYS, HEAD, ACC)
    low, high = range_of_keys(first_key, new, keys, window, KEYS, ROWS)
    for member in range(GROUP):
        head = kv_head * GROUP + member
        flat = grad_out + (batch * new * HEADS + head) * HEAD
        vector = (batch * HEADS + head) * new
        for start in range(low, high, ROWS):
            rows = start + tl.arange(0, ROWS)
            own_q = load_tile(q + batch * qb + head * qh, rows, qr, new, HEAD)
            do = load_tile(flat, rows, HEADS * HEAD, new, HEAD)
            lse_log2 = tl.load(lse + vector + rows, mask=rows < new, other=float("inf")) * LOG2E
            shift = tl.load(delta + vector + rows, mask=rows < new, other=0.0)
            seen = visible((keys - new + rows)[None, :], j[:, None], window)
            p = tl.where(seen, tl.exp2(scores(k, own_q) * (SCALE * LOG2E) - lse_log2[None, :]), 0.0)
            dv = accumulate(dv, p, do)
            dk = accumulate(dk, p * (scores(v, do) - shift[None, :]), own_q)
    flat_k = (batch * (keys - constant) * KV_HEADS + kv_head) * HEAD
    store_tile(grad_k + flat_k, j - constant, KV_HEADS * HEAD, keys - constant, [part * SCALE for part in dk], HEAD)
    store_tile(grad_v + flat_k, j - constant, KV_HEADS * HEAD, keys - constant, dv, HEAD)


def _sink_arguments(sinks: Sinks | None) -> tuple[tuple[Tensor | None, ...], int, dict[str, Any]]:
    """Tensors, number and constants that `forward_rows` and `backward_rows` take for the sinks."""
    if sinks is None:
        return (None,) * 4, 0, {"SINKS": 0, "HIDDEN": False}
    hidden = None if sinks.hidden is None else sinks.hidden.contiguous().view(torch.uint8)
    count = sinks.k.shape[2]
    constants = {"SINKS": max(16, triton.next_power_of_2(count)), "HIDDEN": hidden is not None}
    return (token_major(sinks.q), sinks.k.contiguous(), sinks.v.contiguous(), hidden), count, constants


def _forward(q: Tensor, k: Tensor, v: Tensor, window: int, sinks: Sinks | None) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp [batch, heads, new] (natural logarithm; float32, float64 for float64)."""
    out, lse = empty_token_major(q), q.new_empty(q.shape[:3], dtype=wide(q.dtype))
    of_sinks, count, constants = _sink_arguments(sinks)
    launch(forward_rows, (q, k, v, *of_sinks, out, lse), window, count, **constants)
    return out, lse


def _backward(
    q: Tensor, k: Tensor, v: Tensor, window: int, sinks: Sinks | None, out: Tensor, lse: Tensor,
    grad_out: Tensor, grad_lse: Tensor | None, own: int,
) -> tuple[tuple[Tensor | None, ...], Tensor]:  # fmt: skip
    """Gradients for q, the last `own` keys and values, and the sinks' queries; and `delta`. grad_out is token-major."""
    delta = torch.empty_like(lse)
    grad_q, grad_sink_q = empty_token_major(q), None if sinks is None else empty_token_major(q)
    of_sinks, count, constants = _sink_arguments(sinks)
    given = out, grad_out, lse, grad_lse
    launch(
        backward_rows, (q, k, v, *of_sinks, *given, grad_q, grad_sink_q, delta), window, count,
        LSE_GRAD=grad_lse is not None, **constants,
    )  # fmt: skip
    if own == 0:
        return (grad_q, None, None, grad_sink_q), delta
    constant = k.shape[2] - own
    grad_k, grad_v = (empty_token_major(k[:, :, constant:]) for _ in range(2))
    tensors = q, k, v, grad_out, lse, delta, grad_k, grad_v
    launch(backward_keys, tensors, window, constant, over_keys=True)
    return (grad_q, grad_k, grad_v, grad_sink_q), delta


class _Attention(torch.autograd.Function):
    """Output and log-sum-exp. Gradient reaches q, own_k, own_v and sink_q. k and v are constants to autograd, and own_k
    and own_v are the last of them. The sinks' keys and values are constants too, as while reading. They join the
    softmax inside the kernels, and then only the output has gradient."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, q: Tensor, own_k: Tensor, own_v: Tensor, sink_q: Tensor | None, k: Tensor, v: Tensor,
        sinks: Sinks | None, window: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        out, lse = _forward(q, k, v, window, sinks)
        ctx.window = window
        ctx.save_for_backward(q, own_k, own_v, sink_q, k, v, out, lse, *(sinks or (None,) * 4)[1:])
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, own_k, own_v, sink_q, k, v, out, lse, *rest = ctx.saved_tensors
        inputs, window = (q, own_k, own_v, sink_q), ctx.window
        grad_out = torch.zeros_like(out) if grad_out is None else grad_out
        if sink_q is None:
            constants = k, v, out.detach(), lse.detach(), window
            grads = _AttentionBackward.apply(q, own_k, own_v, grad_out, grad_lse, *constants)
        elif torch.is_grad_enabled():  # a gradient of this gradient is wanted: go through what has one
            merged = _merged(q, own_k, own_v, k, v, Sinks(sink_q, *rest), window)
            asked = [x for x in inputs if x.requires_grad]
            found = iter(torch.autograd.grad(merged, asked, grad_out, create_graph=True))
            grads = tuple(next(found) if x.requires_grad else None for x in inputs)
        else:
            own = own_k.shape[2] if ctx.needs_input_grad[1] or ctx.needs_input_grad[2] else 0
            sinks, grad_out = Sinks(sink_q, *rest), token_major(grad_out)
            grads, _ = _backward(q, k, v, window, sinks, out, lse, grad_out, None, own)
        return *grads, *(None,) * (8 - len(grads))


class _AttentionBackward(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, q: Tensor, own_k: Tensor, own_v: Tensor, grad_out: Tensor, grad_lse: Tensor | None,
        k: Tensor, v: Tensor, out: Tensor, lse: Tensor, window: int,
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        grad_out = token_major(grad_out)
        grad_lse = None if grad_lse is None else grad_lse.contiguous()
        own = own_k.shape[2]
        grads, delta = _backward(q, k, v, window, None, out, lse, grad_out, grad_lse, own)
        ctx.window = window
        ctx.save_for_backward(q, k, v, grad_out, grad_lse, lse, delta)
        return grads[:3]

    @staticmethod
    @second_derivative
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        return second_backward(ctx.saved_tensors, cotangents, ctx.window)


def _merged(q: Tensor, own_k: Tensor, own_v: Tensor, k: Tensor, v: Tensor, sinks: Sinks, window: int) -> Tensor:
    """Window and sinks each by itself, joined by their log-sum-exps in PyTorch: gradient for everything, twice."""
    out, lse = _Attention.apply(q, own_k, own_v, None, k, v, None, window)
    batch, heads, new, head_dim = q.shape
    kv_heads = sinks.k.shape[1]
    sink_q = sinks.q.reshape(batch, kv_heads, heads // kv_heads, new, head_dim)
    sink_scores = (sink_q @ sinks.k.unsqueeze(2).transpose(-1, -2)).to(lse.dtype) * head_dim**-0.5
    if sinks.hidden is not None:
        sink_scores = sink_scores.masked_fill(sinks.hidden, float("-inf"))
    grouped = lse.reshape(batch, kv_heads, heads // kv_heads, new, 1)
    total = torch.logsumexp(torch.cat([grouped, sink_scores], -1), -1, keepdim=True)
    of_sinks = (sink_scores - total).exp().to(q.dtype) @ sinks.v.unsqueeze(2)
    share = (grouped - total).exp().to(q.dtype)
    return (out.reshape(of_sinks.shape) * share + of_sinks).reshape(out.shape)


def window_attention_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None = None,
    sinks: Sinks | None = None,
    newest: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """As `window_attention_reference`, differentiable twice, in memory linear in the number of keys."""
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    keys = k.shape[2]
    window = min(window or keys, keys)
    own_k, own_v = (k, v) if newest is None or k.requires_grad or v.requires_grad else newest
    if sinks is not None and needs_grad(sinks.k, sinks.v):
        return _merged(q, own_k, own_v, k, v, sinks, window)
    sink_q = None if sinks is None else sinks.q
    if not needs_grad(q, own_k, own_v, sink_q):
        return _forward(q, k, v, window, sinks)[0]
    assert q.shape[2] <= keys
    return _Attention.apply(q, own_k, own_v, sink_q, k.detach(), v.detach(), sinks, window)[0]
