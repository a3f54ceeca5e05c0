"""Window attention for training on a CPU: gradient for every key and value that asks for it, the sinks' included.

Compiled code does what it was made for (bfloat16; a whole sequence, or a chunk whose cached keys are constants), the
tiles of `attention.py` the rest.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from ttt_docs.kernels.attention import native
from ttt_docs.kernels.attention.definition import (
    Sinks,
    _block_diagonal,
    _flat,
    _forward_cpu,
    sinks_backward,
    window_attention_cpu,
)
from ttt_docs.kernels.native.build import native_library
from ttt_docs.kernels.workspace import wide


def compiled(q: Tensor) -> bool:
    """Whether the compiled kernels run for queries like these [batch, heads, new, head_dim]."""
    if os.environ.get("TTT_DOCS_KERNELS") == "cpu":
        return False
    made_for = q.dtype == torch.bfloat16 and q.shape[-1] in native.HEAD_DIMS and q.shape[2] >= native.LEAST_QUERIES
    return made_for and native_library().loaded is not None


def attention_forward(
    q: Tensor, k: Tensor, v: Tensor, window: int | None, sinks: Sinks | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Output, log-sum-exp of all it saw [batch, heads, new], sinks' weights [batch, new, heads, sinks] (float32)."""
    if not compiled(q):
        return _forward_cpu(q, k, v, window, sinks)
    q, k, v, sinks = native.prepared(q, k, v, sinks)
    out, log_total = native.forward(q, k, v, window, sinks)
    return out, log_total, None if sinks is None else sink_weights(sinks, log_total)


def sink_scores(q: Tensor, k: Tensor) -> Tensor:
    """Products [batch, new, heads, sinks] (float32) of q [batch, heads, new, d] and k [batch, kv_heads, sinks, d]."""
    batch, heads, new, _ = q.shape
    scores = _flat(q) @ _block_diagonal(k, heads).transpose(1, 2)
    return scores.view(batch, new, heads, -1).to(wide(q.dtype))


def sink_weights(sinks: Sinks, log_total: Tensor) -> Tensor:
    """What attention gave the sinks, [batch, new, heads, sinks] (float32)."""
    scores = sink_scores(sinks.q, sinks.k).mul_(sinks.q.shape[-1] ** -0.5)
    weights = scores.sub_(log_total.transpose(1, 2).unsqueeze(-1)).exp_()
    return weights if sinks.hidden is None else weights.masked_fill_(sinks.hidden.unsqueeze(1), 0.0)


class _SequenceAttention(torch.autograd.Function):
    """Compiled attention of a whole sequence, where every key is as new as its query."""

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
        sinks = None
        if sink_q is not None and sink_k is not None and sink_v is not None:
            sinks = Sinks(sink_q, sink_k, sink_v, hidden)
        out, log_total = native.forward(q, k, v, window, sinks)
        ctx.window = window
        ctx.save_for_backward(q, k, v, out, log_total, *(sinks or ()))
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, out, log_total, *of_sinks = ctx.saved_tensors
        sinks = Sinks(*of_sinks) if of_sinks else None
        grad_q, grad_k, grad_v, grad_sink_q = native.backward(q, k, v, ctx.window, sinks, out, log_total, grad)
        grad_sink_k = grad_sink_v = None
        if sinks is not None:
            along = torch.linalg.vecdot(grad, out).to(log_total.dtype)
            weights = sink_weights(sinks, log_total)
            _, grad_sink_k, grad_sink_v = sinks_backward(grad, along, *sinks[:3], weights, for_keys=True)
        return grad_q, grad_k, grad_v, grad_sink_q, grad_sink_k, grad_sink_v, None, None


def window_attention_training(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None = None,
    sinks: Sinks | None = None,
    newest: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Differentiable once. Where k asks for gradient, all of k and v and the sinks get it, else `newest` alone."""
    if not (k.requires_grad and torch.is_grad_enabled()):
        reading = native.window_attention_native if compiled(q) else window_attention_cpu
        return reading(q, k, v, window, sinks, newest)
    if k.shape[2] > q.shape[2] or not compiled(q):
        return window_attention_cpu(q, k, v, window, sinks)
    q, k, v, sinks = native.prepared(q, k, v, sinks)
    return _SequenceAttention.apply(q, k, v, *(sinks or (None, None, None, None)), window)
