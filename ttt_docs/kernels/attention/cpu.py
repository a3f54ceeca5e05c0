"""Window attention on a CPU, tile by tile: scores exist one tile at a time, and keys that no query sees are skipped.

There are two ways: PyTorch's operations, and native.cpp for bfloat16 on CPUs with AMX or AVX-512."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ttt_docs.kernels.attention.definition import Newest, Sinks
from ttt_docs.kernels.native.calls import call
from ttt_docs.kernels.workspace import empty_token_major, needs_grad, traced, wanted, wide, workspace

#: Query rows per tile, forward and backward. Small tiles waste fewer scores at the window's edges, large ones make
#: better products; these measured best.
TILE = 256
BACKWARD_TILE = 128


class Tile(NamedTuple):
    """Queries [first, last) and all the keys [start, stop) that they see."""

    first: int
    last: int
    start: int
    stop: int


def tiles(new: int, keys: int, window: int | None, size: int) -> list[Tile]:
    """The tiles of `new` queries, the last of `keys` positions, `size` queries each."""
    cut = []
    for first in range(0, new, size):
        last = min(first + size, new)
        stop = keys - new + last
        cut.append(Tile(first, last, 0 if window is None else max(0, stop - (last - first) - window + 1), stop))
    return cut


@lru_cache(maxsize=64)
def _tile_bias(rows: int, keys: int, window: int, dtype: torch.dtype) -> Tensor:
    """Additive mask [rows, keys] of a tile whose last row is the last key's query."""
    i = torch.arange(keys - rows, keys)[:, None]
    j = torch.arange(keys)[None, :]
    return torch.zeros(rows, keys, dtype=dtype).masked_fill_((j > i) | (j <= i - window), float("-inf"))


def _hide(scores: Tensor, window: int | None) -> None:
    """Masks a tile's scores [..., rows, keys] in place, touching only the two edges that need it."""
    rows, keys = scores.shape[-2:]
    scores[..., keys - rows :].add_(_tile_bias(rows, rows, rows, scores.dtype))  # the keys after each row's own
    if window is not None and keys > window:
        width = min(keys - window, rows)
        scores[..., :width].add_(_tile_bias(rows, keys, window, scores.dtype)[:, :width])


def with_shift(x: Tensor, shift: Tensor | None) -> Tensor:
    """x [..., d] with two more columns, so that a product of two such matrices comes out shifted row by row.

    With `shift` [...]: minus the shift, split into what the dtype holds and the rest of it; without: ones. The product
    then does in float32, for nothing, what would be another pass over all scores in the compute dtype.
    """
    if shift is None:
        return torch.cat([x, x.new_ones(*x.shape[:-1], 2)], dim=-1)
    coarse = shift.to(x.dtype)
    rest = (shift - coarse.to(shift.dtype)).to(x.dtype)
    return torch.cat([x, -coarse.unsqueeze(-1), -rest.unsqueeze(-1)], dim=-1)


class Folded:
    """How tiles take queries and keys: the query heads that share a key head lie one below the other, as more rows."""

    def __init__(self, q: Tensor, k: Tensor, window: int | None, size: int) -> None:
        self.batch, self.heads, self.new, self.head_dim = q.shape
        self.kv_heads, self.keys = k.shape[1], k.shape[2]
        self.group, self.folded = self.heads // self.kv_heads, self.batch * self.kv_heads
        self.scale, self.window = self.head_dim**-0.5, window
        self.tiles = tiles(self.new, self.keys, window, size)

    def rows(self, x: Tensor) -> Tensor:
        """[batch, heads, new, n] -> [folded, group, new, n]"""
        return x.reshape(self.folded, self.group, self.new, -1)

    def columns(self, x: Tensor) -> Tensor:
        """[batch, kv_heads, keys, n] -> [folded, keys, n]"""
        return x.reshape(self.folded, self.keys, -1)

    def cut(self, rows: Tensor, tile: Tile) -> Tensor:
        """The rows of one tile, [folded, group * (last - first), n]."""
        return rows[:, :, tile.first : tile.last].flatten(1, 2)

    def product(self, name: str, rows: Tensor, columns: Tensor, tile: Tile) -> Tensor:
        """A tile's rows [folded, rows, n] times its keys of columns [folded, keys, n], in the workspace `name`."""
        seen = columns[:, tile.start : tile.stop].transpose(1, 2)
        out = workspace(name, (*rows.shape[:2], seen.shape[2]), rows.dtype)
        return torch.bmm(rows, seen, out=out)

    def weights(self, rows: Tensor, shifted_k: Tensor, tile: Tile) -> Tensor:
        """P = exp(S - lse) of one tile, from its rows and all keys, both `with_shift`."""
        scores = self.product("weights", rows, shifted_k, tile)
        _hide(scores.unflatten(1, (self.group, -1)), self.window)
        return scores.exp_()


