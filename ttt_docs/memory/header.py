"""The header of a memory file.

A memory file is one safetensors file: 8 bytes with the header's length (little-endian), the header as JSON, then the
tensors one after another without gaps. The header maps each tensor's name to its dtype, shape and offsets; its
`__metadata__` holds two strings:

- `ttt_docs`: one JSON document, the fields of `Header`;
- `crc32`: eight hex digits, the CRC-32 of the header (with zeros in place of these digits) and all tensor bytes.

This module reads and writes that header without the safetensors library, because a memory file may come from a
stranger: every number is compared with the file's size before anything of that size is allocated.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Annotated, Any, BinaryIO, Literal, NamedTuple

import torch
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, PlainSerializer, ValidationError

from ttt_docs.model.config import ReadingConfig
from ttt_docs.text.spans import Span

FORMAT_VERSION = 1
#: A header holds about 100 bytes per tensor and per page: this is room for 100,000 pages.
MAX_HEADER_BYTES = 16 * 1024 * 1024
#: Lists and objects in a header. Pages and tables of 16 MB have fewer; each takes 60 bytes or more once it is parsed.
MAX_BRACKETS = 500_000
#: Dimensions of a tensor: no memory's has more than 3.
_MAX_RANK = 8
DTYPES = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
NO_CRC = "00000000"

Precision = Literal["float32", "bfloat16"]

DAMAGED = "The file is damaged or incomplete: copy it again from where it came, or read the document again."
_FOREIGN = "Give a .ttt file written by `ttt-docs ingest` or Memory.save."


class Refusal(Exception):
    """Why a file (or a memory that is to become one) cannot be used: `what` is wrong, and `advice`."""

    def __init__(self, what: str, advice: str = DAMAGED):
        super().__init__(what)
        self.what = what
        self.advice = advice


@dataclass(frozen=True)
class ReadDocument:
    """One document that went into a memory; `start`..`end` are its characters in the memory's text."""

    name: str
    start: int
    end: int
    sha256: str | None = None  # of the whole text in UTF-8; None while its end is unknown
    complete: bool = True  # False: reading stopped before the document's end
    spans: tuple[Span, ...] = ()
    first_token: int = 0  # index of its first token in the memory's tokens
    metadata: dict[str, str] = field(default_factory=dict, hash=False)  # title, author, ... where known


class Packed(BaseModel):
    """What the packed tensors of a compact memory unpack to."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: int = Field(ge=0, lt=2**31)
    text_bytes: int | None = Field(None, ge=0, lt=2**40, description="of the text in UTF-8; None: it was left out")


class Header(BaseModel):
    """Everything about a memory but its tensors. `created` is in UTC; the rest is as in `Memory`.

    A field that a newer ttt-docs added is passed over: what a reader must understand raises the format version.
    Reading parameters are the exception, since they decide the numbers: an unknown one is refused.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    format_version: int
    package_version: str
    created: AwareDatetime
    model: str
    fingerprint: str
    reading: Annotated[ReadingConfig, PlainSerializer(ReadingConfig.identity)]
    precision: Precision = Field(description="how the fast weights are stored")
    fast_blocks: tuple[int, ...]
    window_blocks: tuple[int, ...]
    position: int
    skipped: int
    documents: tuple[ReadDocument, ...]
    extra: dict[str, str]
    packed: Packed | None = Field(None, description="a compact memory's; it has no window")


