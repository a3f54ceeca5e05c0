"""Window attention of a pair: of values and of their derivatives along one direction, forward and backward.

The outer loop's gradient through an inner update is the gradient of a directional derivative: the chunk's loss moves by
`<g, v>` when the fast weights move along v, and what is wanted is the gradient of that. So a chunk runs on pairs
(`kernels/pairs.py`), and one backward pass over the pair gives both orders of derivative. In the notation of METHOD
section 8, with the tangents (a, b, c) of (Q, K, V):

    out     = P V                          G = s (a K^T + Q b^T),   g = rowsum(P*G)
    tangent = (P*(G - g)) V + P c

and for the cotangents (dU, dO) of (out, tangent), with D = rowsum(dO*out) and m = rowsum(dO*tangent + dU*out):

    dP = dO V^T - D        dS = P*dP        E = P*(G - g)        T = P*((G - g)*dP + dU V^T + dO c^T - m)
    grad_Q = s (T K + dS b)     grad_K = s (T^T Q + dS^T a)     grad_V = E^T dO + P^T dU
    grad_a = s dS K             grad_b = s dS^T Q               grad_c = P^T dO

which are section 8's gradients and the ordinary ones of dU in one: m takes the place of its two more row sums. Scores
exist one tile at a time and tiles outside the window are never visited; every shift (log-sum-exp, D, g, m) happens
inside a product. The keys and values of earlier chunks have gradient, but no tangent: they do not depend on this
chunk's fast weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ttt_docs.kernels.attention.definition import (
    Sinks,
    _block_diagonal,
    _hide,
    _tiles,
    _with_shift,
    sink_columns,
)
from ttt_docs.kernels.attention.training import attention_forward, sink_scores
from ttt_docs.kernels.workspace import wide, workspace

#: Query rows per tile, forward and backward.
TILE = 128


def _tile_weights(rows: Tensor, shifted_k: Tensor, group: int, window: int | None, out: Tensor) -> Tensor:
    """P of one tile: rows [folded, group * rows, d + 2] and keys [folded, seen, d + 2] with the log-sum-exp inside."""
    torch.bmm(rows, shifted_k.transpose(1, 2), out=out)
    folded, all_rows, seen = out.shape
    _hide(out.view(folded, group, all_rows // group, seen), window)
    return out.exp_()


def _sink_rows(weights: Tensor, x: Tensor) -> Tensor:
    """weights [batch, new, heads, sinks] times x [batch, kv_heads, sinks, d] -> [batch, new, heads, d]"""
    heads = weights.shape[2]
    out = weights.to(x.dtype).flatten(2) @ _block_diagonal(x, heads)
    return out.view(*weights.shape[:3], -1)


class _Folded:
    """A pair's queries, keys and values as tiles take them: [batch * kv_heads, ...], scaled, with room for shifts."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, log_total: Tensor) -> None:
        (self.q, self.a), (self.k, self.b), (self.v, self.c) = q.chunk(2), k.chunk(2), v.chunk(2)
        self.batch, self.heads, self.new, self.head_dim = self.q.shape
        self.kv_heads, self.keys = self.k.shape[1], self.k.shape[2]
        self.group, self.folded = self.heads // self.kv_heads, self.batch * self.kv_heads
        self.cached, self.scale = self.keys - self.new, self.head_dim**-0.5
        self.q, self.a = self.q * self.scale, self.a * self.scale
        self.k, self.b, self.v, self.c = (
            x.reshape(self.folded, self.keys, self.head_dim) for x in (self.k, self.b, self.v, self.c)
        )
        self.q_rows = self.rows(_with_shift(self.q, log_total))
        self.k_shifted = _with_shift(self.k, None)
        self.kb_shifted = _with_shift(torch.cat([self.k, self.b], dim=-1), None)

    def rows(self, x: Tensor) -> Tensor:
        """[batch, heads, new, n] -> [folded, group, new, n]"""
        return x.reshape(self.folded, self.group, self.new, -1)

    def tile(self, rows: Tensor, first: int, last: int) -> Tensor:
        return rows[:, :, first:last].reshape(self.folded, self.group * (last - first), -1)