def _flat(x: Tensor) -> Tensor:
    """[batch, heads, tokens, d] -> [batch, tokens, heads * d]"""
    return x.transpose(1, 2).flatten(2)


def _block_diagonal(x: Tensor, heads: int) -> Tensor:
    """x [batch, kv_heads, sinks, d] -> [batch, heads * sinks, heads * d]: one product then serves all heads, in the
    memory order [batch, tokens, heads, d] that the projections around attention have."""
    batch, kv_heads, sinks, d = x.shape
    out = x.new_zeros(batch, heads, sinks, heads, d)
    head = torch.arange(heads)
    out[:, head, :, head] = x.repeat_interleave(heads // kv_heads, dim=1).transpose(0, 1)
    return out.view(batch, heads * sinks, heads * d)


def sink_scores(q: Tensor, k: Tensor) -> Tensor:
    """Products [batch, new, heads, sinks] (float32) of q [batch, heads, new, d] and k [batch, kv_heads, sinks, d]."""
    batch, heads, new, _ = q.shape
    return (_flat(q) @ _block_diagonal(k, heads).transpose(1, 2)).view(batch, new, heads, -1).to(wide(q.dtype))


def sink_rows(weights: Tensor, x: Tensor) -> Tensor:
    """weights [batch, new, heads, sinks] times x [batch, kv_heads, sinks, d] -> [batch, heads, new, d]"""
    out = weights.to(x.dtype).flatten(2) @ _block_diagonal(x, weights.shape[2])
    return out.view(*weights.shape[:3], -1).transpose(1, 2)


def sink_columns(weights: Tensor, rows: Tensor, like: Tensor) -> Tensor:
    """The sum over queries of weights^T rows, rows [batch, heads, new, d], in shape and dtype of the sinks' `like`."""
    products = weights.permute(0, 2, 3, 1) @ rows.to(weights.dtype)
    return products.unflatten(1, (like.shape[1], -1)).sum(2).to(like.dtype)


def sink_weights(sinks: Sinks, lse: Tensor) -> Tensor:
    """The sinks' exp(score - lse) [batch, new, heads, sinks] (float32), lse [batch, heads, new]."""
    scores = sink_scores(sinks.q, sinks.k).mul_(sinks.q.shape[-1] ** -0.5).sub_(lse.transpose(1, 2).unsqueeze(-1))
    weights = scores.clamp_(max=60.0).exp_()
    return weights if sinks.hidden is None else weights.masked_fill_(sinks.hidden.unsqueeze(1), 0.0)


def _sinks_backward(
    grad: Tensor, delta: Tensor, sinks: Sinks, weights: Tensor, for_keys: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of the sinks' queries and, `for_keys`, keys and values; weights [batch, new, heads, sinks]."""
    grad_scores = sink_scores(grad, sinks.v) - delta.transpose(1, 2).unsqueeze(-1)
    grad_scores = grad_scores * weights * sinks.q.shape[-1] ** -0.5
    grad_q = sink_rows(grad_scores, sinks.k)
    if not for_keys:
        return grad_q, None, None
    return grad_q, sink_columns(grad_scores, sinks.q, sinks.k), sink_columns(weights, grad, sinks.v)


class Inputs(NamedTuple):
    """What a forward or backward pass takes (see `definition.py`)."""

    q: Tensor
    k: Tensor
    v: Tensor
    window: int | None
    sinks: Sinks | None


#: Output, log-sum-exp of all it saw [batch, heads, new] (float32), and the sinks' weights [batch, new, heads, sinks]
#: (float32; None without sinks, or where `sink_weights` makes them from the log-sum-exp).
Outputs = tuple[Tensor, Tensor, Tensor | None]
#: Gradients for the queries, the newest keys and the newest values, and for the sinks' queries (None: left out).
Gradients = tuple[Tensor, Tensor, Tensor, Tensor | None]


class Passes(NamedTuple):
    """The forward pass, and the backward pass of (inputs, output, log-sum-exp, gradient, number of newest keys)."""

    forward: Callable[[Inputs], Outputs]
    backward: Callable[[Inputs, Tensor, Tensor, Tensor, int], Gradients]


def forward(inputs: Inputs) -> Outputs:
    """Attention in tiles, each by PyTorch's own kernel."""
    q, k, v, window, sinks = inputs
    batch, heads, new, _ = q.shape
    out = empty_token_major(q)
    lse = q.new_empty(batch, new, heads, dtype=wide(q.dtype)).transpose(1, 2)
    for first, last, start, stop in tiles(new, k.shape[2], window, TILE):
        rows, bias = last - first, None
        if rows > 1 or (window is not None and stop - start > window):
            bias = _tile_bias(rows, stop - start, window or stop, q.dtype)
        out[:, :, first:last], lse[:, :, first:last] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q[:, :, first:last], k[:, :, start:stop], v[:, :, start:stop], 0.0, False, attn_mask=bias
        )
    if sinks is None:
        return out, lse, None
    weights = sink_weights(sinks, lse)  # relative to the window's total, for now
    total = 1 + weights.sum(dim=-1, keepdim=True)
    by_token = out.transpose(1, 2)
    by_token.flatten(2).baddbmm_(weights.to(q.dtype).flatten(2), _block_diagonal(sinks.v, heads))
    by_token.mul_((1 / total).to(q.dtype))
    lse.transpose(1, 2).add_(total.squeeze(-1).log())
    return out, lse, weights.div_(total)


def backward(inputs: Inputs, out: Tensor, lse: Tensor, grad: Tensor, newest: int) -> Gradients:
    """Gradients tile by tile; those of the sinks are left out.

    In the notation of docs/method.md section 8, a tile costs two passes over its scores: one makes P = exp(S - lse),
    one makes dS = P * (dP - D); both subtractions happen inside the products.
    """
    q, k, v, window, _ = inputs
    fold = Folded(q, k, window, BACKWARD_TILE)
    cached = fold.keys - newest
    delta = torch.linalg.vecdot(grad, out).to(lse.dtype)  # D = rowsum(dO * O), which is rowsum(P * dP)
    q_rows, grad_rows = fold.rows(with_shift(q * fold.scale, lse)), fold.rows(with_shift(grad, delta))
    all_k = fold.columns(k)
    shifted_k, shifted_v = with_shift(all_k, None), with_shift(fold.columns(v), None)
    grad_q = torch.empty(fold.folded, fold.group, fold.new, fold.head_dim, dtype=q.dtype)
    grad_k = q.new_zeros(fold.folded, fold.head_dim, newest)
    grad_v = torch.zeros_like(grad_k)
    for tile in fold.tiles:
        first, last, start, stop = tile
        tile_q, tile_grad = fold.cut(q_rows, tile), fold.cut(grad_rows, tile)
        weights = fold.weights(tile_q, shifted_k, tile)
        grad_scores = fold.product("grad_scores", tile_grad, shifted_v, tile).mul_(weights)
        grad_q[:, :, first:last] = (grad_scores @ all_k[:, start:stop]).unflatten(1, (fold.group, -1))
        own = max(start, cached)  # the newest tokens' keys inside this tile
        here, there = slice(own - start, stop - start), slice(own - cached, stop - cached)
        grad_k[..., there] += tile_q[..., :-2].transpose(1, 2) @ grad_scores[..., here]
        grad_v[..., there] += tile_grad[..., :-2].transpose(1, 2) @ weights[..., here]
    shape = (fold.batch, fold.kv_heads, fold.head_dim, newest)
    grad_k, grad_v = (g.view(shape).transpose(2, 3) for g in (grad_k, grad_v))
    return grad_q.mul_(fold.scale).view(q.shape), grad_k, grad_v, None


CPU_PASSES = Passes(forward, backward)


class _WindowAttention(torch.autograd.Function):
    """Gradient for the queries, for the newest keys and values, and for sinks that ask for it.

    The cached keys and values were computed by earlier chunks and carry no gradient at test time, so the backward pass
    spends nothing on them.
    """

    @staticmethod
    def forward(ctx: Any, passes: Passes, window: int | None, *tensors: Any) -> Tensor:
        k, v, q, new_k, _, *of_sinks = tensors
        out, lse, weights = passes.forward(Inputs(q, k, v, window, Sinks(*of_sinks) if of_sinks else None))
        ctx.run, ctx.window, ctx.newest = passes.backward, window, new_k.shape[2]
        ctx.save_for_backward(q, k, v, out, lse, weights, *of_sinks)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, out, lse, weights, *of_sinks = ctx.saved_tensors
        sinks = Sinks(*of_sinks) if of_sinks else None
        grad_q, grad_k, grad_v, sink_q = ctx.run(Inputs(q, k, v, ctx.window, sinks), out, lse, grad, ctx.newest)
        grads = None, None, None, None, grad_q, grad_k, grad_v
        if sinks is None:
            return grads
        sink_k = sink_v = None
        for_keys = wanted(ctx, 6) or wanted(ctx, 7)  # of the tensors
        if sink_q is None or for_keys:
            delta = torch.linalg.vecdot(grad, out).to(lse.dtype)
            weights = sink_weights(sinks, lse) if weights is None else weights
            again, sink_k, sink_v = _sinks_backward(grad, delta, sinks, weights, for_keys)
            sink_q = again if sink_q is None else sink_q
        return *grads, sink_q, sink_k, sink_v, None


def run(passes: Passes, inputs: Inputs, newest: tuple[Tensor, Tensor]) -> Tensor:
    """Attention by these passes, differentiable once for what asks for it."""
    q, k, v, window, sinks = inputs
    if not needs_grad(q, *newest, *(sinks or ())):
        return passes.forward(inputs)[0]
    of_sinks = () if sinks is None else (*map(traced, sinks[:3]), sinks.hidden)
    return _WindowAttention.apply(passes, window, k.detach(), v.detach(), q, *newest, *of_sinks)


def window_attention_cpu(
    q: Tensor, k: Tensor, v: Tensor, window: int | None = None, sinks: Sinks | None = None, newest: Newest = None
) -> Tensor:
    """The CPU path, differentiable once."""
    newest = (k, v) if newest is None or k.requires_grad else newest
    return run(CPU_PASSES, Inputs(q, k, v, window, sinks), newest)


#: What native.cpp was made for.
HEAD_DIMS = (32, 64, 96, 128)
#: Fewer queries than this do not pay for packing the window's keys and values.
LEAST_QUERIES = 8
#: The matrices of `Attention` in native.cpp, in its order: bfloat16 [batch, heads, rows, head_dim].
MATRICES = ("q", "k", "v", "sink_q", "sink_k", "sink_v", "out", "grad", "grad_q", "grad_k", "grad_v", "grad_sink_q")


def _run(function: str, inputs: Inputs, lse: Tensor, **others: Tensor | None) -> None:
    q, k, v, window, sinks = inputs
    (batch, heads, queries, head_dim), (_, kv_heads, keys, _) = q.shape, k.shape
    matrices, hidden = {"q": q, "k": k, "v": v} | others, None
    if sinks is not None:
        matrices |= {"sink_q": sinks.q, "sink_k": sinks.k, "sink_v": sinks.v}
        hidden = None if sinks.hidden is None else sinks.hidden.contiguous()
    matrices = {name: x if x.stride(-1) == 1 else x.contiguous() for name, x in matrices.items() if x is not None}
    count = 0 if sinks is None else sinks.k.shape[2]
    numbers = [batch, heads, kv_heads, queries, keys, head_dim, min(window or keys, keys), count]
    for x in map(matrices.get, MATRICES):  # address and strides, as `Matrix` has them
        numbers += (0, 0, 0, 0) if x is None else (x.data_ptr(), *x.stride()[:3])
    threads = 0  # for native.cpp to fill in
    call(function, torch.tensor([*numbers, 0 if hidden is None else hidden.data_ptr(), lse.data_ptr(), threads]))


def made_for(q: Tensor) -> bool:
    """Whether the compiled kernel takes queries like these [batch, heads, new, head_dim]."""
    return q.dtype == torch.bfloat16 and q.shape[-1] in HEAD_DIMS and q.shape[2] >= LEAST_QUERIES


def native_forward(inputs: Inputs) -> Outputs:
    """The compiled forward pass where it was made for the queries, else the tiles above."""
    if not made_for(inputs.q):
        return CPU_PASSES.forward(inputs)
    out, lse = empty_token_major(inputs.q), inputs.q.new_empty(inputs.q.shape[:3], dtype=torch.float32)
    _run("window_attention_forward", inputs, lse, out=out)
    return out, lse, None


def native_backward(inputs: Inputs, out: Tensor, lse: Tensor, grad: Tensor, newest: int) -> Gradients:
    """The newest keys are those of the queries. Gradients of the sinks' keys and values are left out."""
    q, k, _, _, sinks = inputs
    grad_q, sink_q = empty_token_major(q), None if sinks is None else empty_token_major(q)
    grad_k, grad_v = (empty_token_major(k[:, :, k.shape[2] - newest :]) for _ in range(2))
    made = {"grad_q": grad_q, "grad_k": grad_k, "grad_v": grad_v, "grad_sink_q": sink_q}
    _run("window_attention_backward", inputs, lse, out=out, grad=grad, **made)
    return grad_q, grad_k, grad_v, sink_q


NATIVE_PASSES = Passes(native_forward, native_backward)


def window_attention_native(
    q: Tensor, k: Tensor, v: Tensor, window: int | None = None, sinks: Sinks | None = None, newest: Newest = None
) -> Tensor:
    """As `window_attention_cpu`, which still does what the compiled kernel was not made for: other data types, and
    gradient for cached keys and values."""
    newest = (k, v) if newest is None or k.requires_grad else newest
    fits = made_for(q) and not (needs_grad(*newest) and newest[0].shape[2] > q.shape[2])
    return run(NATIVE_PASSES if fits else CPU_PASSES, Inputs(q, k, v, window, sinks), newest)
