"""Plain text of unknown length, piece by piece in constant memory."""

from __future__ import annotations

import codecs
import io
import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from typing import IO, Any

from ttt_docs.documents.document import LONE_SURROGATE
from ttt_docs.documents.source import check_size, open_source, read_pieces, source_name
from ttt_docs.documents.text import byte_order_mark, detect_encoding, refuse_binary
from ttt_docs.errors import DocumentError

#: Bytes looked at to tell the encoding.
_HEAD_BYTES = 8192
_PIECE = 1 << 16


def iter_text(
    source: str | os.PathLike[str] | IO[bytes] | IO[str] | Iterable[str] | Iterable[bytes],
    *,
    encoding: str | None = None,
    max_bytes: int | None = None,
    name: str | None = None,
) -> Iterator[str]:
    """Yields the text of a plain-text source in pieces, never holding more than one piece.

    `source` is a path, "-" for standard input, a URL, an open file, or an iterable of str or of bytes (a str names a
    file; it is not the text). Newlines become "\\n"; how the source was cut makes no difference to the text. Without
    `encoding`, bytes are read by their byte order mark, else as UTF-8, else in the encoding that the first 8 KiB
    suggest. `max_bytes` limits the bytes (characters, for str) that are read; None is no limit.

    Raises DocumentError, while iterating, when the source cannot be opened, is empty or only whitespace, binary, a PDF
    or zip, too large, or not in its encoding.
    """
    name = name or source_name(source)
    opened: AbstractContextManager[Iterator[Any]]
    if isinstance(source, (str, os.PathLike)) or hasattr(source, "read"):
        opened = closing(_file_pieces(source, name))
    elif isinstance(source, Iterable) and not isinstance(source, (bytes, bytearray)):
        opened = nullcontext(iter(source))
    else:
        raise DocumentError(f"{name}: cannot read text from {type(source).__name__}. Give a path, a file or pieces.")
    with opened as pieces:
        yield from _not_blank(_decoded(_counted(pieces, name, max_bytes), encoding, name), name)


def _file_pieces(source: Any, name: str) -> Generator[Any, None, None]:
    with open_source(source, name) as file:
        yield from read_pieces(file, name, _PIECE)


def _counted(pieces: Iterator[Any], name: str, max_bytes: int | None) -> Iterator[Any]:
    total = 0
    for piece in pieces:
        total += len(piece)
        if max_bytes is not None:
            check_size(total, name, max_bytes)
        if piece:
            yield piece


def _decoded(pieces: Iterator[Any], encoding: str | None, name: str) -> Iterator[str]:
    first = next(pieces, "")
    if isinstance(first, str):
        yield from _decoded_str(first, pieces, name)
        return
    head = bytes(first)
    while len(head) < _HEAD_BYTES and (piece := next(pieces, b"")):
        head += piece
    encoding = encoding or _encoding(head[:_HEAD_BYTES], name)
    try:
        decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)("strict"), translate=True)
    except LookupError:
        raise DocumentError(f"{name}: unknown encoding {encoding!r}. Name one that Python knows, e.g. utf-8.") from None
    wide = "16" in encoding or "32" in encoding  # NUL bytes are usual there
    try:
        yield _refuse_nul(decoder.decode(head), name)
        for piece in pieces:
            if not wide and b"\0" in piece:
                refuse_binary(piece, name)
            yield _refuse_nul(decoder.decode(piece), name)
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise DocumentError(
            f"{name}: the text stops being valid {encoding} ({error.reason}). Name its encoding (encoding=...)."
        ) from None


def _decoded_str(first: str, pieces: Iterator[Any], name: str) -> Iterator[str]:
    decoder = io.IncrementalNewlineDecoder(None, translate=True)
    yield _refuse_nul(decoder.decode(first.removeprefix("\ufeff")), name)
    for piece in pieces:
        if not isinstance(piece, str):
            raise DocumentError(f"{name}: the pieces mix str and {type(piece).__name__}. Give all of them as str.")
        yield _refuse_nul(decoder.decode(piece), name)
    yield decoder.decode("", final=True)


def _encoding(head: bytes, name: str) -> str:
    if marked := byte_order_mark(head):
        return marked
    if head.startswith((b"%PDF-", b"PK\x03\x04")):
        raise DocumentError(f"{name}: a PDF or zip cannot be read as a stream of text. Load it as a document.")
    refuse_binary(head, name)
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # not final: a character may be cut at the end
        return "utf-8"
    except UnicodeDecodeError:
        return detect_encoding(head, name)


def _refuse_nul(text: str, name: str) -> str:
    if "\0" in text:
        raise DocumentError(f"{name}: this is binary data, not text. Give a stream of plain text.")
    return LONE_SURROGATE.sub("\ufffd", text)


def _not_blank(pieces: Iterator[str], name: str) -> Iterator[str]:
    blank = True
    for piece in pieces:
        if piece:
            blank = blank and piece.isspace()
            yield piece
    if blank:
        raise DocumentError(f"{name}: the stream is empty or holds only whitespace. Give a source that has text in it.")
