"""Window attention on the device, twice differentiable: launches and autograd. Results are defined by
`ttt_docs.kernels.attention.definition.window_attention_reference`."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ttt_docs.kernels.attention.definition import Sinks
from ttt_docs.kernels.attention.triton_kernels import backward_keys, backward_rows, forward_rows
from ttt_docs.kernels.attention.triton_second_kernels import second_keys, second_rows
from ttt_docs.kernels.triton_tiles import accumulator, empty_token_major, parts, precision, token_major, wide


class Tiles(NamedTuple):
    """One kernel's shape: query rows and keys of a tile, warps of a program, depth of the software pipeline, and the
    registers of a thread where they are held down (so that two programs fit on a multiprocessor)."""

    rows: int
    keys: int
    warps: int
    stages: int
    registers: int | None = None


#: By kernel, for 16-bit operands on compute capability 9: the first entry whose limit is not below the head dimension.
#: Chosen by what the compiler says (benchmarks/compile_kernels.py): the largest tiles without spilled registers.
TILES: dict[str, dict[int, Tiles]] = {
    "forward_rows": {
        64: Tiles(128, 64, 8, 3, 128),
        96: Tiles(128, 128, 8, 2),
        128: Tiles(128, 32, 8, 2),
        256: Tiles(64, 32, 8, 2),
    },
    "backward_rows": {
        64: Tiles(128, 64, 8, 3),
        96: Tiles(128, 64, 8, 2),
        128: Tiles(128, 32, 8, 2),
        256: Tiles(64, 32, 8, 2),
    },
    "backward_keys": {96: Tiles(64, 128, 8, 2), 128: Tiles(32, 128, 8, 2), 256: Tiles(32, 32, 8, 1)},
    "second_rows": {80: Tiles(128, 32, 8, 2), 128: Tiles(128, 16, 8, 2), 256: Tiles(16, 32, 8, 1)},
    "second_keys": {
        80: Tiles(32, 128, 8, 2),
        96: Tiles(16, 128, 8, 2),
        128: Tiles(64, 32, 8, 1),
        256: Tiles(16, 16, 8, 1),
    },
}
#: The same on compute capability 8; up to a head dimension of 128 they fit 99 KiB of shared memory.
TILES_8: dict[str, dict[int, Tiles]] = {
    "forward_rows": {96: Tiles(128, 64, 8, 3), 128: Tiles(128, 32, 8, 2), 256: Tiles(64, 32, 8, 2)},
    "backward_rows": {128: Tiles(128, 32, 8, 2), 256: Tiles(64, 32, 8, 2)},
    "backward_keys": {96: Tiles(32, 128, 8, 2), 128: Tiles(64, 64, 8, 2), 256: Tiles(32, 64, 8, 1)},
    "second_rows": {
        64: Tiles(32, 32, 4, 2),
        96: Tiles(32, 16, 4, 2),
        128: Tiles(32, 32, 4, 2),
        256: Tiles(16, 32, 8, 1),
    },
    "second_keys": {
        64: Tiles(32, 32, 4, 2),
        96: Tiles(16, 32, 4, 2),
        128: Tiles(32, 32, 8, 1),
        256: Tiles(16, 16, 8, 1),
    },
}
#: Float32, on both, runs without matrix units, for checks more than for speed: small tiles, no pipeline.
WIDE_TILES = {kernel: {256: Tiles(16, 16, 4 if kernel == "backward_rows" else 8, 1)} for kernel in TILES}


@cache
def generation(device: torch.device) -> int:
    """Whose tiles fit: 9 for compute capability 9 and 10, or where there is no device to ask, else 8 (capability 12 has
    less shared memory than either)."""
    return 9 if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] in (9, 10) else 8


def tiles_for(kernel: str, dtype: torch.dtype, head_dim: int, device: torch.device) -> Tiles:
    table = WIDE_TILES
    if dtype.itemsize == 2:
        table = TILES if generation(device) >= 9 else TILES_8
    return next(tiles for limit, tiles in table[kernel].items() if head_dim <= limit)


class _Shape(NamedTuple):
    """Everything but tensors. `window` counts keys; the first `constant` keys get no gradient."""

    window: int
    constant: int


def _meta(kernel: str, q: Tensor, k: Tensor) -> dict[str, Any]:
    heads, head_dim = q.shape[1], q.shape[3]
    first, second = parts(head_dim)
    tiles = tiles_for(kernel, q.dtype, head_dim, q.device)
    meta: dict[str, Any] = {
        "HEADS": heads,
        "GROUP": heads // k.shape[1],
        "HEAD": head_dim,
        "D1": first,
        "D2": second,
        "ROWS": tiles.rows,
        "KEYS": tiles.keys,
        "SCALE": head_dim**-0.5,
        "ACC": accumulator(q.dtype),
        "PRECISION": precision(q.dtype),
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
    }
    if tiles.registers is not None:
        meta["maxnreg"] = tiles.registers
    return meta


def _strides(q: Tensor, k: Tensor, v: Tensor) -> tuple[int, ...]:
    return (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3])


def _unit(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _forward(q: Tensor, k: Tensor, v: Tensor, shape: _Shape, sinks: Sinks | None) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp [batch, heads, new] (natural logarithm; float32, float64 for float64)."""
    batch, heads, new, _ = q.shape
    out = empty_token_major(q, new)
    log_total = q.new_empty(batch, heads, new, dtype=wide(q.dtype))
    meta = _meta("forward_rows", q, k)
    forward_rows[(triton.cdiv(new, meta["ROWS"]), batch * heads)](
        q, k, v, *_sink_tensors(sinks), out, log_total,
        *_strides(q, k, v), new, k.shape[2], shape.window, 0 if sinks is None else sinks.k.shape[2],
        **_sink_meta(sinks), **meta,
    )  # fmt: skip
    return out, log_total