def _tangent(x: _Folded, out: Tensor, window: int | None) -> tuple[Tensor, Tensor]:
    """(P*G) V + P c [batch, heads, new, d] and rowsum(P*G) [batch, heads, new], both over the window alone."""
    directions = x.rows(torch.cat([x.a, x.q], dim=-1))
    keys = x.kb_shifted[..., :-2]
    values = torch.cat([x.v, x.v.new_ones(x.folded, x.keys, 1)], dim=-1)
    tangent = x.q.new_empty(x.folded, x.group, x.new, x.head_dim)
    moved = x.q.new_empty(x.folded, x.group, x.new, 1)
    for first, last, start, stop in _tiles(x.new, x.keys, window, TILE):
        shape = (x.folded, x.group * (last - first), stop - start)
        weights = workspace("weights", shape, x.q.dtype)
        _tile_weights(x.tile(x.q_rows, first, last), x.k_shifted[:, start:stop], x.group, window, weights)
        scores = workspace("grad_scores", shape, x.q.dtype)
        torch.bmm(x.tile(directions, first, last), keys[:, start:stop].transpose(1, 2), out=scores)
        sums = scores.mul_(weights) @ values[:, start:stop]
        own = max(start, x.cached)
        if own < stop:
            sums[..., :-1] += weights[..., own - start :] @ x.c[:, own:stop]
        sums = sums.view(x.folded, x.group, last - first, -1)
        tangent[:, :, first:last], moved[:, :, first:last] = sums[..., :-1], sums[..., -1:]
    shape = (x.batch, x.heads, x.new)
    return tangent.view(*shape, -1), moved.view(shape)


