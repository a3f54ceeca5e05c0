"""The file of a memory as tensors and their table. `header` says how it is laid out.

The safetensors library can open the file too; text and numbers are little-endian, as on every usual machine.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ttt_docs.errors import MemoryFormatError
from ttt_docs.memory import checks
from ttt_docs.memory.header import (
    DTYPE_NAMES,
    DTYPES,
    FOREIGN,
    MAX_HEADER_BYTES,
    NO_CRC,
    Header,
    Refusal,
    TensorEntry,
    crc_field,
    parse_header,
)

_STEP = 1 << 24  # bytes read or written in one go
_SHRANK = "the file became shorter while it was read", "Wait until it is written, then try again."


class Part(NamedTuple):
    """One tensor of the file, and the dtype to store it in."""

    name: str
    tensor: Tensor
    dtype: torch.dtype


class RawHeader(NamedTuple):
    """A header as read and checked."""

    header: Header
    table: dict[str, TensorEntry]
    sizes: checks.Sizes
    header_bytes: int
    data_bytes: int
    crc32: str  # as the file says
    header_crc: int  # of the header alone

    @property
    def tokens(self) -> int:
        return self.table["tokens"].shape[0] if self.header.packed is None else self.header.packed.tokens


def table_of(parts: list[Part]) -> dict[str, TensorEntry]:
    table, begin = {}, 0
    for name, tensor, dtype in parts:
        end = begin + tensor.numel() * dtype.itemsize
        table[name] = TensorEntry(DTYPE_NAMES[dtype], tuple(tensor.shape), (begin, end))  # type: ignore[arg-type]
        begin = end
    return table


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, shared with it."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def tensor_of(data: bytes | bytearray) -> Tensor:
    """uint8 [n]: a tensor of its own with these bytes."""
    return torch.from_numpy(np.frombuffer(bytearray(data), dtype=np.uint8))


def write_tensors(file: BinaryIO, raw: bytes, parts: list[Part]) -> None:
    """Header and tensors in one pass; the checksum is put in at the end."""
    file.write(len(raw).to_bytes(8, "little"))
    file.write(raw)
    crc = zlib.crc32(raw)
    for name, tensor, dtype in parts:
        stored = tensor.detach().to("cpu", dtype).contiguous()
        checks.check_values(name, stored)
        data = bytes_of(stored)
        for start in range(0, len(data), _STEP):
            file.write(data[start : start + _STEP])
            crc = zlib.crc32(data[start : start + _STEP], crc)
    file.seek(8 + raw.index(crc_field(NO_CRC)))
    file.write(crc_field(f"{crc:08x}"))


def read_header(file: BinaryIO, size: int | None = None) -> RawHeader:
    """Read and check the header of an open file; the file then stands at the first tensor byte.

    `size` is the whole file's where only its beginning is at hand.

    Raises:
        Refusal: it is no memory file, of another version, damaged, or cut short.
    """
    if size is None:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
    if size == 0:
        raise Refusal("the file is empty (0 bytes)")
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > MAX_HEADER_BYTES:
        raise Refusal("this is not a memory file", FOREIGN)
    if length > size - 8:
        raise Refusal(f"the file ends within its header ({size:,} bytes), or it is not a memory file")
    raw = file.read(length)
    if len(raw) < length:
        raise Refusal(*_SHRANK)
    if raw[:1] != b"{":
        raise Refusal("this is not a memory file", FOREIGN)
    header, table, crc32 = parse_header(raw)
    data_bytes = size - 8 - length
    sizes = checks.check_layout(header, table, data_bytes)
    header_crc = zlib.crc32(raw.replace(crc_field(crc32), crc_field(NO_CRC)))
    return RawHeader(header, table, sizes, 8 + length, data_bytes, crc32, header_crc)


def read_tensors(file: BinaryIO, raw: RawHeader) -> dict[str, Tensor]:
    """All tensors, checksum verified; the layout has been checked, so no more is allocated than the file holds."""
    crc, tensors = raw.header_crc, {}
    for name, entry in sorted(raw.table.items(), key=lambda item: item[1].data_offsets):
        try:
            tensor = torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
        except (RuntimeError, MemoryError):
            raise Refusal(f"its {entry.nbytes:,} bytes of {name} do not fit into memory", "Free some memory.") from None
        data = bytes_of(tensor)
        for start in range(0, len(data), _STEP):
            part = data[start : start + _STEP]
            if file.readinto(part) != len(part):  # type: ignore[attr-defined]  # files opened "rb" have it
                raise Refusal(*_SHRANK)
            crc = zlib.crc32(part, crc)
        tensors[name] = tensor
    if f"{crc:08x}" != raw.crc32:
        raise Refusal("its checksum is wrong")
    for name, tensor in tensors.items():
        checks.check_values(name, tensor)
    return tensors


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a memory file; refusals and the system's errors become a MemoryFormatError with its name."""
    name = os.fspath(path)
    with explained(name):
        # Asked before opening: opening a pipe would wait for its writer.
        if os.path.isdir(name):
            raise MemoryFormatError(f"{name} is a folder; give the .ttt file in it")
        if os.path.exists(name) and not os.path.isfile(name):
            raise MemoryFormatError(f"{name} is not an ordinary file; give a .ttt file")
        with open(name, "rb") as file:
            yield file


@contextmanager
def explained(name: str) -> Iterator[None]:
    """What goes wrong with the memory file `name` becomes a MemoryFormatError with its name."""
    try:
        yield
    except Refusal as refusal:
        raise MemoryFormatError(f"{name} cannot be loaded: {refusal.what}. {refusal.advice}") from None
    except FileNotFoundError:
        raise MemoryFormatError(f"{name} does not exist; check the name, or write it with `ttt-docs ingest`") from None
    except PermissionError as error:
        raise MemoryFormatError(f"{name} may not be read: no permission; ask its owner for it") from error
    except OSError as error:
        raise MemoryFormatError(f"{name} cannot be read: {error.strerror or error}; check the disk or name") from error
    except ValueError as error:
        if "null" not in str(error):
            raise
        raise MemoryFormatError(f"{name!r} cannot be the name of a file; check the name") from None