def _sink_tensors(sinks: Sinks | None) -> tuple[Tensor | None, ...]:
    if sinks is None:
        return None, None, None, None
    hidden = None if sinks.hidden is None else sinks.hidden.contiguous().view(torch.uint8)
    return token_major(sinks.q), sinks.k.contiguous(), sinks.v.contiguous(), hidden


def _sink_meta(sinks: Sinks | None) -> dict[str, Any]:
    if sinks is None:
        return {"SINKS": 0, "HIDDEN": False}
    return {"SINKS": max(16, triton.next_power_of_2(sinks.k.shape[2])), "HIDDEN": sinks.hidden is not None}


class _Gradients(NamedTuple):
    q: Tensor
    k: Tensor | None
    v: Tensor | None
    sink_q: Tensor | None
    along: Tensor  # rowsum(dO * O) - gradient of the log-sum-exp


def _backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    shape: _Shape,
    sinks: Sinks | None,
    out: Tensor,
    log_total: Tensor,
    grad_out: Tensor,
    grad_log_total: Tensor | None,
    for_keys: bool = True,
) -> _Gradients:
    batch, heads, new, _ = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    grad_q, along = empty_token_major(q, new), torch.empty_like(log_total)
    grad_sink_q = None if sinks is None else empty_token_major(q, new)
    meta = _meta("backward_rows", q, k)
    backward_rows[(triton.cdiv(new, meta["ROWS"]), batch * heads)](
        q, k, v, *_sink_tensors(sinks), out, grad_out, log_total, grad_log_total, grad_q, grad_sink_q, along,
        *_strides(q, k, v), new, keys, shape.window, 0 if sinks is None else sinks.k.shape[2],
        LOG_TOTAL_GRAD=grad_log_total is not None, **_sink_meta(sinks), **meta,
    )  # fmt: skip
    if not for_keys:
        return _Gradients(grad_q, None, None, grad_sink_q, along)
    grad_k, grad_v = (empty_token_major(k, keys - shape.constant) for _ in range(2))
    meta = _meta("backward_keys", q, k)
    backward_keys[(triton.cdiv(keys - shape.constant, meta["KEYS"]), batch * kv_heads)](
        q, k, v, grad_out, log_total, along, grad_k, grad_v,
        *_strides(q, k, v), new, keys, shape.window, shape.constant, **meta,
    )  # fmt: skip
    return _Gradients(grad_q, grad_k, grad_v, grad_sink_q, along)


