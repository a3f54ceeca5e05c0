"""Window attention through the compiled kernel in attention.cpp: reading in bfloat16 on CPUs with AMX or AVX-512."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from ttt_docs.kernels.attention.definition import Sinks, window_attention_cpu
from ttt_docs.kernels.native.build import native_library

HEAD_DIMS = (32, 64, 96, 128)
#: Fewer queries than this do not pay for packing the window's keys and values.
LEAST_QUERIES = 8


class _Matrix(ctypes.Structure):
    """A bfloat16 tensor [batch, heads, rows, head_dim]."""

    _fields_ = [(name, ctypes.c_int64) for name in ("data", "batch", "head", "row")]


_SIZES = ("batch", "heads", "kv_heads", "queries", "keys", "head_dim", "window", "sinks", "threads")
_MATRICES = (
    "q", "k", "v", "sink_q", "sink_k", "sink_v", "out", "grad", "grad_q", "grad_k", "grad_v", "grad_sink_q",
)  # fmt: skip


class _Call(ctypes.Structure):
    """`Attention` of attention.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in _SIZES),
        *((name, _Matrix) for name in _MATRICES),
        ("hidden", ctypes.c_void_p),
        ("log_total", ctypes.c_void_p),
    ]


def _matrix(x: Tensor) -> _Matrix:
    return _Matrix(x.data_ptr(), *x.stride()[:3])


def _rows(x: Tensor) -> Tensor:
    """x with contiguous rows."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _call(
    q: Tensor, k: Tensor, v: Tensor, window: int | None, sinks: Sinks | None, log_total: Tensor, **others: Tensor
) -> _Call:
    batch, heads, queries, head_dim = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    count = 0 if sinks is None else sinks.k.shape[2]
    sizes = (batch, heads, kv_heads, queries, keys, head_dim, min(window or keys, keys), count, torch.get_num_threads())
    matrices = {"q": q, "k": k, "v": v} | others
    call = _Call(*sizes, log_total=log_total.data_ptr())
    if sinks is not None:
        matrices |= {"sink_q": sinks.q, "sink_k": sinks.k, "sink_v": sinks.v}
        if sinks.hidden is not None:
            call.hidden = sinks.hidden.data_ptr()
    for name, matrix in matrices.items():
        setattr(call, name, _matrix(matrix))
    return call


def _run(function: str, call: _Call) -> None:
    library = native_library().loaded
    assert library is not None
    if getattr(library, function)(ctypes.byref(call)) != 0:
        raise AssertionError(f"{function} has no code for head_dim {call.head_dim}")


def _empty_like_heads(x: Tensor) -> Tensor:
    """[batch, heads, rows, d] lying in memory as [batch, rows, heads, d], as the projections around attention do."""
    batch, heads, rows, head_dim = x.shape
    return x.new_empty(batch, rows, heads, head_dim).transpose(1, 2)


def forward(q: Tensor, k: Tensor, v: Tensor, window: int | None, sinks: Sinks | None) -> tuple[Tensor, Tensor]:
    """Output, and log-sum-exp of all it saw [batch, heads, new] (float32)."""
    out, log_total = _empty_like_heads(q), q.new_empty(q.shape[:3], dtype=torch.float32)
    _run("window_attention_forward", _call(q, k, v, window, sinks, log_total, out=out))
    return out, log_total


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None,
    sinks: Sinks | None,
    out: Tensor,
    log_total: Tensor,
    grad: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients for the queries, the newest keys and values, and the sinks' queries."""
    grad_q, grad_sink_q = _empty_like_heads(q), None if sinks is None else _empty_like_heads(q)
    newest = k[:, :, k.shape[2] - q.shape[2] :]
    grad_k, grad_v = _empty_like_heads(newest), _empty_like_heads(newest)
    others = {"out": out, "grad": _rows(grad), "grad_q": grad_q, "grad_k": grad_k, "grad_v": grad_v}
    if grad_sink_q is not None:
        others["grad_sink_q"] = grad_sink_q
    _run("window_attention_backward", _call(q, k, v, window, sinks, log_total, **others))
    return grad_q, grad_k, grad_v, grad_sink_q


def prepared(q: Tensor, k: Tensor, v: Tensor, sinks: Sinks | None) -> tuple[Tensor, Tensor, Tensor, Sinks | None]:
    """The same with contiguous rows, as the compiled kernels want them."""
    if sinks is not None:
        hidden = None if sinks.hidden is None else sinks.hidden.contiguous()
        sinks = Sinks(_rows(sinks.q), _rows(sinks.k), _rows(sinks.v), hidden)
    return _rows(q), _rows(k), _rows(v), sinks


class _WindowAttentionNative(torch.autograd.Function):
    """Gradient for the queries (the window's and the sinks') and for the newest tokens' keys and values only."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        q: Tensor,
        new_k: Tensor,
        new_v: Tensor,
        sink_q: Tensor | None,
        k: Tensor,
        v: Tensor,
        window: int | None,
        sinks: Sinks | None,
    ) -> Tensor:
        out, log_total = forward(q, k, v, window, sinks)
        ctx.window = window
        ctx.save_for_backward(q, k, v, out, log_total, *(sinks or ()))
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, out, log_total, *of_sinks = ctx.saved_tensors
        sinks = Sinks(*of_sinks) if of_sinks else None
        return *backward(q, k, v, ctx.window, sinks, out, log_total, grad), None, None, None, None


def window_attention_native(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None = None,
    sinks: Sinks | None = None,
    newest: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """As `window_attention_cpu`, which still does what the compiled kernel was not made for."""
    if q.dtype != torch.bfloat16 or q.shape[-1] not in HEAD_DIMS or q.shape[2] < LEAST_QUERIES:
        return window_attention_cpu(q, k, v, window, sinks, newest)
    newest = newest or (k, v)
    q, k, v, sinks = prepared(q, k, v, sinks)
    if not (torch.is_grad_enabled() and (q.requires_grad or newest[0].requires_grad)):
        return forward(q, k, v, window, sinks)[0]
    return _WindowAttentionNative.apply(q, *newest, None if sinks is None else sinks.q, k, v, window, sinks)
