"""Plain text: bytes in any usual encoding to a str with "\\n" newlines."""

from __future__ import annotations

import codecs
import re

from charset_normalizer import from_bytes

from ttt_docs.documents.chapters import chapter_spans
from ttt_docs.documents.document import Document
from ttt_docs.errors import DocumentError

# UTF-32 little-endian begins with the mark of UTF-16 little-endian, so it is asked first.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CONTROL = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_SAMPLE_BYTES = 1 << 18


def read_text(data: bytes, name: str) -> Document:
    """A Document of plain text, with chapter spans where the text has chapter headings.

    Raises DocumentError when the bytes are empty or not text.
    """
    return text_document(decode(data, name), name)


def text_document(text: str, name: str) -> Document:
    """A Document of a str: newlines become "\\n", chapter headings become spans. Raises DocumentError when empty."""
    text = normalize_newlines(text)
    return Document.from_text(text, name=name, spans=chapter_spans(text))


def normalize_newlines(text: str) -> str:
    """`text` with "\\r\\n" and "\\r" as "\\n"."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def byte_order_mark(data: bytes) -> str | None:
    """The encoding whose byte order mark `data` begins with."""
    return next((encoding for mark, encoding in _MARKS if data.startswith(mark)), None)


def decode(data: bytes, name: str) -> str:
    """`data` as a str: byte order mark first, then UTF-8, then the likeliest 8-bit or multi-byte encoding.

    Raises DocumentError for binary data.
    """
    if marked := byte_order_mark(data):
        return decode_as(data, marked, name)
    refuse_binary(data, name)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        pass
    text = _damaged_utf8(data)
    if text is None:
        text = decode_as(data, detect_encoding(data, name), name)
    if len(_CONTROL.findall(text)) > max(2, len(text) // 200):
        raise _not_text(name)
    return text


def decode_as(data: bytes, encoding: str, name: str) -> str:
    """`data` decoded as `encoding`. Raises DocumentError when the encoding is unknown or does not fit."""
    try:
        return data.decode(encoding)
    except LookupError:
        raise DocumentError(f"{name}: unknown encoding {encoding!r}. Name one that Python knows, e.g. utf-8.") from None
    except UnicodeDecodeError as error:
        raise DocumentError(
            f"{name}: the text is not valid {encoding} at byte {error.start}. "
            "The file may be cut off; save it again as UTF-8."
        ) from None


def detect_encoding(data: bytes, name: str) -> str:
    """The likeliest encoding of `data`, which has no byte order mark and is not UTF-8.

    Raises DocumentError when nothing fits.
    """
    sample = data[: data.rfind(b"\n", 0, _SAMPLE_BYTES) + 1 or _SAMPLE_BYTES]
    if sample.isascii():  # the telling bytes come later
        sample = data
    matches = from_bytes(sample)
    best = matches.best()
    if best is None:
        raise _not_text(name)
    # Western European text often fits its neighbours' code pages as well; Windows-1252 is by far the likeliest.
    for match in matches:
        if "cp1252" in match.could_be_from_charset and match.chaos <= best.chaos and match.coherence >= best.coherence:
            return "cp1252"
    return best.encoding


def refuse_binary(data: bytes, name: str) -> None:
    """Raises DocumentError when `data`, which has no byte order mark, holds NUL or many control bytes."""
    if b"\0" in data or len(_CONTROL.findall(data[:65536].decode("latin-1"))) > max(2, len(data[:65536]) // 200):
        raise _not_text(name)


def _damaged_utf8(data: bytes) -> str | None:
    """UTF-8 with a few bad bytes (a cut at the end, a pasted line), each as U+FFFD; None when it is no such thing."""
    text = data.decode("utf-8", "replace")
    bad = text.count("\ufffd")
    good = sum(1 for character in text if character > "\x7f") - bad
    return text if good >= 10 * bad else None


def _not_text(name: str) -> DocumentError:
    return DocumentError(
        f"{name}: this is binary data, not text. "
        "Readable formats are PDF, EPUB, HTML, Markdown and plain text in any usual encoding."
    )
