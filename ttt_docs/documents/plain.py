"""Plain text: bytes in any usual encoding to a str with "\\n" newlines."""

from __future__ import annotations

import codecs
import io
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import IO, Any

from charset_normalizer import from_bytes

from ttt_docs.documents.document import LONE_SURROGATE, Document
from ttt_docs.documents.origin import check_size, open_source, read_pieces, source_name
from ttt_docs.errors import DocumentError
from ttt_docs.text.spans import Span, spans_from_starts

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


def text_document(text: str, name: str) -> Document:
    """A Document of a str with "\\n" newlines; chapter headings become spans. Raises DocumentError when empty."""
    return Document.from_text(text, name=name, spans=chapter_spans(text))


def byte_order_mark(data: bytes) -> str | None:
    """The encoding whose byte order mark `data` begins with."""
    return next((encoding for mark, encoding in _MARKS if data.startswith(mark)), None)


def decode(data: bytes, name: str) -> str:
    """`data` as a str: byte order mark first, then UTF-8, then the likeliest 8-bit or multi-byte encoding.

    Raises DocumentError for binary data.
    """
    if marked := byte_order_mark(data):
        text = decode_as(data, marked, name)
    else:
        refuse_binary(data, name)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            text = _damaged_utf8(data) or decode_as(data, detect_encoding(data, name), name)
    if len(_CONTROL.findall(text)) > max(2, len(text) // 200):
        raise _not_text(name)
    return text


def decode_as(data: bytes, encoding: str, name: str) -> str:
    """`data` decoded as `encoding`. Raises DocumentError when it does not fit, LookupError when it is unknown."""
    try:
        return data.decode(encoding)
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
    is_file = isinstance(source, (str, os.PathLike)) or hasattr(source, "read")
    if not is_file and (isinstance(source, (bytes, bytearray)) or not isinstance(source, Iterable)):
        raise DocumentError(f"{name}: cannot read text from {type(source).__name__}. Give a path, a file or pieces.")
    opened: AbstractContextManager[Any] = open_source(source, name) if is_file else nullcontext(source)
    with opened as opened_source:
        pieces = read_pieces(opened_source, name, _PIECE) if is_file else iter(opened_source)
        blank = True
        for piece in _decoded(_counted(pieces, name, max_bytes), encoding, name):
            if "\0" in piece:
                raise DocumentError(f"{name}: this is binary data, not text. Give a stream of plain text.")
            if piece:
                blank = blank and piece.isspace()
                yield LONE_SURROGATE.sub("\ufffd", piece)
    if blank:
        raise DocumentError(f"{name}: the stream is empty or holds only whitespace. Give a source that has text in it.")


def _counted(pieces: Iterator[Any], name: str, max_bytes: int | None) -> Iterator[Any]:
    total, text = 0, None
    for piece in pieces:
        if text is not None and isinstance(piece, str) != text:
            raise DocumentError(f"{name}: the pieces mix str and bytes. Give all of them as str, or all as bytes.")
        text = isinstance(piece, str)
        total += len(piece)
        if max_bytes is not None:
            check_size(total, name, max_bytes)
        if piece:
            yield piece


def _decoded(pieces: Iterator[Any], encoding: str | None, name: str) -> Iterator[str]:
    first = next(pieces, "")
    wide, decoder = True, io.IncrementalNewlineDecoder(None, translate=True)
    if isinstance(first, str):
        head: Any = first.removeprefix("\ufeff")
    else:
        head = bytes(first)
        while len(head) < _HEAD_BYTES and (piece := next(pieces, b"")):
            head += piece
        encoding = encoding or _encoding(head[:_HEAD_BYTES], name)
        wide = "16" in encoding or "32" in encoding  # NUL bytes are usual there
        try:
            io.TextIOWrapper(io.BytesIO(), encoding)  # refuses what turns bytes into bytes, such as zlib
            decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)("strict"), translate=True)
        except (LookupError, ValueError):  # ValueError: a name with a NUL
            raise DocumentError(
                f"{name}: unknown encoding {encoding!r}. Name one that Python knows, e.g. utf-8."
            ) from None
    try:
        yield decoder.decode(head)
        for piece in pieces:
            if not wide and b"\0" in piece:
                refuse_binary(piece, name)
            yield decoder.decode(piece)
        yield decoder.decode(head[:0], final=True)
    except UnicodeError as error:
        reason = getattr(error, "reason", error)
        raise DocumentError(
            f"{name}: the text stops being valid {encoding} ({reason}). Name its encoding (encoding=...)."
        ) from None


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


