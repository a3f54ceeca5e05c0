"""The memory: what reading leaves behind, and how it goes into a file and comes back."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from os import PathLike, fspath
from pathlib import Path
from typing import BinaryIO, Protocol, get_args

import torch
from torch import Tensor

from ttt_docs._version import __version__
from ttt_docs.errors import MemoryFormatError, MemoryMismatchError, UsageError
from ttt_docs.io import replacing
from ttt_docs.kernels.inner_step.layout import NAMES as FAST_NAMES
from ttt_docs.memory import checks
from ttt_docs.memory.format import (
    Part,
    RawHeader,
    bytes_of,
    explained,
    opened,
    read_header,
    read_tensors,
    table_of,
    tensor_of,
    write_tensors,
)
from ttt_docs.memory.header import (
    DAMAGED,
    DTYPE_NAMES,
    FORMAT_VERSION,
    SHARED,
    Header,
    Packed,
    Precision,
    ReadDocument,
    Refusal,
    encode_header,
    naming_the_field,
    parse_header,
    shown,
)
from ttt_docs.memory.packing import pack, pack_numbers, unpack, unpack_numbers
from ttt_docs.model.config import ReadingConfig
from ttt_docs.text.index import index_of, packed
from ttt_docs.text.spans import label_at
from ttt_docs.weights.lowrank import Changes, LowRank
from ttt_docs.weights.registry import advice

#: Room for the header of a compact memory's file.
_HEADER_BYTES = 1 << 16
#: Bytes of a compact memory's file unless told otherwise.
COMPACT_BYTES = 12_000_000
#: The fast weights of one block: `w1`, `w3` float32 [mlp, dim] and `w2` float32 [dim, mlp].
BlockWeights = dict[str, Tensor]


class Compacts(Protocol):
    """What makes compact memories: a `TTTReader`."""

    def compact(self, memory: Memory, max_bytes: int) -> Memory: ...


@dataclass(frozen=True)
class Memory:
    """Fast weights, attention window and position after reading `position` tokens in whole chunks.

    A memory is a value: reading on returns a new one, questions never change it. `tokens` may be longer than
    `position`: the rest, at most a chunk, is pending: scored but not yet learned from.
    """

    model: str  # registry name, folder or Hugging Face id it was read with: a hint for people
    fingerprint: str  # sha256 over the model's configuration and weights
    reading: ReadingConfig
    fast: dict[int, BlockWeights]  # block index -> fast weights
    window: dict[int, tuple[Tensor, Tensor]]  # block index -> keys, values [kv_heads, cached, head_dim], sinks first
    position: int  # tokens read in whole chunks: a multiple of reading.chunk
    tokens: Tensor  # int32 [n], n >= position
    nll: Tensor  # float32 [n], nats: nll[i] = -log p(tokens[i] | before); 0 where nothing was predicted
    text: str | None = None
    documents: tuple[ReadDocument, ...] = ()
    skipped: int = 0  # updates that the guard refused
    extra: dict[str, str] = field(default_factory=dict)  # free notes of the caller
    #: Only in a compact memory: what reading added to the fast weights. `fast` and `window` are then empty.
    change: Changes | None = None
    #: The index over the text (`text/index.py`); a compact memory leaves it out, and lookups make it again.
    index: bytes | None = None

    @property
    def pending(self) -> Tensor:
        """Tokens after the last whole chunk, int32 [n - position]."""
        return self.tokens[self.position :]

    @property
    def chunks(self) -> int:
        return self.position // self.reading.chunk

    @property
    def unread(self) -> bool:
        """Whether it holds the documents' text alone, of which nothing was read."""
        return bool(self.documents) and len(self.tokens) <= self.documents[0].first_token

    def document_at(self, character: int) -> ReadDocument | None:
        """The document that a character of the text belongs to; the gap after a document counts as its end."""
        at = bisect_right(self.documents, character, key=lambda document: document.start) - 1
        return self.documents[at] if at >= 0 else None

    def label_at(self, character: int, kind: str) -> str | None:
        """The label of the "page" or "chapter" of a character of the text."""
        document = self.document_at(character)
        return None if document is None else label_at(document.spans, character, kind)

    def with_text(self, text: str | None) -> Memory:
        return replace(self, text=text, index=None)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors, by the names that they have in the file."""
        found = {f"fast/{block}/{name}": weights[name] for block, weights in self.fast.items() for name in FAST_NAMES}
        for block, lows in (self.change or {}).items():
            found |= {f"change/{block}/{n}/{part}": t for n in FAST_NAMES for part, t in lows[n].tensors().items()}
        found |= {"tokens": self.tokens, "nll": self.nll}
        for block, pair in self.window.items():
            found |= {f"window/{block}/{n}": t for n, t in zip(checks.WINDOW_NAMES, pair, strict=True)}
        return found

    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def compact(self, reader: Compacts, max_bytes: int = COMPACT_BYTES) -> Memory:
        """This memory for a file of at most `max_bytes`, close to exact: docs/compaction.md says how close.

        `reader` is a `TTTReader`, whose `compact` this calls: it knows the model's initial fast weights.

        Raises MemoryMismatchError for another model's reader, UsageError if it does not fit or is compact already.
        """
        return reader.compact(self, max_bytes)

    def save(self, path: str | PathLike[str], *, precision: Precision = "float32", text: bool = True) -> Path:
        """Write this memory to one file, which replaces an older one of that name in one step or not at all.

        With `precision="float32"` loading gives back every bit. `precision="bfloat16"` halves the fast weights' bytes
        by rounding them to 8 bits of mantissa: reading on from such a file is close to, but not bit for bit, reading in
        one go. Window, tokens and losses are exact either way. `text=False` leaves the documents' text out (their names
        and offsets stay). Names that are not valid Unicode are stored with `?` in place of what is not.

        Returns:
            `path` as a Path.

        Raises:
            UsageError: `path` cannot be a file, or `precision` is unknown.
            MemoryFormatError: the memory is not sound (NaN in its fast weights, shapes that do not fit, ...).
            TTTDocsError: the file cannot be written (permission, full disk); an older file is as it was.
        """
        target = Path(path)
        write_memory(self, target, lambda: replacing(target), precision=precision, text=text)
        return target

    @staticmethod
    def load(
        path: str | PathLike[str], *, expect_fingerprint: str | None = None, expect_model: str | None = None
    ) -> Memory:
        """Read a memory file, on the CPU. It is checked in full; no file, however broken, gives another exception.

        `expect_fingerprint` is that of the model that is to read on, `expect_model` its name for the message.

        Raises:
            MemoryMismatchError: the file belongs to another model.
            MemoryFormatError: there is no such file, it may not be read, or it is not an intact memory of this version.
        """
        with opened(path) as file:
            raw = read_header(file)
            found = raw.header.fingerprint
            if expect_fingerprint is not None and found != expect_fingerprint:
                raise mismatch(fspath(path), raw.header.model, found, expect_model, expect_fingerprint)
            return _load(file, raw)


def indexed(memory: Memory) -> Memory:
    """`memory` with the index over its text, made anew."""
    return replace(memory, index=packed(index_of(memory.text)) if memory.text else None)


def mismatch(
    what: str, model: str, fingerprint: str, expected_model: str | None, expected_fingerprint: str
) -> MemoryMismatchError:
    """The error for a memory, `what`, that was read with another model than the expected one."""
    name = shown(model, 200)[1:-1]  # from a file: without control characters
    other = f"{expected_model}, " if expected_model else ""
    return MemoryMismatchError(
        f"{what} was read with another model ({name}, fingerprint {shown(fingerprint[:12])[1:-1]}) than this one "
        f"({other}fingerprint {expected_fingerprint[:12]}): {advice(name, expected_model or '')}, or read the document "
        "again"
    )


def memories_equal(a: Memory, b: Memory) -> bool:
    """Bit-for-bit equality of everything reading computed."""

    def same(x: Tensor, y: Tensor) -> bool:
        # As bytes: for numbers, -0.0 equals 0.0 and NaN nothing.
        same_kind = x.dtype == y.dtype and x.shape == y.shape
        return same_kind and torch.equal(x.reshape(-1).view(torch.uint8), y.reshape(-1).view(torch.uint8))

    mine, theirs = a.tensors(), b.tensors()
    same_names = a.position == b.position and mine.keys() == theirs.keys()
    return same_names and all(same(tensor, theirs[name]) for name, tensor in mine.items())


def write_memory(
    memory: Memory,
    target: str | PathLike[str],
    open_target: Callable[[], AbstractContextManager[BinaryIO]],
    *,
    precision: Precision = "float32",
    text: bool = True,
) -> None:
    """Write `memory` into what `open_target` opens, once it is known to be sound; `target` is for the messages.

    Raises as `Memory.save` does.
    """
    if precision not in get_args(Precision):
        raise UsageError(f"precision={precision!r} is unknown: use one of {', '.join(get_args(Precision))}")
    try:
        if memory.change is not None and precision != "float32":
            raise UsageError("a compact memory has a precision of its own: leave precision out")
        parts = _parts(memory, precision, text)
        table = table_of(parts)
        with naming_the_field():
            raw = encode_header(_header(memory, precision, text), table)
        # The file must pass the checks of loading, so they are made on the very bytes to be written.
        header, _, _ = parse_header(raw)
        checks.check_layout(header, table, sum(entry.nbytes for entry in table.values()))
        checks.check_values("tokens", memory.tokens)
        checks.check_documents(header.documents, None if memory.text is None else len(memory.text))
        with open_target() as file:
            write_tensors(file, raw, parts)
    except Refusal as refusal:
        advice = "" if refusal.advice.startswith(DAMAGED) else f" {refusal.advice}"
        raise MemoryFormatError(
            f"this memory cannot be saved to {target}: {refusal.what}. Nothing was written.{advice}"
        ) from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # a Memory made by hand, of wrong types
        if isinstance(error, UsageError):
            raise
        raise MemoryFormatError(f"this memory cannot be saved to {target}: {error}. Nothing was written") from error


def read_memory(file: BinaryIO, name: str) -> Memory:
    """The memory in an open file, checked as by `Memory.load`; `name` is for the messages.

    Raises MemoryFormatError.
    """
    with explained(name):
        return _load(file, read_header(file))


def _load(file: BinaryIO, raw: RawHeader) -> Memory:
    header = raw.header
    tensors = read_tensors(file, raw)
    if header.packed is not None:
        _unpack(header.packed, tensors)
    text = _decode(tensors["text"]) if "text" in tensors else None
    checks.check_documents(header.documents, None if text is None else len(text))
    fast, change = {}, None
    if header.packed is None:
        fast = {block: {n: tensors[f"fast/{block}/{n}"].float() for n in FAST_NAMES} for block in header.fast_blocks}
    else:
        change = {
            block: {
                name: LowRank(**{part: tensors[f"change/{block}/{name}/{part}"] for part in checks.CHANGE_PARTS})
                for name in FAST_NAMES
            }
            for block in header.fast_blocks
        }
    return Memory(
        **{name: getattr(header, name) for name in SHARED},
        fast=fast,
        window={block: (tensors[f"window/{block}/k"], tensors[f"window/{block}/v"]) for block in header.window_blocks},
        tokens=tensors["tokens"],
        nll=tensors["nll"],
        text=text,
        change=change,
        index=bytes(bytes_of(tensors["index"])) if "index" in tensors else None,
    )


def _unpack(packed: Packed, tensors: dict[str, Tensor]) -> None:
    """Tokens, losses and text of a compact memory, in place of what they are packed in."""
    tensors["tokens"] = unpack_numbers("tokens", tensors["tokens"], packed.tokens, torch.int32)
    tensors["nll"] = unpack_numbers("nll", tensors["nll"], packed.tokens, torch.float16).float()
    for name in ("tokens", "nll"):
        checks.check_values(name, tensors[name])
    if packed.text_bytes is not None:
        tensors["text"] = unpack("text", tensors["text"], packed.text_bytes)


def _decode(data: Tensor) -> str:
    try:
        return str(bytes_of(data), "utf-8")
    except UnicodeDecodeError as error:
        raise Refusal(f"its text is not valid UTF-8 at byte {error.start:,}") from None


def _header(memory: Memory, precision: Precision, text: bool) -> Header:
    packed = None
    if memory.change is not None:
        text_bytes = len(memory.text.encode()) if memory.text is not None and text else None
        packed = Packed(tokens=memory.tokens.numel(), text_bytes=text_bytes)
    return Header(
        **{name: getattr(memory, name) for name in SHARED},
        format_version=FORMAT_VERSION,
        package_version=__version__,
        created=datetime.now(timezone.utc).replace(microsecond=0),
        precision=precision,
        fast_blocks=tuple(memory.fast if memory.change is None else memory.change),
        window_blocks=tuple(memory.window),
        packed=packed,
    )


def _parts(memory: Memory, precision: Precision, text: bool) -> list[Part]:
    """All tensors, in the order of the file."""
    tensors = memory.tensors()
    if memory.change is not None:
        tensors |= _packed_numbers(memory)
    if text and memory.text is not None:
        try:
            encoded = memory.text.encode()
        except UnicodeEncodeError as error:
            raise Refusal(f"its text is not Unicode at character {error.start}", "Save it with text=False.") from None
        tensors["text"] = tensor_of(encoded) if memory.change is None else pack(encoded)
        if memory.index is not None and memory.change is None:
            tensors["index"] = tensor_of(memory.index)
    parts = []
    for name, tensor in tensors.items():
        rounded = name.startswith("fast/") and precision == "bfloat16"
        parts.append(Part(name, tensor, torch.bfloat16 if rounded else tensor.dtype))
        if tensor.dtype not in DTYPE_NAMES or (name.startswith("fast/") and tensor.dtype != torch.float32):
            raise Refusal(f"the tensor {name} is {tensor.dtype}, which no memory uses there", "")
    # Wide numbers first: every tensor then starts at a multiple of its element size.
    return sorted(parts, key=lambda part: -part.dtype.itemsize)


def _packed_numbers(memory: Memory) -> dict[str, Tensor]:
    """`tokens` and `nll` (as float16) of a memory, packed."""
    return {"tokens": pack_numbers(memory.tokens), "nll": pack_numbers(memory.nll.to(torch.float16))}


def packed_bytes(memory: Memory) -> int:
    """An upper bound for the bytes of a compact memory's file, without the change of the fast weights."""
    header = _HEADER_BYTES + 200 * sum(len(document.spans) for document in memory.documents)
    text = 0 if memory.text is None else pack(memory.text.encode("utf-8", "replace")).numel()
    return header + text + sum(part.numel() for part in _packed_numbers(memory).values())
