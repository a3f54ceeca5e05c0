"""Rotary position embedding. Pairs are halves (i, i + head_dim/2) everywhere; importers convert other layouts."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ttt_docs.model.config import ModelConfig

#: cos and sin of the angles, [tokens, head_dim] each, in the model's dtype; sin carries the first half's sign.
Rotation = tuple[Tensor, Tensor]


def frequencies(config: ModelConfig) -> Tensor:
    """Angle per position of each pair, float64 [head_dim / 2]; Llama 3 scaling where the configuration has it."""
    pairs = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
    inverse = config.rope_theta**-pairs
    scaling = config.rope_scaling
    if scaling is None:
        return inverse
    factor, low = float(scaling["factor"]), float(scaling["low_freq_factor"])
    high, trained = float(scaling["high_freq_factor"]), float(scaling["original_max_position_embeddings"])
    turns = trained * inverse / (2 * math.pi)
    blend = ((turns - low) / (high - low)).clamp(0, 1)
    return inverse / factor * (1 - blend) + inverse * blend


#: Positions below this get float32 angles, the ones that pre-trained models were trained with (and that transformers
#: computes); beyond, float32 would be off by 0.001 rad and more, 0.06 at a million tokens.
_FLOAT32_POSITIONS = 8192


def rotation(positions: Tensor, inverse: Tensor, dtype: torch.dtype) -> Rotation:
    """cos and sin for integer `positions` [tokens], in `dtype`; see `_FLOAT32_POSITIONS` for the angles' precision."""
    inverse = inverse.to(positions.device)
    exact = positions.to(torch.float64)[:, None] * inverse
    narrow = (positions.float()[:, None] * inverse.float()).to(torch.float64)
    angles = torch.where((positions.abs() < _FLOAT32_POSITIONS)[:, None], narrow, exact)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], -1).to(dtype), torch.cat([-sin, sin], -1).to(dtype)


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
