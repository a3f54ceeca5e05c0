"""The file of a memory as tensors and their table. `header` says how it is laid out.

The safetensors library can open the file too; text and numbers are little-endian, as on every usual machine.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from ttt_docs.errors import MemoryFormatError
from ttt_docs.memory.checks import check_finite
from ttt_docs.memory.header import DTYPE_NAMES, DTYPES, NO_CRC, RawHeader, Refusal, TensorEntry, crc_field

_STEP = 1 << 24  # bytes read or written in one go


class Part(NamedTuple):
    """One tensor of the file, and the dtype to store it in."""

    name: str
    tensor: Tensor
    dtype: torch.dtype


def table_of(parts: list[Part]) -> dict[str, TensorEntry]:
    table, begin = {}, 0
    for name, tensor, dtype in parts:
        end = begin + tensor.numel() * dtype.itemsize
        table[name] = TensorEntry(DTYPE_NAMES[dtype], tuple(tensor.shape), begin, end)
        begin = end
    return table


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, shared with it."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def write_tensors(file: BinaryIO, raw: bytes, parts: list[Part]) -> None:
    """Header and tensors in one pass; the checksum is put in at the end."""
    file.write(len(raw).to_bytes(8, "little"))
    file.write(raw)
    crc = zlib.crc32(raw)
    for name, tensor, dtype in parts:
        stored = tensor.detach().to("cpu", dtype).contiguous()
        if stored.is_floating_point():
            check_finite(name, stored)
        data = bytes_of(stored)
        for start in range(0, len(data), _STEP):
            file.write(data[start : start + _STEP])
            crc = zlib.crc32(data[start : start + _STEP], crc)
    file.seek(8 + raw.index(crc_field(NO_CRC)))
    file.write(crc_field(f"{crc:08x}"))


def read_tensors(file: BinaryIO, raw: RawHeader) -> dict[str, Tensor]:
    """All tensors, checksum verified; the layout has been checked, so no more is allocated than the file holds."""
    crc = zlib.crc32(raw.json.replace(crc_field(raw.crc32), crc_field(NO_CRC)))
    tensors = {}
    for name, entry in sorted(raw.table.items(), key=lambda item: (item[1].begin, item[1].end)):
        try:
            tensor = torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
        except (RuntimeError, MemoryError):
            raise Refusal(f"its {entry.nbytes:,} bytes of {name} do not fit into memory", "Free some memory.") from None
        data = bytes_of(tensor)
        for start in range(0, len(data), _STEP):
            part = data[start : start + _STEP]
            if file.readinto(part) != len(part):  # type: ignore[attr-defined]  # files opened "rb" have it
                raise Refusal("the file became shorter while it was read", "Wait until it is written, then try again.")
            crc = zlib.crc32(part, crc)
        tensors[name] = tensor
    if f"{crc:08x}" != raw.crc32:
        raise Refusal("its checksum is wrong")
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
