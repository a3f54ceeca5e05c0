"""Rotary position embedding: the angles. `kernels.heads` rotates by them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ttt_docs.kernels.heads.definition import Rotation
from ttt_docs.model.config import ModelConfig


def frequencies(config: ModelConfig) -> Tensor:
    """Angle per position of each pair, float64 [head_dim / 2]; Llama 3 scaling where the configuration has it."""
    # On the CPU whatever device a model is made on: on "meta" this arithmetic would import sympy, which takes seconds.
    pairs = torch.arange(0, config.head_dim, 2, dtype=torch.float64, device="cpu") / config.head_dim
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
