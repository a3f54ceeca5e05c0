"""Rotary position embedding. Inside the project pairs are halves (i, i + head_dim/2); importers convert other layouts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ttt_docs.model.config import ModelConfig

#: cos and sin of the angles, float32 [tokens, head_dim] each; sin carries the sign of the first half.
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


def rotation(positions: Tensor, inverse: Tensor, dtype: torch.dtype = torch.float32) -> Rotation:
    """cos and sin for integer `positions` [tokens]. Angles in float64: float32 is off by 0.06 rad at a million tokens."""
    angles = positions.to(torch.float64)[:, None] * inverse.to(positions.device)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], -1).to(dtype), torch.cat([-sin, sin], -1).to(dtype)


def rotate(x: Tensor, turn: Rotation) -> Tensor:
    """Turns x [batch, tokens, heads, head_dim] by the tokens' angles; computed in float32."""
    cos, sin = (t.unsqueeze(1) for t in turn)
    wide = x if x.dtype == torch.float64 else x.float()
    half = x.shape[-1] // 2
    out = wide * cos
    out[..., :half].addcmul_(wide[..., half:], sin[..., :half])
    out[..., half:].addcmul_(wide[..., :half], sin[..., half:])
    return out.to(x.dtype)