class TensorEntry(NamedTuple):
    """Where a tensor lies: bytes `begin` (included) to `end` (excluded) after the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.begin


class RawHeader(NamedTuple):
    """A header as read: the JSON bytes, the two parts, and how many bytes follow in the file."""

    json: bytes
    header: Header
    table: dict[str, TensorEntry]
    crc32: str
    data_bytes: int


def shown(value: object, length: int = 60) -> str:
    """A value from a file, short and without control characters, for a message."""
    text = ascii(value)
    return text if len(text) <= length else text[: length - 3] + "..."


def encode_header(header: Header, table: dict[str, TensorEntry]) -> bytes:
    """The header's JSON, padded to a multiple of 8 bytes, with `NO_CRC` where the checksum will go."""
    absent = {"packed"} if header.packed is None else None
    document = json.dumps(header.model_dump(mode="json", exclude=absent), allow_nan=False)
    outer: dict[str, Any] = {"__metadata__": {"ttt_docs": document, "crc32": NO_CRC}}
    for name, entry in table.items():
        outer[name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": (entry.begin, entry.end)}
    raw = json.dumps(outer, separators=(",", ":")).encode("ascii")
    return raw + b" " * (-len(raw) % 8)


def crc_field(crc32: str) -> bytes:
    """The checksum as it stands in the header's JSON. Quotes inside JSON strings are escaped: it occurs once."""
    return b'"crc32":"%s"' % crc32.encode()


def read_header(file: BinaryIO, size: int | None = None) -> RawHeader:
    """Read and check the header of an open file; the file then stands at the first tensor byte.

    `size` is the whole file's where only its beginning is at hand.

    Raises:
        Refusal: it is no memory file, of another version, damaged, or cut short within its header.
    """
    if size is None:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
    if size == 0:
        raise Refusal("the file is empty (0 bytes)")
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > MAX_HEADER_BYTES:
        raise Refusal("this is not a memory file", _FOREIGN)
    if length > size - 8:
        raise Refusal(f"the file ends within its header ({size:,} bytes), or it is not a memory file")
    raw = file.read(length)
    if len(raw) < length:
        raise Refusal("the file became shorter while it was read", "Wait until it is written, then try again.")
    if raw[:1] != b"{":
        raise Refusal("this is not a memory file", _FOREIGN)
    header, table, crc32 = parse_header(raw)
    return RawHeader(raw, header, table, crc32, size - 8 - length)


def parse_header(raw: bytes) -> tuple[Header, dict[str, TensorEntry], str]:
    """The header's parts, each of the right type; how they fit together is for `checks`.

    Raises:
        Refusal: not our JSON, or of another version.
    """
    if len(raw) > MAX_HEADER_BYTES:
        raise Refusal(f"its header would have {len(raw):,} bytes; at most {MAX_HEADER_BYTES:,} are read", "")
    outer = _parse_json(raw, "its header")
    metadata = outer.pop("__metadata__", None)
    if not isinstance(metadata, dict) or not isinstance(metadata.get("ttt_docs"), str):
        raise Refusal("this is a safetensors file, but it holds no ttt-docs memory", _FOREIGN)
    document = _parse_json(metadata["ttt_docs"], "the description in its header")
    _check_version(document)
    try:
        header = Header.model_validate_json(metadata["ttt_docs"], strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "its start"
        advice = DAMAGED + " If a newer ttt-docs wrote it, upgrade: pip install -U ttt-docs."
        raise Refusal(f"its header has a wrong value at {shown(field)}: {shown(first['msg'], 200)}", advice) from None
    crc32 = metadata.get("crc32")
    if len(metadata) != 2 or not isinstance(crc32, str) or raw.count(crc_field(crc32)) != 1:
        raise Refusal("its header holds no checksum in the expected place")
    return header, {name: _entry(name, value) for name, value in outer.items()}, crc32


def _check_version(document: dict[str, Any]) -> None:
    version = document.get("format_version")
    if type(version) is int and version > FORMAT_VERSION:
        raise Refusal(
            f"it has format version {shown(version)}, and this ttt-docs reads version {FORMAT_VERSION}",
            "A newer ttt-docs wrote it: upgrade with pip install -U ttt-docs.",
        )
    if type(version) is not int or version != FORMAT_VERSION:
        raise Refusal(f"its format version {shown(version)} does not exist")


def _entry(name: str, value: Any) -> TensorEntry:
    def sizes(numbers: Any) -> bool:
        return (
            isinstance(numbers, list)
            and len(numbers) <= _MAX_RANK
            and all(type(n) is int and 0 <= n < 2**62 for n in numbers)
        )

    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise Refusal(f"its header describes the tensor {shown(name)} wrongly")
    shape, offsets = value["shape"], value["data_offsets"]
    if not sizes(shape) or not sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise Refusal(f"its header gives the tensor {shown(name)} an impossible shape or place")
    if not isinstance(value["dtype"], str) or value["dtype"] not in DTYPES:
        raise Refusal(f"the tensor {shown(name)} has the type {shown(value['dtype'])}, which no memory uses")
    return TensorEntry(value["dtype"], tuple(shape), offsets[0], offsets[1])


def _parse_json(raw: bytes | str, what: str) -> dict[str, Any]:
    """A JSON object. Names given twice and numbers such as NaN, which parsers read differently, are refused."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name is given twice")
        return found

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        text = raw.decode("utf-8") if isinstance(raw, bytes) else raw
        if text.count("[") + text.count("{") > MAX_BRACKETS:
            raise Refusal(f"{what} has more than {MAX_BRACKETS:,} lists and objects, which no memory needs")
        text.encode("utf-8")  # half a surrogate pair can be written as an escape, but is not text
        parsed = json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError):
        raise Refusal(f"{what} is not valid JSON") from None
    if not isinstance(parsed, dict):
        raise Refusal(f"{what} is not a JSON object")
    return parsed
