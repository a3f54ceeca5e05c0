"""Saving a memory to one file, and loading it again. `header` says how the file is laid out.

The safetensors library can open the file too; text and numbers are little-endian, as on every usual machine.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import BinaryIO, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from ttt_docs._version import __version__
from ttt_docs.errors import MemoryFormatError, MemoryMismatchError, UsageError
from ttt_docs.io import replacing
from ttt_docs.memory.checks import (
    CHANGE_PARTS,
    FAST_NAMES,
    WINDOW_NAMES,
    check_documents,
    check_finite,
    check_layout,
    check_scale,
    check_tokens,
)
from ttt_docs.memory.header import (
    DAMAGED,
    DTYPE_NAMES,
    DTYPES,
    FORMAT_VERSION,
    NO_CRC,
    Header,
    Packed,
    Precision,
    RawHeader,
    Refusal,
    TensorEntry,
    crc_field,
    encode_header,
    parse_header,
    read_header,
    shown,
)
from ttt_docs.memory.memory import Memory
from ttt_docs.memory.packing import pack, packed_numbers, unpack, unpack_numbers
from ttt_docs.weights.lowrank import Changes, LowRank

_STEP = 1 << 24  # bytes read or written in one go


def save_memory(
    memory: Memory, path: str | os.PathLike[str], *, precision: Precision = "float32", text: bool = True
) -> Path:
    """Write `memory` to one file, which replaces an older one of that name in one step or not at all.

    With `precision="float32"` loading gives back every bit. `precision="bfloat16"` halves the fast weights' bytes by
    rounding them to 8 bits of mantissa: reading on from such a file is close to, but not bit for bit, reading in one
    go. Window, tokens and losses are exact either way. `text=False` leaves the documents' text out (their names and
    offsets stay). Names that are not valid Unicode are stored with `?` in place of what is not.

    Returns:
        `path` as a Path.

    Raises:
        UsageError: `path` cannot be a file, or `precision` is unknown.
        MemoryFormatError: the memory is not sound (NaN in its fast weights, shapes that do not fit, ...).
        TTTDocsError: the file cannot be written (permission, full disk); an older file is as it was.
    """
    target = Path(path)
    write_memory(memory, target, lambda: replacing(target), precision=precision, text=text)
    return target


def write_memory(
    memory: Memory,
    target: str | os.PathLike[str],
    open_target: Callable[[], AbstractContextManager[BinaryIO]],
    *,
    precision: Precision = "float32",
    text: bool = True,
) -> None:
    """Write `memory` into what `open_target` opens, once it is known to be sound; `target` is for the messages.

    Raises as `save_memory` does.
    """
    if precision not in get_args(Precision):
        raise UsageError(f"precision={precision!r} is unknown: use one of {', '.join(get_args(Precision))}")
    try:
        if memory.change is not None and precision != "float32":
            raise UsageError("a compact memory has a precision of its own: leave precision out")
        parts = _parts(memory, precision, text)
        table = _table(parts)
        raw = encode_header(_header(memory, precision, text), table)
        # The file must pass the checks of loading, so they are made on the very bytes to be written.
        header, _, _ = parse_header(raw)
        check_layout(header, table, sum(entry.nbytes for entry in table.values()))
        check_tokens(memory.tokens)
        check_documents(header, None if memory.text is None else len(memory.text))
        with open_target() as file:
            _write(file, raw, parts)
    except Refusal as refusal:
        advice = "" if refusal.advice == DAMAGED else f" {refusal.advice}"
        raise MemoryFormatError(
            f"this memory cannot be saved to {target}: {refusal.what}. Nothing was written.{advice}"
        ) from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # a Memory made by hand, of wrong types
        if isinstance(error, UsageError):
            raise
        raise MemoryFormatError(f"this memory cannot be saved to {target}: {error}. Nothing was written") from error


def load_memory(
    path: str | os.PathLike[str], *, expect_fingerprint: str | None = None, expect_model: str | None = None
) -> Memory:
    """Read a memory file, on the CPU. It is checked in full; no file, however broken, gives another exception.

    `expect_fingerprint` is the fingerprint of the model that is to read on, `expect_model` its name for the message.

    Raises:
        MemoryMismatchError: the file belongs to another model.
        MemoryFormatError: there is no such file, it may not be read, or it is not an intact memory of this version.
    """
    with opened(path) as file:
        raw = read_header(file)
        found = raw.header.fingerprint
        if expect_fingerprint is not None and found != expect_fingerprint:
            raise MemoryMismatchError(
                f"{os.fspath(path)} was read with the model {shown(raw.header.model)} (fingerprint "
                f"{shown(found, 16)}), not with {shown(expect_model) if expect_model else 'this one'} "
                f"(fingerprint {shown(expect_fingerprint, 16)}): use that model, or read the document again"
            )
        return _load(file, raw)


def read_memory(file: BinaryIO, name: str) -> Memory:
    """The memory in an open file, checked as by `load_memory`; `name` is for the messages.

    Raises MemoryFormatError.
    """
    with explained(name):
        return _load(file, read_header(file))


def _load(file: BinaryIO, raw: RawHeader) -> Memory:
    header = raw.header
    check_layout(header, raw.table, raw.data_bytes)
    tensors = _read(file, raw)
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            check_finite(name, tensor)
        if name.endswith(("/scale8", "/scale4")):
            check_scale(name, tensor)
    if header.packed is not None:
        _unpack(header.packed, tensors)
    check_tokens(tensors["tokens"])
    text = _decode(tensors["text"]) if "text" in tensors else None
    check_documents(header, None if text is None else len(text))
    exact = header.fast_blocks if header.packed is None else ()
    return Memory(
        model=header.model,
        fingerprint=header.fingerprint,
        reading=header.reading,
        fast={block: {n: tensors[f"fast/{block}/{n}"].float() for n in FAST_NAMES} for block in exact},
        window={block: (tensors[f"window/{block}/k"], tensors[f"window/{block}/v"]) for block in header.window_blocks},
        position=header.position,
        tokens=tensors["tokens"],
        nll=tensors["nll"],
        text=text,
        documents=header.documents,
        skipped=header.skipped,
        extra=header.extra,
        change=None if header.packed is None else _change(header, tensors),
        index=bytes(_bytes(tensors["index"])) if "index" in tensors else None,
    )


def _unpack(packed: Packed, tensors: dict[str, Tensor]) -> None:
    """Tokens, losses and text of a compact memory, in place of what they are packed in."""
    tensors["tokens"] = unpack_numbers("tokens", tensors["tokens"], packed.tokens, torch.int32)
    tensors["nll"] = unpack_numbers("nll", tensors["nll"], packed.tokens, torch.float16).float()
    check_finite("nll", tensors["nll"])
    if "text" in tensors:
        assert packed.text_bytes is not None  # `check_layout` has seen to it
        tensors["text"] = torch.frombuffer(unpack("text", tensors["text"], packed.text_bytes), dtype=torch.uint8)


def _change(header: Header, tensors: dict[str, Tensor]) -> Changes:
    return {
        block: {
            name: LowRank(**{part: tensors[f"change/{block}/{name}/{part}"] for part in CHANGE_PARTS})
            for name in FAST_NAMES
        }
        for block in header.fast_blocks
    }


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


def _header(memory: Memory, precision: Precision, text: bool) -> Header:
    def clean(name: str) -> str:  # file names may hold bytes that are not Unicode
        return name.encode("utf-8", "replace").decode("utf-8")

    return Header(
        format_version=FORMAT_VERSION,
        package_version=__version__,
        created=datetime.now(timezone.utc).replace(microsecond=0),
        model=clean(memory.model),
        fingerprint=memory.fingerprint,
        reading=memory.reading,
        precision=precision,
        fast_blocks=tuple(memory.fast if memory.change is None else memory.change),
        window_blocks=tuple(memory.window),
        position=memory.position,
        skipped=memory.skipped,
        documents=tuple(
            replace(
                document,
                name=clean(document.name),
                spans=tuple(replace(span, label=clean(span.label)) for span in document.spans),
                metadata={clean(key): clean(value) for key, value in document.metadata.items()},
            )
            for document in memory.documents
        ),
        extra={clean(key): clean(value) for key, value in memory.extra.items()},
        packed=_packed(memory, text),
    )


def _packed(memory: Memory, text: bool) -> Packed | None:
    if memory.change is None:
        return None
    kept = memory.text is not None and text
    return Packed(tokens=memory.tokens.numel(), text_bytes=len(memory.text.encode()) if kept and memory.text else None)


class _Part(NamedTuple):
    """One tensor of the file, and the dtype to store it in."""

    name: str
    tensor: Tensor
    dtype: torch.dtype


def _parts(memory: Memory, precision: Precision, text: bool) -> list[_Part]:
    """All tensors, in the order of the file."""
    parts = []
    for block, weights in memory.fast.items():
        for name in FAST_NAMES:
            if weights[name].dtype != torch.float32:
                raise Refusal(f"the fast weights {name} of block {block} are {weights[name].dtype}, not float32", "")
            stored = torch.bfloat16 if precision == "bfloat16" else torch.float32
            parts.append(_Part(f"fast/{block}/{name}", weights[name], stored))
    for block, lows in (memory.change or {}).items():
        for name in FAST_NAMES:
            parts += [_Part(f"change/{block}/{name}/{n}", t, t.dtype) for n, t in lows[name].tensors().items()]
    if memory.change is None:
        parts += [_Part("tokens", memory.tokens, memory.tokens.dtype), _Part("nll", memory.nll, memory.nll.dtype)]
    else:
        parts += [_Part(name, packed, torch.uint8) for name, packed in packed_numbers(memory).items()]
    for block, pair in memory.window.items():
        parts += [_Part(f"window/{block}/{n}", t, t.dtype) for n, t in zip(WINDOW_NAMES, pair, strict=True)]
    if text and memory.text is not None:
        try:
            encoded = np.frombuffer(bytearray(memory.text, "utf-8"), dtype=np.uint8)
        except UnicodeEncodeError as error:
            raise Refusal(f"its text is not Unicode at character {error.start}", "Save it with text=False.") from None
        whole = torch.from_numpy(encoded)
        parts.append(_Part("text", whole if memory.change is None else pack(whole.numpy().tobytes()), torch.uint8))
    if any(part.name == "text" for part in parts) and memory.index is not None and memory.change is None:
        parts.append(_Part("index", torch.frombuffer(bytearray(memory.index), dtype=torch.uint8), torch.uint8))
    for part in parts:
        if part.dtype not in DTYPE_NAMES:
            raise Refusal(f"the tensor {part.name} is {part.dtype}, which no memory uses", "")
    # Wide numbers first: every tensor then starts at a multiple of its element size.
    return sorted(parts, key=lambda part: -part.dtype.itemsize)


def _table(parts: list[_Part]) -> dict[str, TensorEntry]:
    table, begin = {}, 0
    for name, tensor, dtype in parts:
        end = begin + tensor.numel() * dtype.itemsize
        table[name] = TensorEntry(DTYPE_NAMES[dtype], tuple(tensor.shape), begin, end)
        begin = end
    return table


def _bytes(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, shared with it."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _write(file: BinaryIO, raw: bytes, parts: list[_Part]) -> None:
    """Header and tensors in one pass; the checksum is put in at the end."""
    file.write(len(raw).to_bytes(8, "little"))
    file.write(raw)
    crc = zlib.crc32(raw)
    for name, tensor, dtype in parts:
        stored = tensor.detach().to("cpu", dtype).contiguous()
        if stored.is_floating_point():
            check_finite(name, stored)
        data = _bytes(stored)
        for start in range(0, len(data), _STEP):
            file.write(data[start : start + _STEP])
            crc = zlib.crc32(data[start : start + _STEP], crc)
    file.seek(8 + raw.index(crc_field(NO_CRC)))
    file.write(crc_field(f"{crc:08x}"))


def _read(file: BinaryIO, raw: RawHeader) -> dict[str, Tensor]:
    """All tensors, checksum verified; the layout has been checked, so no more is allocated than the file holds."""
    crc = zlib.crc32(raw.json.replace(crc_field(raw.crc32), crc_field(NO_CRC)))
    tensors = {}
    for name, entry in sorted(raw.table.items(), key=lambda item: (item[1].begin, item[1].end)):
        try:
            tensor = torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
        except (RuntimeError, MemoryError):
            raise Refusal(f"its {entry.nbytes:,} bytes of {name} do not fit into memory", "Free some memory.") from None
        data = _bytes(tensor)
        for start in range(0, len(data), _STEP):
            part = data[start : start + _STEP]
            if file.readinto(part) != len(part):  # type: ignore[attr-defined]  # files opened "rb" have it
                raise Refusal("the file became shorter while it was read", "Wait until it is written, then try again.")
            crc = zlib.crc32(part, crc)
        tensors[name] = tensor
    if f"{crc:08x}" != raw.crc32:
        raise Refusal("its checksum is wrong")
    return tensors


def _decode(data: Tensor) -> str:
    try:
        return str(_bytes(data), "utf-8")
    except UnicodeDecodeError as error:
        raise Refusal(f"its text is not valid UTF-8 at byte {error.start:,}") from None