class _PairAttention(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sink_q: Tensor | None,
        sink_k: Tensor | None,
        sink_v: Tensor | None,
        hidden: Tensor | None,
        window: int | None,
    ) -> Tensor:
        batch = q.shape[0] // 2
        sinks = None
        if sink_q is not None and sink_k is not None and sink_v is not None:
            sinks = Sinks(sink_q[:batch], sink_k[:batch], sink_v[:batch], hidden)
        out, log_total, weights = attention_forward(q[:batch], k[:batch], v[:batch], window, sinks)
        folded = _Folded(q, k, v, log_total)
        tangent, moved = _tangent(folded, out, window)
        moved = moved.to(wide(q.dtype))
        if sinks is not None and sink_q is not None and weights is not None:
            of_sinks = weights * sink_scores(sink_q[batch:], sinks.k).mul_(folded.scale)
            tangent += _sink_rows(of_sinks, sinks.v).transpose(1, 2)
            moved = moved + of_sinks.sum(-1).transpose(1, 2)
        result = q.new_empty(2, batch, folded.new, folded.heads, folded.head_dim).transpose(2, 3)
        result[0] = out
        torch.addcmul(tangent, out, moved.to(q.dtype).unsqueeze(-1), value=-1, out=result[1])
        ctx.window = window
        ctx.save_for_backward(q, k, v, sink_q, sink_k, sink_v, log_total, moved, weights, result)
        return result.flatten(0, 1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, sink_q, sink_k, sink_v, log_total, moved, sink_weights, result = ctx.saved_tensors
        x = _Folded(q, k, v, log_total)
        grad_out, grad_tangent = grad.chunk(2)
        along = torch.linalg.vecdot(grad_tangent, result[0]).to(log_total.dtype)  # D
        level = torch.linalg.vecdot(grad_tangent, result[1]) + torch.linalg.vecdot(grad_out, result[0])  # m
        level = level.to(log_total.dtype)

        score_rows = x.rows(_with_shift(torch.cat([x.a, x.q], dim=-1), moved))
        tangent_rows = x.rows(_with_shift(grad_tangent, along))
        both_rows = x.rows(_with_shift(torch.cat([grad_out, grad_tangent], dim=-1), level))
        queries = torch.stack([x.rows(x.q), x.rows(x.a)], dim=1)  # [folded, 2, group, new, d]
        grads = torch.stack([x.rows(grad_out), x.rows(grad_tangent)], dim=1)
        v_shifted = _with_shift(x.v, None)
        vc_shifted = _with_shift(torch.cat([x.v, x.c], dim=-1), None)

        grad_q = x.q.new_empty(2, x.folded, x.group, x.new, x.head_dim)
        grad_k = torch.zeros(2, x.folded, x.head_dim, x.keys, dtype=log_total.dtype)
        grad_v = torch.zeros_like(grad_k)
        for first, last, start, stop in _tiles(x.new, x.keys, ctx.window, TILE):
            rows, seen = x.group * (last - first), stop - start
            own = max(start, x.cached)
            newest, here = slice(own, stop), slice(own - start, seen)
            # P above E, and T above dS: one product then serves both.
            upper = workspace("pair_weights", (x.folded, 2 * rows, seen), x.q.dtype)
            lower = workspace("pair_scores", (x.folded, 2 * rows, seen), x.q.dtype)
            weights, moves, scores, first_order = upper[:, :rows], upper[:, rows:], lower[:, :rows], lower[:, rows:]
            tile_q = x.tile(x.q_rows, first, last)
            part_k, part_v = x.k_shifted[:, start:stop], v_shifted[:, start:stop].transpose(1, 2)
            buffer = workspace("weights", (x.folded, rows, seen), x.q.dtype)
            weights.copy_(_tile_weights(tile_q, part_k, x.group, ctx.window, buffer))
            torch.bmm(x.tile(score_rows, first, last), x.kb_shifted[:, start:stop].transpose(1, 2), out=buffer)
            grad_weights = workspace("grad_scores", (x.folded, rows, seen), x.q.dtype)
            torch.bmm(x.tile(tangent_rows, first, last), part_v, out=grad_weights)
            torch.mul(weights, grad_weights, out=first_order)
            torch.mul(weights, buffer, out=moves)
            buffer.mul_(grad_weights)
            torch.bmm(x.tile(both_rows, first, last), vc_shifted[:, start:stop].transpose(1, 2), out=grad_weights)
            torch.mul(buffer.add_(grad_weights), weights, out=scores)

            tile_queries = queries[:, :, :, first:last].reshape(x.folded, 2 * rows, -1)
            tile_grads = grads[:, :, :, first:last].reshape(x.folded, 2 * rows, -1)
            part = (lower @ x.k[:, start:stop]).view(x.folded, 2, rows, -1)
            if own < stop:
                part[:, 0] += first_order[..., here] @ x.b[:, newest]
                grad_k[1, ..., newest] += tile_queries[:, :rows].transpose(1, 2) @ first_order[..., here]
                grad_v[1, ..., newest] += tile_grads[:, rows:].transpose(1, 2) @ weights[..., here]
            grad_q[:, :, :, first:last] = part.transpose(0, 1).view(2, x.folded, x.group, last - first, -1)
            grad_k[0, ..., start:stop] += tile_queries.transpose(1, 2) @ lower
            grad_v[0, ..., start:stop] += tile_grads.transpose(1, 2) @ upper

        def unfolded(columns: Tensor) -> Tensor:
            return columns.transpose(2, 3).reshape(k.shape).to(k.dtype)

        of_sinks: tuple[Tensor | None, ...] = (None, None, None)
        if sink_weights is not None:
            of_sinks = _sinks_backward(grad, sink_q, sink_k, sink_v, sink_weights, moved, along, level)
        return (grad_q.mul_(x.scale).view(q.shape), unfolded(grad_k), unfolded(grad_v), *of_sinks, None, None)


def _sinks_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, weights: Tensor, moved: Tensor, along: Tensor, level: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The same formulas for the few sink columns (all [batch, new, heads, sinks], float32), whose tangents are zero."""
    batch, scale = grad.shape[0] // 2, q.shape[-1] ** -0.5
    grad_out, grad_tangent = grad.chunk(2)
    sink_k, sink_v = k[:batch], v[:batch]

    def column(rows: Tensor) -> Tensor:
        return rows.transpose(1, 2).unsqueeze(-1)

    moves = sink_scores(q[batch:], sink_k) * scale - column(moved)
    grad_weights = sink_scores(grad_tangent, sink_v) - column(along)
    first_order = weights * grad_weights * scale
    scores = moves * grad_weights + sink_scores(grad_out, sink_v) - column(level)
    scores = weights * scores * scale
    grad_q = torch.cat([_sink_rows(scores, sink_k), _sink_rows(first_order, sink_k)]).transpose(1, 2)
    grad_k = sink_columns(scores, q[:batch], sink_k) + sink_columns(first_order, q[batch:], sink_k)
    grad_v = sink_columns(weights * moves, grad_tangent, sink_v) + sink_columns(weights, grad_out, sink_v)
    zeros = torch.zeros_like(sink_k)
    return grad_q, torch.cat([grad_k, zeros]), torch.cat([grad_v, zeros])


def pair_window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None = None,
    sinks: Sinks | None = None,
    newest: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Attention of a pair on a CPU, differentiable once, in linear memory.

    q [2 * batch, heads, new, head_dim] and k, v [2 * batch, kv_heads, cached + new, head_dim]: values in the first half
    of the batch, tangents in the second; the tangents of cached keys and values, and of sinks, must be zero. `newest`
    is part of k, v and is not looked at.
    """
    if sinks is None:
        return _PairAttention.apply(q, k, v, None, None, None, None, window)
    return _PairAttention.apply(q, k, v, sinks.q, sinks.k, sinks.v, sinks.hidden, window)