class _Attention(torch.autograd.Function):
    """Output and log-sum-exp. Gradient reaches q and own_k, own_v: the keys after the first `constant`, which k, v
    (constants to autograd) contain."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, q: Tensor, own_k: Tensor, own_v: Tensor, k: Tensor, v: Tensor, shape: _Shape
    ) -> tuple[Tensor, Tensor]:
        out, log_total = _forward(q, k, v, shape, None)
        ctx.shape = shape
        ctx.save_for_backward(q, own_k, own_v, k, v, out, log_total)
        ctx.set_materialize_grads(False)
        return out, log_total

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None, grad_log_total: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, own_k, own_v, k, v, out, log_total = ctx.saved_tensors
        if grad_out is None:
            grad_out = torch.zeros_like(out)
        grads = _AttentionBackward.apply(
            q, own_k, own_v, grad_out, grad_log_total, k, v, out.detach(), log_total.detach(), ctx.shape
        )
        return (*grads, None, None, None)


class _AttentionBackward(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        q: Tensor,
        own_k: Tensor,
        own_v: Tensor,
        grad_out: Tensor,
        grad_log_total: Tensor | None,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        log_total: Tensor,
        shape: _Shape,
    ) -> tuple[Tensor, Tensor, Tensor]:
        grad_out = token_major(grad_out)
        grad_log_total = None if grad_log_total is None else grad_log_total.contiguous()
        grads = _backward(q, k, v, shape, None, out, log_total, grad_out, grad_log_total)
        assert grads.k is not None and grads.v is not None
        ctx.shape = shape
        ctx.save_for_backward(q, k, v, grad_out, grad_log_total, log_total, grads.along)
        return grads.q, grads.k, grads.v

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, grad_out, grad_log_total, log_total, along = ctx.saved_tensors
        shape: _Shape = ctx.shape
        batch, heads, new, _ = q.shape
        kv_heads, keys = k.shape[1], k.shape[2]
        a = token_major(a)
        b, c = (token_major(torch.nn.functional.pad(x, (0, 0, shape.constant, 0))) for x in (b, c))
        grad_q, grad_grad_out = empty_token_major(q, new), empty_token_major(q, new)
        g, m = torch.empty_like(along), torch.empty_like(along)
        meta = _meta("second_rows", q, k)
        second_rows[(triton.cdiv(new, meta["ROWS"]), batch * heads)](
            q, k, v, grad_out, a, b, c, log_total, along, grad_log_total, grad_q, grad_grad_out, g, m,
            *_strides(q, k, v), new, keys, shape.window, LOG_TOTAL_GRAD=grad_log_total is not None, **meta,
        )  # fmt: skip
        grad_k, grad_v = (empty_token_major(k, keys - shape.constant) for _ in range(2))
        meta = _meta("second_keys", q, k)
        second_keys[(triton.cdiv(keys - shape.constant, meta["KEYS"]), batch * kv_heads)](
            q, k, v, grad_out, a, b, c, log_total, along, g, m, grad_k, grad_v,
            *_strides(q, k, v), new, keys, shape.window, shape.constant, **meta,
        )  # fmt: skip
        grad_of_log_total = g if grad_log_total is not None else None
        return grad_q, grad_k, grad_v, grad_grad_out, grad_of_log_total, None, None, None, None, None


class _ReadingAttention(torch.autograd.Function):
    """With sinks that are constants, as while reading: they join the softmax inside the kernels."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        q: Tensor,
        own_k: Tensor,
        own_v: Tensor,
        sink_q: Tensor,
        k: Tensor,
        v: Tensor,
        sinks: Sinks,
        shape: _Shape,
    ) -> Tensor:
        out, log_total = _forward(q, k, v, shape, sinks)
        ctx.shape = shape
        ctx.save_for_backward(q, own_k, own_v, sink_q, k, v, sinks.k, sinks.v, sinks.hidden, out, log_total)
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, own_k, own_v, sink_q, k, v, sink_k, sink_v, hidden, out, log_total = ctx.saved_tensors
        sinks = Sinks(sink_q, sink_k, sink_v, hidden)
        if torch.is_grad_enabled():  # a gradient of this gradient is wanted: go through what has one
            merged = _merged(q, own_k, own_v, k, v, sinks, ctx.shape)
            inputs = [x for x in (q, own_k, own_v, sink_q) if x.requires_grad]
            found = iter(torch.autograd.grad(merged, inputs, grad_out, create_graph=True))
            grads = [next(found) if x.requires_grad else None for x in (q, own_k, own_v, sink_q)]
            return (*grads, None, None, None, None)
        for_keys = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        sizes = q, k, v, ctx.shape, sinks, out, log_total, token_major(grad_out), None
        found_grads = _backward(*sizes, for_keys=for_keys)
        return found_grads.q, found_grads.k, found_grads.v, found_grads.sink_q, None, None, None, None


def _merged(q: Tensor, own_k: Tensor, own_v: Tensor, k: Tensor, v: Tensor, sinks: Sinks, shape: _Shape) -> Tensor:
    """Window and sinks each by itself, joined by their log-sum-exps in PyTorch: gradient for everything, twice."""
    out, log_total = _Attention.apply(q, own_k, own_v, k, v, shape)
    batch, heads, new, head_dim = q.shape
    kv_heads = sinks.k.shape[1]
    sink_q = sinks.q.reshape(batch, kv_heads, heads // kv_heads, new, head_dim)
    sink_scores = (sink_q @ sinks.k.unsqueeze(2).transpose(-1, -2)).to(log_total.dtype) * head_dim**-0.5
    if sinks.hidden is not None:
        sink_scores = sink_scores.masked_fill(sinks.hidden, float("-inf"))
    grouped = log_total.reshape(batch, kv_heads, heads // kv_heads, new, 1)
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
    """As `window_attention_reference`, differentiable twice. `newest` are the newest tokens' keys and values: where k
    is a cache that autograd does not follow, gradient reaches them alone. Memory is linear in the number of keys."""
    q, k, v = _unit(q), _unit(k), _unit(v)
    keys = k.shape[2]
    new = q.shape[2]
    own_k, own_v, constant = k, v, 0
    if newest is not None and not (k.requires_grad or v.requires_grad):
        own_k, own_v, constant = *newest, keys - newest[0].shape[2]
    shape = _Shape(min(window or keys, keys), constant)
    wanted = torch.is_grad_enabled() and (q.requires_grad or own_k.requires_grad or own_v.requires_grad)
    if sinks is not None and torch.is_grad_enabled() and (sinks.k.requires_grad or sinks.v.requires_grad):
        return _merged(q, own_k, own_v, k, v, sinks, shape)
    if not (wanted or (sinks is not None and torch.is_grad_enabled() and sinks.q.requires_grad)):
        return _forward(q, k, v, shape, sinks)[0]
    assert new <= keys
    if sinks is None:
        return _Attention.apply(q, own_k, own_v, k.detach(), v.detach(), shape)[0]
    return _ReadingAttention.apply(q, own_k, own_v, sinks.q, k.detach(), v.detach(), sinks, shape)
