"""Causal window attention with grouped-query heads and attention sinks.

Every function here takes

    q        [batch, heads, new, head_dim]       queries of the newest tokens, rotated (RoPE)
    k, v     [batch, kv_heads, cached + new, head_dim]   all keys and values kept, the newest tokens' last
    window   keys a query sees, itself included (None: all of them)
    sinks    keys of the first tokens, kept for ever, with queries turned for them (see `Sinks`)

and returns [batch, heads, new, head_dim]. Query `i` (counted in key positions) sees keys `i - window < j <= i`.
The scale is 1 / sqrt(head_dim). METHOD sections 1, 2, 6 and 8.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ttt_docs.kernels.workspace import workspace

#: Query rows per tile of the CPU path, forward and backward: keys outside a tile's window are never touched. Small
#: tiles waste fewer scores at the window's edges, large ones make better products; these measured best.
TILE = 256
BACKWARD_TILE = 128


class Sinks(NamedTuple):
    """The first tokens' keys and values, which a model trained with full attention leans on.

    A query sees sink `s` beside its window once the window has moved past it, at the place right before the window.
    As that distance no longer changes, the queries come turned by a constant angle instead of by their position.
    """

    q: Tensor  # [batch, heads, new, head_dim]
    k: Tensor  # [batch, kv_heads, sinks, head_dim]
    v: Tensor  # [batch, kv_heads, sinks, head_dim]
    hidden: Tensor | None  # bool [new, sinks]: True where the sink is still inside the window; None: all are visible


def window_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None = None,
    sinks: Sinks | None = None,
    newest: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The definition, in plain PyTorch: differentiable any number of times, memory [new, cached + new].

    With `newest`, the newest tokens' keys and values beside a cache that holds constants, gradient reaches those.
    """
    if newest is not None:
        cached = k.shape[2] - q.shape[2]
        k, v = torch.cat([k[:, :, :cached], newest[0]], 2), torch.cat([v[:, :, :cached], newest[1]], 2)
    batch, heads, new, head_dim = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    scale = head_dim**-0.5

    def scores_of(query: Tensor, key: Tensor) -> Tensor:
        grouped = query.reshape(batch, kv_heads, heads // kv_heads, new, head_dim)
        scores = grouped @ key.unsqueeze(2).transpose(-1, -2)
        return (scores if scores.dtype == torch.float64 else scores.float()) * scale

    i = torch.arange(keys - new, keys, device=q.device)[:, None]
    j = torch.arange(keys, device=q.device)[None, :]
    visible = j <= i
    if window is not None:
        visible = visible & (j > i - window)
    scores = scores_of(q, k).masked_fill(~visible, float("-inf"))
    if sinks is not None:
        sink_scores = scores_of(sinks.q, sinks.k)
        if sinks.hidden is not None:
            sink_scores = sink_scores.masked_fill(sinks.hidden, float("-inf"))
        scores = torch.cat([sink_scores, scores], dim=-1)
        v = torch.cat([sinks.v, v], dim=2)
    weights = torch.softmax(scores, dim=-1).to(q.dtype)
    return (weights @ v.unsqueeze(2)).reshape(batch, heads, new, head_dim)


@lru_cache(maxsize=64)
def _tile_bias(rows: int, keys: int, window: int, dtype: torch.dtype) -> Tensor:
    """Additive mask [rows, keys] of a tile whose last row is the last key's query."""
    i = torch.arange(keys - rows, keys)[:, None]
    j = torch.arange(keys)[None, :]
    hidden = (j > i) | (j <= i - window)
    return torch.zeros(rows, keys, dtype=dtype).masked_fill_(hidden, float("-inf"))


def _tiles(new: int, keys: int, window: int | None, size: int) -> list[tuple[int, int, int, int]]:
    """(first row, last row, first key, last key) of every tile, keys cut to what the rows can see."""
    tiles = []
    for first in range(0, new, size):
        last = min(first + size, new)
        stop = keys - new + last
        start = 0 if window is None else max(0, stop - (last - first) - window + 1)
        tiles.append((first, last, start, stop))
    return tiles


def _block_diagonal(x: Tensor, heads: int) -> Tensor:
    """x [batch, kv_heads, sinks, d] -> [batch, heads * sinks, heads * d]: one product then serves all heads, in the
    memory order [batch, tokens, heads, d] that the projections around attention have."""
    batch, kv_heads, sinks, d = x.shape
    out = x.new_zeros(batch, heads, sinks, heads, d)
    head = torch.arange(heads)
    out[:, head, :, head] = x.repeat_interleave(heads // kv_heads, dim=1).transpose(0, 1)
    return out.view(batch, heads * sinks, heads * d)


def _flat(x: Tensor) -> Tensor:
    """[batch, heads, tokens, d] -> [batch, tokens, heads * d]"""
    return x.transpose(1, 2).flatten(2)


def _add_sinks(out: Tensor, log_total: Tensor, sinks: Sinks) -> Tensor:
    """Turns attention over the window into attention over window and sinks, in place, and returns the sinks' weights.

    out [batch, tokens, heads, d] and log_total [batch, tokens, heads] are the window's output and log-sum-exp; the
    weights are float32 [batch, tokens, heads, sinks].
    """
    batch, tokens, heads, head_dim = out.shape
    scores = _flat(sinks.q) @ _block_diagonal(sinks.k, heads).transpose(1, 2)
    scores = scores.view(batch, tokens, heads, -1).to(log_total.dtype).mul_(head_dim**-0.5)
    weights = scores.sub_(log_total.unsqueeze(-1)).clamp_(max=60.0).exp_()  # relative to the window's total
    if sinks.hidden is not None:
        weights.masked_fill_(sinks.hidden.unsqueeze(1), 0.0)
    total = 1 + weights.sum(dim=-1, keepdim=True)
    out.flatten(2).baddbmm_(weights.to(out.dtype).flatten(2), _block_diagonal(sinks.v, heads))
    out.mul_((1 / total).to(out.dtype))
    log_total += total.squeeze(-1).log()
    return weights.div_(total)


def _forward_cpu(
    q: Tensor, k: Tensor, v: Tensor, window: int | None, sinks: Sinks | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Output, log-sum-exp of all it saw [batch, heads, new], sinks' weights [batch, new, heads, sinks] (float32)."""
    batch, heads, new, head_dim = q.shape
    out = q.new_empty(batch, new, heads, head_dim)
    log_total = q.new_empty(batch, new, heads, dtype=torch.float64 if q.dtype == torch.float64 else torch.float32)
    for first, last, start, stop in _tiles(new, k.shape[2], window, TILE):
        rows = last - first
        bias = None
        if rows > 1 or (window is not None and stop - start > window):
            bias = _tile_bias(rows, stop - start, window or stop, q.dtype)
        tile, tile_total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q[:, :, first:last], k[:, :, start:stop], v[:, :, start:stop], 0.0, False, attn_mask=bias
        )
        out[:, first:last] = tile.transpose(1, 2)
        log_total[:, first:last] = tile_total.transpose(1, 2)
    weights = None if sinks is None else _add_sinks(out, log_total, sinks)
    return out.transpose(1, 2), log_total.transpose(1, 2), weights


def _with_shift(x: Tensor, shift: Tensor | None) -> Tensor:
    """x [..., d] with two more columns, so that a product of two such matrices comes out shifted row by row.

    With `shift` [...]: minus the shift, split into what the dtype holds and the rest of it; without: ones. The product
    then does in float32, for nothing, what would be another pass over all scores in the compute dtype.
    """
    if shift is None:
        return torch.cat([x, x.new_ones(*x.shape[:-1], 2)], dim=-1)
    coarse = shift.to(x.dtype)
    rest = (shift - coarse.to(shift.dtype)).to(x.dtype)
    return torch.cat([x, -coarse.unsqueeze(-1), -rest.unsqueeze(-1)], dim=-1)


class _WindowAttentionCPU(torch.autograd.Function):
    """Tiled attention: gradient for the queries, for the newest tokens' keys and values, and for sinks that ask for it.

    The cached keys and values were computed by earlier chunks and carry no gradient at test time, so the backward pass
    spends nothing on them; in training a whole sequence is new (`kernels/pair_attention.py` does chunks of one). In the
    notation of METHOD section 8, a tile costs two passes over its scores: one makes P = exp(S - log-sum-exp), one makes
    dS = P * (dP - D); both subtractions happen inside the products.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        q: Tensor,
        new_k: Tensor,
        new_v: Tensor,
        sink_q: Tensor | None,
        sink_k: Tensor | None,
        sink_v: Tensor | None,
        k: Tensor,
        v: Tensor,
        window: int | None,
        hidden: Tensor | None,
    ) -> Tensor:
        sinks = None
        if sink_q is not None and sink_k is not None and sink_v is not None:
            sinks = Sinks(sink_q, sink_k, sink_v, hidden)
        out, log_total, sink_weights = _forward_cpu(q, k, v, window, sinks)
        ctx.window, ctx.newest = window, new_k.shape[2]
        if sinks is None:
            ctx.save_for_backward(q, k, v, out, log_total)
        else:
            ctx.save_for_backward(q, k, v, out, log_total, *sinks[:3], sink_weights)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, out, log_total, *of_sinks = ctx.saved_tensors
        batch, heads, new, head_dim = q.shape
        kv_heads, keys = k.shape[1], k.shape[2]
        group, scale, folded = heads // kv_heads, head_dim**-0.5, batch * kv_heads
        cached = keys - ctx.newest
        along = torch.linalg.vecdot(grad, out).to(log_total.dtype)  # D = rowsum(dO * O), which is rowsum(P * dP)

        q_rows = _with_shift(q * scale, log_total).reshape(folded, group, new, -1)
        grad_rows = _with_shift(grad, along).reshape(folded, group, new, -1)
        all_k, all_v = k.reshape(folded, keys, head_dim), v.reshape(folded, keys, head_dim)
        shifted_k, shifted_v = _with_shift(all_k, None), _with_shift(all_v, None)
        grad_q = torch.empty(folded, group, new, head_dim, dtype=q.dtype)
        grad_k = q.new_zeros(folded, head_dim, ctx.newest)
        grad_v = torch.zeros_like(grad_k)
        for first, last, start, stop in _tiles(new, keys, ctx.window, BACKWARD_TILE):
            rows, seen = last - first, stop - start
            tile_q = q_rows[:, :, first:last].reshape(folded, group * rows, -1)
            tile_grad = grad_rows[:, :, first:last].reshape(folded, group * rows, -1)
            weights = workspace("weights", (folded, group * rows, seen), q.dtype)
            torch.bmm(tile_q, shifted_k[:, start:stop].transpose(1, 2), out=weights)
            _hide(weights.view(folded, group, rows, seen), ctx.window)
            weights.exp_()
            grad_scores = workspace("grad_scores", (folded, group * rows, seen), q.dtype)
            torch.bmm(tile_grad, shifted_v[:, start:stop].transpose(1, 2), out=grad_scores)
            grad_scores.mul_(weights)
            grad_q[:, :, first:last] = (grad_scores @ all_k[:, start:stop]).view(folded, group, rows, head_dim)
            own = max(start, cached)  # the newest tokens' keys inside this tile
            here, there = slice(own - start, seen), slice(own - cached, stop - cached)
            grad_k[..., there] += tile_q[..., :head_dim].transpose(1, 2) @ grad_scores[..., here]
            grad_v[..., there] += tile_grad[..., :head_dim].transpose(1, 2) @ weights[..., here]
        shape = (batch, kv_heads, head_dim, ctx.newest)
        grad_k, grad_v = (g.view(shape).transpose(2, 3) for g in (grad_k, grad_v))
        sink_grads: tuple[Tensor | None, ...] = (None, None, None)
        if of_sinks:
            sink_q, sink_k, sink_v, sink_weights = of_sinks
            for_keys = ctx.needs_input_grad[4] or ctx.needs_input_grad[5]
            sink_grads = sinks_backward(grad, along, sink_q, sink_k, sink_v, sink_weights, for_keys)
        return grad_q.mul_(scale).view(q.shape), grad_k, grad_v, *sink_grads, None, None, None, None


def sinks_backward(
    grad: Tensor, along: Tensor, q: Tensor, k: Tensor, v: Tensor, weights: Tensor, for_keys: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of the sinks' queries and, `for_keys`, keys and values; weights [batch, new, heads, sinks]."""
    heads, scale = q.shape[1], q.shape[-1] ** -0.5
    grad_weights = _flat(grad) @ _block_diagonal(v, heads).transpose(1, 2)
    grad_scores = grad_weights.view(weights.shape).to(weights.dtype) - along.transpose(1, 2).unsqueeze(-1)
    grad_scores = grad_scores * weights * scale
    flat = grad_scores.to(q.dtype).flatten(2)
    grad_q = (flat @ _block_diagonal(k, heads)).view(*weights.shape[:3], -1).transpose(1, 2)
    if not for_keys:
        return grad_q, None, None
    return grad_q, sink_columns(grad_scores, q, k), sink_columns(weights, grad, v)


def sink_columns(weights: Tensor, rows: Tensor, like: Tensor) -> Tensor:
    """The sum over queries of weights^T rows, rows [batch, heads, new, d], in shape and dtype of the sinks' `like`."""
    kv_heads, heads = like.shape[1], rows.shape[1]
    products = weights.permute(0, 2, 3, 1) @ rows.to(weights.dtype)
    return products.unflatten(1, (kv_heads, heads // kv_heads)).sum(2).to(like.dtype)


def _hide(scores: Tensor, window: int | None) -> None:
    """Masks a tile's scores [..., rows, keys] in place, touching only the two edges that need it."""
    rows, keys = scores.shape[-2:]
    edge = _tile_bias(rows, rows, rows, scores.dtype)  # hides the keys after each row's own
    scores[..., keys - rows :].add_(edge)
    if window is not None and keys > window:
        width = min(keys - window, rows)
        scores[..., :width].add_(_tile_bias(rows, keys, window, scores.dtype)[:, :width])


def window_attention_cpu(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None = None,
    sinks: Sinks | None = None,
    newest: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The CPU path, differentiable once. `newest` are the keys and values that receive gradient, the last ones in `k`,
    `v` (None: all of them); the others count as constants."""
    newest = newest or (k, v)
    if not (torch.is_grad_enabled() and (q.requires_grad or newest[0].requires_grad)):
        return _forward_cpu(q, k, v, window, sinks)[0]
    of_sinks = (None, None, None) if sinks is None else sinks[:3]
    hidden = None if sinks is None else sinks.hidden
    return _WindowAttentionCPU.apply(q, *newest, *of_sinks, k.detach(), v.detach(), window, hidden)
