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
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    PlainSerializer,
    StrictBool,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from ttt_docs.model.config import ReadingConfig
from ttt_docs.text.spans import Span

FORMAT_VERSION = 1
#: A header holds about 100 bytes per tensor and per page: this is room for 100,000 pages.
MAX_HEADER_BYTES = 16 * 1024 * 1024
#: Lists and objects in a header, and commas. Pages that fill 16 MB have fewer. A parsed value takes up to 100 bytes.
MAX_BRACKETS, MAX_COMMAS = 250_000, 900_000
#: Blocks of a model. No model has as many.
_MAX_BLOCKS = 4096
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

DAMAGED = "The file is damaged or incomplete: copy it again from where it came, or read the document again."
FOREIGN = "Give a .ttt file written by `ttt-docs ingest` or Memory.save."
_UPGRADE = "upgrade: pip install -U ttt-docs."


class Refusal(Exception):
    """Why a file (or a memory that is to become one) cannot be used: `what` is wrong, and `advice`."""

    def __init__(self, what: str, advice: str = DAMAGED):
        super().__init__(what)
        self.what = what
        self.advice = advice


def shown(value: object, length: int = 60) -> str:
    """A value from a file, short and without control characters, for a message."""
    text = ascii(value)
    return text if len(text) <= length else text[: length - 3] + "..."


def _known(version: Any) -> Any:
    if type(version) is int and version > FORMAT_VERSION:
        raise Refusal(
            f"it has format version {shown(version)}, and this ttt-docs reads version {FORMAT_VERSION}",
            f"A newer ttt-docs wrote it: {_UPGRADE}",
        )
    if type(version) is not int or version != FORMAT_VERSION:
        raise Refusal(f"its format version {shown(version)} does not exist")
    return version


def _distinct(blocks: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(blocks)) != len(blocks):
        raise ValueError("a block is repeated")
    return blocks


Precision = Literal["float32", "bfloat16"]
Count = Annotated[int, Field(strict=True, ge=0, lt=2**62)]
Blocks = Annotated[tuple[Count, ...], Field(max_length=_MAX_BLOCKS), AfterValidator(_distinct)]


@dataclass(frozen=True)
class ReadDocument:
    """One document that went into a memory; `start`..`end` are its characters in the memory's text."""

    name: str
    start: Count
    end: Count
    sha256: str | None = None  # of the whole text in UTF-8; None while its end is unknown
    complete: StrictBool = True  # False: reading stopped before the document's end
    spans: tuple[InstanceOf[Span], ...] = ()
    first_token: Count = 0  # index of its first token in the memory's tokens
    metadata: dict[str, str] = field(default_factory=dict, hash=False)  # title, author, ... where known


class Packed(BaseModel):
    """What the packed tensors of a compact memory unpack to."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    tokens: int = Field(ge=0, lt=2**31)
    text_bytes: int | None = Field(None, ge=0, lt=2**40, description="of the text in UTF-8; None: it was left out")


class Header(BaseModel):
    """Everything about a memory but its tensors. `created` is in UTC; the rest is as in `Memory`.

    A field that a newer ttt-docs added is passed over: what a reader must understand raises the format version.
    Reading parameters are the exception, since they decide the numbers: an unknown one is refused.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    format_version: Annotated[int, BeforeValidator(_known)]
    package_version: str
    created: AwareDatetime
    model: str
    fingerprint: str
    reading: Annotated[ReadingConfig, PlainSerializer(ReadingConfig.identity)]
    precision: Precision = Field(description="how the fast weights are stored")
    fast_blocks: Blocks
    window_blocks: Blocks
    position: Count
    skipped: Count
    documents: tuple[ReadDocument, ...]
    extra: dict[str, str]
    packed: Packed | None = Field(None, description="a compact memory's; it has no window")

    @model_validator(mode="after")
    def _consistent(self) -> Header:
        reading, blocks = self.reading, len(self.fast_blocks)
        factors = reading.inner_lr_factors
        if not all(map(math.isfinite, (reading.inner_lr, reading.inner_clip, reading.guard or 0, *factors))):
            raise Refusal("one of its reading parameters is not a finite number")
        if factors and blocks and len(factors) not in (blocks, 3 * blocks):
            raise Refusal("its reading parameter inner_lr_factors is not one or three numbers for each block")
        if self.position % reading.chunk:
            raise Refusal(f"its position {self.position:,} is not a multiple of the chunk ({reading.chunk:,})")
        if self.packed is not None and self.window_blocks:
            raise Refusal("it is compact, and holds a window")
        return self