_NUMBER_WORDS = (
    "one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|"
    "eighteen|nineteen|twenty(?:-\\w+)?|thirty(?:-\\w+)?|forty(?:-\\w+)?|"
    "first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth"
)
_HEADING = re.compile(
    r"^[ \t]*((?:chapter|book|part|volume|canto|act|scene|letter|stave|section|kapitel|chapitre|cap[ií]tulo|teil)"
    rf"[ \t]+(?:the[ \t]+)?(?:[ivxlcdm]+|\d{{1,3}}|{_NUMBER_WORDS})\b[^\n]{{0,80}})$",
    re.IGNORECASE | re.MULTILINE,
)
_ALONE = re.compile(
    r"^[ \t]*((?:prologue|epilogue|preface|foreword|afterword|introduction|conclusion|appendix)\b\.?)[ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)
_TITLE = re.compile(r"[.:]?[ \t]*$|[ \t]*[.:\-–—][ \t]*\S|[ \t]+[\"“‘'(]?[A-Z]")
_SENTENCE_END = re.compile(r"[,;]$")
#: A heading with less than this many characters after it, repeated further on, is a line of the table of contents.
_CONTENTS_ENTRY = 400
#: More headings than this without text between them are a table of contents.
_STACKED = 3


def chapter_spans(text: str) -> tuple[Span, ...]:
    """Spans of kind "chapter" that cover `text` (newlines as "\\n"); empty when there are fewer than two headings."""
    headings = sorted(
        (match.start(1), match.end(1), " ".join(match.group(1).split()))
        for pattern in (_HEADING, _ALONE)
        for match in pattern.finditer(text)
        if _stands_alone(text, match.start(), match.end()) and not _SENTENCE_END.search(match.group(1).strip())
    )
    last = {label.casefold(): index for index, (_, _, label) in enumerate(headings)}
    starts: list[tuple[int, str]] = []
    pending: list[tuple[int, str]] = []  # headings with nothing below: "BOOK I" over "CHAPTER I"
    for index, (start, end, label) in enumerate(headings):
        following = headings[index + 1][0] if index + 1 < len(headings) else len(text)
        body = text[end:following].strip()
        if last[label.casefold()] > index and len(body) < _CONTENTS_ENTRY:
            continue
        pending.append((start, label))
        if body or index + 1 == len(headings):
            if len(pending) > _STACKED:
                del pending[:-1]
            starts.append((pending[0][0], ", ".join(label for _, label in pending)))
            pending = []
    return spans_from_starts("chapter", starts, len(text)) if len(starts) > 1 else ()


def _stands_alone(text: str, start: int, end: int) -> bool:
    """A heading is the first line of its paragraph: "part one of the plan" inside a paragraph is none."""
    before = text[:start] if start < 200 else text[start - 200 : start]
    if before.strip(" \t") and not before.rstrip(" \t").endswith("\n\n"):
        line = before.rstrip("\n").rsplit("\n", 1)[-1].strip()
        if not _HEADING.match(line):  # "BOOK I\nCHAPTER I", or a table of contents
            return False
    line = text[start:end].strip()
    match = _HEADING.match(line)
    if match is None:
        return True
    words = re.match(rf"\S+\s+(?:the\s+)?(?:[ivxlcdm]+|\d{{1,3}}|{_NUMBER_WORDS})\b", line, re.IGNORECASE)
    return words is not None and _TITLE.match(line, words.end()) is not None
