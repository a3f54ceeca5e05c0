"""Tokens, losses and text of a compact memory, packed with zlib."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor

from ttt_docs.memory.header import Refusal

#: What is packed may unpack to this many times its bytes, and `_SMALL` more: a file cannot ask for more memory than
#: that. Text that packs better, such as one letter repeated, is stored as it is.
_RATIO = 16
_SMALL = 1 << 16


def pack(data: bytes) -> Tensor:
    """uint8 [n]: a zlib stream."""
    packed = zlib.compress(data, 9)
    if not allowed(len(data), len(packed)):
        packed = zlib.compress(data, 0)
    return torch.frombuffer(bytearray(packed), dtype=torch.uint8)


def unpack(name: str, packed: Tensor, size: int) -> bytearray:
    """What `pack` was given, exactly `size` bytes.

    Raises Refusal when it is anything else, before more than `size` bytes are made.
    """
    if not allowed(size, packed.numel()):
        raise Refusal(f"its {name} would unpack from {packed.numel():,} to {size:,} bytes")
    stream = zlib.decompressobj()
    try:
        data = stream.decompress(packed.numpy().data, size + 1)
    except zlib.error:
        raise Refusal(f"its {name} cannot be unpacked") from None
    if len(data) != size or not stream.eof or stream.unused_data:
        raise Refusal(f"its {name} does not unpack to {size:,} bytes")
    return bytearray(data)


def allowed(size: int, packed: int) -> bool:
    return size <= _RATIO * packed + _SMALL


def pack_numbers(numbers: Tensor) -> Tensor:
    """A tensor [n] with all first bytes of its numbers first, then all second ones: alike bytes stand together."""
    planes = numbers.contiguous().view(torch.uint8).view(numbers.numel(), numbers.element_size()).T
    return pack(planes.contiguous().numpy().tobytes())


def unpack_numbers(name: str, packed: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """The reverse of `pack_numbers`. Raises Refusal as `unpack` does."""
    planes = np.frombuffer(unpack(name, packed, count * dtype.itemsize), dtype=np.uint8)
    together = np.ascontiguousarray(planes.reshape(dtype.itemsize, count).T)
    return torch.from_numpy(together.reshape(-1)).view(dtype)
