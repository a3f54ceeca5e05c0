"""Tokens, losses and text of a compact memory, packed with zlib."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from ttt_docs.memory.format import tensor_of
from ttt_docs.memory.header import Refusal

#: What is packed may unpack to this many times its bytes, and `_SMALL` more: a file cannot ask for more memory than
#: that. Text that packs better, such as one letter repeated, is stored as it is.
_RATIO = 16
_SMALL = 1 << 16


def pack(data: bytes) -> Tensor:
    """uint8 [n]: a zlib stream."""
    packed = zlib.compress(data, 9)
    if not _allowed(len(data), len(packed)):
        packed = zlib.compress(data, 0)
    return tensor_of(packed)


def unpack(name: str, packed: Tensor, size: int) -> Tensor:
    """uint8 [size]: what `pack` was given.

    Raises Refusal when it is anything else, before more than `size` bytes are made.
    """
    if not _allowed(size, packed.numel()):
        raise Refusal(f"its {name} would unpack from {packed.numel():,} to {size:,} bytes")
    stream = zlib.decompressobj()
    try:
        data = stream.decompress(packed.numpy().data, size + 1)
    except zlib.error:
        raise Refusal(f"its {name} cannot be unpacked") from None
    if len(data) != size or not stream.eof or stream.unused_data:
        raise Refusal(f"its {name} does not unpack to {size:,} bytes")
    return tensor_of(data)


def _allowed(size: int, packed: int) -> bool:
    return size <= _RATIO * packed + _SMALL


def pack_numbers(numbers: Tensor) -> Tensor:
    """A tensor [n] with all first bytes of its numbers first, then all second ones: alike bytes stand together."""
    planes = numbers.contiguous().view(torch.uint8).view(numbers.numel(), numbers.element_size()).T
    return pack(planes.contiguous().numpy().tobytes())


def unpack_numbers(name: str, packed: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """The reverse of `pack_numbers`. Raises Refusal as `unpack` does."""
    planes = unpack(name, packed, count * dtype.itemsize)
    return planes.view(dtype.itemsize, count).T.contiguous().view(-1).view(dtype)
