"""Buffers kept between calls: a fresh one of tens of megabytes costs more in page faults than the work done in it."""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor

_local = threading.local()


def workspace(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialized CPU tensor that the next call of the same name, in this thread, will overwrite."""
    buffers: dict[tuple[str, torch.dtype], Tensor] = _local.__dict__.setdefault("buffers", {})
    size = math.prod(shape)
    buffer = buffers.get((name, dtype))
    if buffer is None or buffer.numel() < size:
        buffer = buffers[name, dtype] = torch.empty(size, dtype=dtype)
    return buffer[:size].view(shape)


def wide(dtype: torch.dtype) -> torch.dtype:
    """What sums and statistics are kept in: float32, and float64 for float64."""
    return dtype if dtype == torch.float64 else torch.float32
