"""From the first product of an attention to its heads: QK norm and RoPE.

RoPE rotates pairs of numbers that are halves (i, i + head_dim/2) everywhere; importers convert other layouts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ttt_docs.kernels.rms_norm.definition import rms_norm_reference

#: cos and sin of the angles, [tokens, head_dim] each, in the model's dtype; sin carries the first half's sign.
Rotation = tuple[Tensor, Tensor]


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    out = x * cos
    out[..., :half].addcmul_(x[..., half:], sin[..., :half])
    out[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return out


class _Rotate(torch.autograd.Function):
    """A rotation is linear. Its gradient rotates back, and the gradient of that rotates forward again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        return _Rotate.apply(grad, cos, -sin), None, None


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """x [batch, tokens, heads, head_dim], in its dtype, rotated by the tokens' angles."""
    cos, sin = (t.unsqueeze(1) for t in rotation)
    return _Rotate.apply(x, cos, sin) if torch.is_grad_enabled() else _rotated(x, cos, sin)


class HeadSplit(NamedTuple):
    """How qkv [batch, tokens, heads + 2 * kv_heads, head_dim] becomes queries, keys and values."""

    kv_heads: int
    rotation: Rotation  # of queries and keys
    for_sinks: bool = False  # whether queries for the sinks are wanted too
    sink_rotation: Rotation | None = None  # of those; None: they are not rotated
    slots: tuple[Tensor, Tensor] | None = None  # the cache's room for keys and values, [batch, kv_heads, tokens, ..]
    eps: float = 0.0  # of the norms


class Heads(NamedTuple):
    """All [batch, heads or kv_heads, tokens, head_dim]."""

    q: Tensor
    k: Tensor
    v: Tensor
    sink_q: Tensor | None


def split_heads_reference(
    qkv: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    split: HeadSplit,
    rms_norm: Callable[[Tensor, Tensor, float], Tensor] = rms_norm_reference,
) -> Heads:
    """The definition. `q_norm`, `k_norm` [head_dim]: weights of the RMSNorm of each head's queries and keys."""
    kv_heads, rotation, for_sinks, sink_rotation, slots, eps = split
    q, k, v = qkv.split([qkv.shape[2] - 2 * kv_heads, kv_heads, kv_heads], dim=2)
    if q_norm is not None and k_norm is not None:
        q, k = rms_norm(q, q_norm, eps), rms_norm(k, k_norm, eps)
    sink_q = None
    if for_sinks:
        sink_q = (q if sink_rotation is None else rotate(q, sink_rotation)).transpose(1, 2)
    q, k, v = (x.transpose(1, 2) for x in (rotate(q, rotation), rotate(k, rotation), v))
    for slot, x in zip(slots or (), (k, v), strict=False):
        slot.copy_(x.detach())
    return Heads(q, k, v, sink_q)
