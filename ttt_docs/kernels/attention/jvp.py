"""Window attention of values and tangents, forward and backward (docs/method.md section 4).

A dual tensor stacks values and their derivatives along one direction (tangents) along the batch, as in all `jvp.py`
(see `swiglu/jvp.py`). In the notation of docs/method.md section 8, with the tangents (a, b, c) of (Q, K, V):

    out     = P V                          G = s (a K^T + Q b^T),   g = rowsum(P*G)
    tangent = (P*(G - g)) V + P c

and for the cotangents (dU, dO) of (out, tangent), with D = rowsum(dO*out) and m = rowsum(dO*tangent + dU*out):

    dP = dO V^T - D        dS = P*dP        E = P*(G - g)        T = P*((G - g)*dP + dU V^T + dO c^T - m)
    grad_Q = s (T K + dS b)     grad_K = s (T^T Q + dS^T a)     grad_V = E^T dO + P^T dU
    grad_a = s dS K             grad_b = s dS^T Q               grad_c = P^T dO

which are section 8's gradients and the ordinary ones of dU in one: m takes the place of its two more row sums. Scores
exist one tile at a time, and every shift (lse, D, g, m) happens inside a product. The keys and values of earlier chunks
have gradient, but no tangent: they do not depend on this chunk's fast weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ttt_docs.kernels.attention.cpu import (
    CPU_PASSES,
    Folded,
    Inputs,
    Passes,
    sink_columns,
    sink_rows,
    sink_scores,
    sink_weights,
    with_shift,
)
from ttt_docs.kernels.attention.definition import Newest, Sinks
from ttt_docs.kernels.workspace import wide, workspace

#: Query rows per tile, forward and backward.
TILE = 128


class _Dual(Folded):
    """Queries (scaled), keys, values and their tangents a, b, c as tiles take them."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, window: int | None, lse: Tensor) -> None:
        (q, a), (k, b), (v, c) = (x.chunk(2) for x in (q, k, v))
        super().__init__(q, k, window, TILE)
        self.q, self.a = q * self.scale, a * self.scale
        self.k, self.b, self.v, self.c = (self.columns(x) for x in (k, b, v, c))
        self.q_rows = self.rows(with_shift(self.q, lse))
        self.k_shifted = with_shift(self.k, None)
        self.kb_shifted = with_shift(torch.cat([self.k, self.b], dim=-1), None)

    def newest(self, start: int) -> int:
        """The first of a tile's keys that has a tangent."""
        return max(start, self.keys - self.new)


def _tangent(x: _Dual) -> tuple[Tensor, Tensor]:
    """(P*G) V + P c [batch, heads, new, d] and rowsum(P*G) [batch, heads, new], both over the window alone."""
    directions = x.rows(torch.cat([x.a, x.q], dim=-1))
    values = torch.cat([x.v, x.v.new_ones(x.folded, x.keys, 1)], dim=-1)
    sums = x.q.new_empty(x.folded, x.group, x.new, x.head_dim + 1)
    for tile in x.tiles:
        first, last, start, stop = tile
        weights = x.weights(x.cut(x.q_rows, tile), x.k_shifted, tile)
        scores = x.product("grad_scores", x.cut(directions, tile), x.kb_shifted[..., :-2], tile)
        own_sums = scores.mul_(weights) @ values[:, start:stop]
        own = x.newest(start)
        if own < stop:
            own_sums[..., :-1] += weights[..., own - start :] @ x.c[:, own:stop]
        sums[:, :, first:last] = own_sums.unflatten(1, (x.group, -1))
    sums = sums.view(x.batch, x.heads, x.new, -1)
    return sums[..., :-1], sums[..., -1]


