"""Causal window attention with grouped-query heads and attention sinks.

Every function here takes

    q        [batch, heads, new, head_dim]       queries of the newest tokens, rotated (RoPE)
    k, v     [batch, kv_heads, cached + new, head_dim]   all keys and values kept, the newest tokens' last
    window   keys a query sees, itself included (None: all of them)
    sinks    keys of the first tokens, which stay visible beyond the window (see `Sinks`)
    newest   the last keys and values of k, v, as tensors of their own: they receive gradient, the others are a cache of
             constants. None, or where k itself requires gradient: all of k and v receive it

and returns [batch, heads, new, head_dim]. Query `i` (counted in key positions) sees keys `i - window < j <= i`.
The scale is 1 / sqrt(head_dim). docs/method.md sections 1, 2, 6 and 8.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Sinks(NamedTuple):
    """The first tokens' keys and values, which a model trained with full attention leans on.

    A query sees sink `s` beside its window once the window has moved past it. The sink then stands right before the
    window: its distance no longer changes, so these queries are rotated by a constant angle, not by their position.
    """

    q: Tensor  # [batch, heads, new, head_dim], the queries rotated for the sinks
    k: Tensor  # [batch, kv_heads, sinks, head_dim], rotated
    v: Tensor  # [batch, kv_heads, sinks, head_dim]
    hidden: Tensor | None  # bool [new, sinks]: True where the sink is still inside the window; None: all are visible


Newest = tuple[Tensor, Tensor] | None


def window_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, window: int | None = None, sinks: Sinks | None = None, newest: Newest = None
) -> Tensor:
    """The definition, in plain PyTorch: differentiable any number of times, memory [new, cached + new]."""
    batch, heads, new, head_dim = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    if newest is not None:
        k, v = (torch.cat([old[:, :, : keys - new], own], 2) for old, own in zip((k, v), newest, strict=True))

    def scores_of(query: Tensor, key: Tensor) -> Tensor:
        grouped = query.reshape(batch, kv_heads, heads // kv_heads, new, head_dim)
        scores = grouped @ key.unsqueeze(2).transpose(-1, -2)
        return (scores if scores.dtype == torch.float64 else scores.float()) * head_dim**-0.5

    i = torch.arange(keys - new, keys, device=q.device)[:, None]
    j = torch.arange(keys, device=q.device)[None, :]
    visible = (j <= i) if window is None else (j <= i) & (j > i - window)
    scores = scores_of(q, k).masked_fill(~visible, float("-inf"))
    if sinks is not None:
        sink_scores = scores_of(sinks.q, sinks.k)
        if sinks.hidden is not None:
            sink_scores = sink_scores.masked_fill(sinks.hidden, float("-inf"))
        scores = torch.cat([sink_scores, scores], dim=-1)
        v = torch.cat([sinks.v, v], dim=2)
    weights = torch.softmax(scores, dim=-1).to(q.dtype)
    return (weights @ v.unsqueeze(2)).reshape(batch, heads, new, head_dim)