#: Fields that a `Memory` has too.
SHARED = ("model", "fingerprint", "reading", "position", "documents", "skipped", "extra")


class TensorEntry(NamedTuple):
    """Where a tensor lies: bytes `data_offsets[0]` (included) to `data_offsets[1]` (excluded) after the header."""

    dtype: Literal["F32", "BF16", "I32", "I8", "U8"]
    shape: Annotated[tuple[Count, ...], Field(max_length=_MAX_RANK)]
    data_offsets: tuple[Count, Count]

    @property
    def nbytes(self) -> int:
        return self.data_offsets[1] - self.data_offsets[0]


_SPAN_FIELDS = {field.name for field in fields(Span)}
_TABLE = TypeAdapter(dict[str, TensorEntry])


@contextmanager
def naming_the_field() -> Iterator[None]:
    """What pydantic finds wrong becomes a Refusal that names the first wrong field."""
    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise Refusal(
            f"its header has a wrong value at {shown(where)}: {shown(first['msg'], 200)}",
            f"{DAMAGED} If a newer ttt-docs wrote it, {_UPGRADE}",
        ) from None


def encode_header(header: Header, table: dict[str, TensorEntry]) -> bytes:
    """The header's JSON, padded to a multiple of 8 bytes, with `NO_CRC` where the checksum will go."""
    absent = {"packed"} if header.packed is None else None
    document = json.dumps(header.model_dump(mode="json", exclude=absent), allow_nan=False, ensure_ascii=False)
    document = document.encode("utf-8", "replace").decode()  # file names may hold bytes that are not Unicode
    outer: dict[str, Any] = {"__metadata__": {"ttt_docs": document, "crc32": NO_CRC}}
    outer |= {name: entry._asdict() for name, entry in table.items()}
    raw = json.dumps(outer, separators=(",", ":")).encode("ascii")
    return raw + b" " * (-len(raw) % 8)


def crc_field(crc32: str) -> bytes:
    """The checksum as it stands in the header's JSON. Quotes inside JSON strings are escaped: it occurs once."""
    return b'"crc32":"%s"' % crc32.encode()


def parse_header(raw: bytes) -> tuple[Header, dict[str, TensorEntry], str]:
    """Description, table and checksum, each of the right type; how they fit together is for `checks`.

    Raises:
        Refusal: not our JSON, or of another version.
    """
    if len(raw) > MAX_HEADER_BYTES:
        raise Refusal(f"its header would have {len(raw):,} bytes; at most {MAX_HEADER_BYTES:,} are read", "")
    outer = _parse_json(raw, "its header")
    metadata = outer.pop("__metadata__", None)
    if not isinstance(metadata, dict) or not isinstance(metadata.get("ttt_docs"), str):
        raise Refusal("this is a safetensors file, but it holds no ttt-docs memory", FOREIGN)
    with naming_the_field():
        header = Header.model_validate(_parse_json(metadata["ttt_docs"], "the description in its header"))
        table = _TABLE.validate_python(outer)
    crc32 = metadata.get("crc32")
    if len(metadata) != 2 or not isinstance(crc32, str) or raw.count(crc_field(crc32)) != 1:
        raise Refusal("its header holds no checksum in the expected place")
    return header, table, crc32


def _parse_json(raw: bytes | str, what: str) -> dict[str, Any]:
    """A JSON object. Names given twice and numbers such as NaN, which parsers read differently, are refused."""
    try:
        text = raw.decode("utf-8") if isinstance(raw, bytes) else raw
        if text.count("[") + text.count("{") > MAX_BRACKETS or text.count(",") > MAX_COMMAS:
            raise Refusal(f"{what} has more than {MAX_BRACKETS:,} lists and objects or {MAX_COMMAS:,} commas")
        parsed = json.loads(text, object_pairs_hook=_parsed_object, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise Refusal(f"{what} is not valid JSON") from None
    if not isinstance(parsed, dict):
        raise Refusal(f"{what} is not a JSON object")
    return parsed


def _parsed_object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | Span:
    """A span becomes one at once, since the dicts of 200,000 pages would take 100 MB."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is given twice")
    if found.keys() == _SPAN_FIELDS:
        kind, label, start, end = (found[name] for name in ("kind", "label", "start", "end"))
        if type(kind) is type(label) is str and type(start) is type(end) is int:
            f"{kind}{label}".encode()
            return Span(sys.intern(kind), label, start, end)
    # An escape can stand for half a surrogate pair, which is not text: this raises UnicodeEncodeError.
    "".join(part for pair in pairs for part in pair if isinstance(part, str)).encode()
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