class _WindowAttentionJvp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, passes: Passes, window: int | None, *tensors: Any) -> Tensor:
        q, k, v, *of_sinks = tensors
        batch, sinks = q.shape[0] // 2, None
        if of_sinks:
            sink_q, sink_k, sink_v, hidden = of_sinks
            sinks = Sinks(sink_q[:batch], sink_k[:batch], sink_v[:batch], hidden)
        out, lse, weights = passes.forward(Inputs(q[:batch], k[:batch], v[:batch], window, sinks))
        x = _Dual(q, k, v, window, lse)
        tangent, moved = _tangent(x)
        moved = moved.to(wide(q.dtype))  # g
        if sinks is not None:
            weights = sink_weights(sinks, lse) if weights is None else weights
            of_tangent = weights * sink_scores(sink_q[batch:], sinks.k).mul_(x.scale)
            tangent = tangent + sink_rows(of_tangent, sinks.v)
            moved = moved + of_tangent.sum(-1).transpose(1, 2)
        result = q.new_empty(2, batch, x.new, x.heads, x.head_dim).transpose(2, 3)
        result[0] = out
        torch.addcmul(tangent, out, moved.to(q.dtype).unsqueeze(-1), value=-1, out=result[1])
        ctx.window = window
        ctx.save_for_backward(q, k, v, lse, moved, result, weights, *of_sinks)
        return result.flatten(0, 1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, lse, moved, result, sink_weights, *of_sinks = ctx.saved_tensors
        x = _Dual(q, k, v, ctx.window, lse)
        grad_out, grad_tangent = grad.chunk(2)
        delta = torch.linalg.vecdot(grad_tangent, result[0]).to(lse.dtype)  # D
        level = torch.linalg.vecdot(grad_tangent, result[1]) + torch.linalg.vecdot(grad_out, result[0])  # m
        level = level.to(lse.dtype)

        score_rows = x.rows(with_shift(torch.cat([x.a, x.q], dim=-1), moved))
        tangent_rows = x.rows(with_shift(grad_tangent, delta))
        both_rows = x.rows(with_shift(torch.cat([grad_out, grad_tangent], dim=-1), level))
        queries = torch.stack([x.rows(x.q), x.rows(x.a)], dim=1)  # [folded, 2, group, new, d]
        grads = torch.stack([x.rows(grad_out), x.rows(grad_tangent)], dim=1)
        v_shifted = with_shift(x.v, None)
        vc_shifted = with_shift(torch.cat([x.v, x.c], dim=-1), None)

        grad_q = x.q.new_empty(2, x.folded, x.group, x.new, x.head_dim)
        grad_k = torch.zeros(2, x.folded, x.head_dim, x.keys, dtype=lse.dtype)
        grad_v = torch.zeros_like(grad_k)
        for tile in x.tiles:
            first, last, start, stop = tile
            rows, seen, own = x.group * (last - first), stop - start, x.newest(start)
            newest, here = slice(own, stop), slice(own - start, seen)
            # P above E, and T above dS: one product then serves both.
            stacked = (x.folded, 2 * rows, seen)
            upper, lower = (workspace(name, stacked, x.q.dtype) for name in ("dual weights", "dual scores"))
            weights, moves, scores, first_order = upper[:, :rows], upper[:, rows:], lower[:, :rows], lower[:, rows:]
            weights.copy_(x.weights(x.cut(x.q_rows, tile), x.k_shifted, tile))
            moved_scores = x.product("weights", x.cut(score_rows, tile), x.kb_shifted, tile)  # G - g
            grad_weights = x.product("grad_scores", x.cut(tangent_rows, tile), v_shifted, tile)  # dP
            torch.mul(weights, grad_weights, out=first_order)
            torch.mul(weights, moved_scores, out=moves)
            moved_scores.mul_(grad_weights)
            moved_scores.add_(x.product("grad_scores", x.cut(both_rows, tile), vc_shifted, tile))
            torch.mul(moved_scores, weights, out=scores)

            tile_queries, tile_grads = (y[:, :, :, first:last].flatten(1, 3) for y in (queries, grads))
            part = (lower @ x.k[:, start:stop]).view(x.folded, 2, rows, -1)
            if own < stop:
                part[:, 0] += first_order[..., here] @ x.b[:, newest]
                grad_k[1, ..., newest] += tile_queries[:, :rows].transpose(1, 2) @ first_order[..., here]
                grad_v[1, ..., newest] += tile_grads[:, rows:].transpose(1, 2) @ weights[..., here]
            grad_q[:, :, :, first:last] = part.transpose(0, 1).unflatten(2, (x.group, -1))
            grad_k[0, ..., start:stop] += tile_queries.transpose(1, 2) @ lower
            grad_v[0, ..., start:stop] += tile_grads.transpose(1, 2) @ upper
        grad_k, grad_v = (y.transpose(2, 3).reshape(k.shape).to(k.dtype) for y in (grad_k, grad_v))
        inputs = None, None, grad_q.mul_(x.scale).view(q.shape), grad_k, grad_v
        if not of_sinks:
            return inputs
        return *inputs, *_sinks_backward(grad, Sinks(*of_sinks), sink_weights, moved, delta, level), None


def _sinks_backward(
    grad: Tensor, sinks: Sinks, weights: Tensor, moved: Tensor, delta: Tensor, level: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The same formulas for the few sink columns (all [batch, new, heads, sinks], float32), whose tangents are zero."""
    batch, scale = grad.shape[0] // 2, sinks.q.shape[-1] ** -0.5
    grad_out, grad_tangent = grad.chunk(2)
    q, a, k, v = sinks.q[:batch], sinks.q[batch:], sinks.k[:batch], sinks.v[:batch]
    g, d, m = (row.transpose(1, 2).unsqueeze(-1) for row in (moved, delta, level))
    moves = sink_scores(a, k) * scale - g
    grad_weights = sink_scores(grad_tangent, v) - d
    first_order = weights * grad_weights * scale
    scores = weights * (moves * grad_weights + sink_scores(grad_out, v) - m) * scale
    grad_k = sink_columns(scores, q, k) + sink_columns(first_order, a, k)
    grad_v = sink_columns(weights * moves, grad_tangent, v) + sink_columns(weights, grad_out, v)
    grad_q = torch.cat([sink_rows(scores, k), sink_rows(first_order, k)])
    return grad_q, torch.cat([grad_k, torch.zeros_like(k)]), torch.cat([grad_v, torch.zeros_like(v)])


def window_attention_jvp(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None = None,
    sinks: Sinks | None = None,
    newest: Newest = None,
    passes: Passes = CPU_PASSES,
) -> Tensor:
    """Attention of duals on a CPU, differentiable once, in linear memory; `passes` make the values.

    q [2 * batch, heads, new, head_dim] and k, v [2 * batch, kv_heads, cached + new, head_dim]: the tangents of cached
    keys and values, and of sinks, must be zero. All of k and v have gradient; `newest` is not looked at.
    """
    return _WindowAttentionJvp.apply(passes, window, q, k, v, *(sinks or ()))
