"""From the first product of an attention to its heads: QK norm and RoPE.

Pairs that RoPE turns are halves (i, i + head_dim/2) everywhere; importers convert other layouts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ttt_docs.kernels.rms_norm.definition import rms_norm_reference

#: cos and sin of the angles, [tokens, head_dim] each, in the model's dtype; sin carries the first half's sign.
Rotation = tuple[Tensor, Tensor]


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    out = x * cos
    out[..., :half].addcmul_(x[..., half:], sin[..., :half])
    out[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return out


class _Rotate(torch.autograd.Function):
    """Turning is linear: its gradient turns back, and the gradient of that turns forth again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        return _Rotate.apply(grad, cos, -sin), None, None


def rotate(x: Tensor, turn: Rotation) -> Tensor:
    """Turns x [batch, tokens, heads, head_dim] by the tokens' angles, in x's dtype."""
    cos, sin = (t.unsqueeze(1) for t in turn)
    return _Rotate.apply(x, cos, sin) if torch.is_grad_enabled() else _turn(x, cos, sin)


class HeadsPlan(NamedTuple):
    """What becomes of qkv [batch, tokens, heads + 2 * kv_heads, head_dim]: queries, keys, values."""

    kv_heads: int
    turn: Rotation  # queries' and keys'
    for_sinks: bool = False  # whether queries for the sinks are wanted too, turned by `sink_turn` or not at all
    sink_turn: Rotation | None = None
    slots: tuple[Tensor, Tensor] | None = None  # where keys and values are to be written, [batch, kv_heads, tokens, ..]
    eps: float = 0.0


class Heads(NamedTuple):
    """All [batch, heads or kv_heads, tokens, head_dim]."""

    q: Tensor
    k: Tensor
    v: Tensor
    sink_q: Tensor | None


def heads_reference(
    qkv: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    plan: HeadsPlan,
    rms_norm: Callable[[Tensor, Tensor, float], Tensor] = rms_norm_reference,
) -> Heads:
    """The definition. `q_norm`, `k_norm` [head_dim]: weights of the RMSNorm of each head's queries and keys."""
    kv_heads = plan.kv_heads
    q, k, v = qkv.split([qkv.shape[2] - 2 * kv_heads, kv_heads, kv_heads], dim=2)
    if q_norm is not None and k_norm is not None:
        q, k = rms_norm(q, q_norm, plan.eps), rms_norm(k, k_norm, plan.eps)
    sink_q = None
    if plan.for_sinks:
        sink_q = (q if plan.sink_turn is None else rotate(q, plan.sink_turn)).transpose(1, 2)
    q, k, v = (x.transpose(1, 2) for x in (rotate(q, plan.turn), rotate(k, plan.turn), v))
    for slot, x in zip(plan.slots or (), (k, v), strict=False):
        slot.copy_(x.detach())
    return Heads(q, k, v, sink_q)
