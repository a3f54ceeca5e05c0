"""PDF to text with pypdf: a span for each page and bookmark, paragraphs put together across lines and pages."""

from __future__ import annotations

import io
import logging
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pypdf

from ttt_docs.documents.document import LONE_SURROGATE, Document
from ttt_docs.documents.layout import Line, join_pages, remove_running_lines
from ttt_docs.errors import DocumentError
from ttt_docs.text.spans import Span, spans_from_starts

_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f\ufffe\uffff]")
#: The dots of a table of contents.
_LEADERS = re.compile(r"(?:\s{0,3}[.·]){5,}")
_LIGATURES = str.maketrans(
    {"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st", "\u00a0": " "}
)


def read_pdf(data: bytes, name: str, password: str | None = None) -> Document:
    """A Document of a PDF, with one span of kind "page" for each page that has text, labelled as the PDF labels it.

    Bookmarks become spans of kind "chapter" where there are several. They begin where their title stands on its page.
    Line-end hyphens, running headers and page numbers are removed. Pages that are damaged are left out; their
    1-based numbers then stand in the metadata under "unreadable_pages". Nothing is fetched from outside the file.

    Raises DocumentError when the PDF is broken, encrypted without the right `password`, or has no text layer.
    """
    with _quiet():
        reader = _open(data, name, password)
        lines, unreadable = _all_lines(reader, name)
        labels = _labels(reader, len(lines))
        metadata = _metadata(reader, len(lines))
        bookmarks = _bookmarks(reader)
    if unreadable:
        metadata["unreadable_pages"] = ", ".join(map(str, unreadable))
    if not any(any(character.isalnum() for character in line.text) for page in lines for line in page):
        if unreadable:
            raise _broken(name, f"none of its {len(lines)} pages can be read")
        raise DocumentError(
            f"{name}: the PDF has no text layer; its pages are probably scanned images. "
            "Add one with OCR first, e.g. `ocrmypdf in.pdf out.pdf`."
        )
    text, starts = join_pages(remove_running_lines(lines, labels))
    spans = spans_from_starts("page", [(offset, labels[index]) for offset, index in starts], len(text))
    spans += _chapters(text, bookmarks, {index: offset for offset, index in starts})
    return Document.from_text(text, name=name, spans=spans, metadata=metadata)


def _open(data: bytes, name: str, password: str | None) -> pypdf.PdfReader:
    try:
        reader = pypdf.PdfReader(io.BytesIO(data), strict=False)
        if not reader.is_encrypted or reader.decrypt(password or ""):
            len(reader.pages)
            return reader
    except Exception as error:  # damaged files make pypdf fail in many ways: KeyError, RecursionError, ...
        raise _broken(name, str(error) or type(error).__name__) from None
    problem = "the password is wrong" if password else "the PDF is encrypted"
    raise DocumentError(f"{name}: {problem}. Give the right one with --password (password=).")


def _all_lines(reader: pypdf.PdfReader, name: str) -> tuple[list[list[Line]], list[int]]:
    """The lines of every page, and the 1-based numbers of pages that cannot be read."""
    pages: list[list[Line]] = []
    unreadable = []
    for index in range(len(reader.pages)):
        try:
            pages.append(_page_lines(reader.pages[index]))
        except Exception:  # one bad page must not cost the book
            pages.append([])
            unreadable.append(index + 1)
    if not pages:
        raise _broken(name, "it has no pages")
    return pages, unreadable


def _page_lines(page: pypdf.PageObject) -> list[Line]:
    lines: list[Line] = []
    pieces: list[tuple[str, float, float, float]] = []

    def end_line() -> None:
        text = " ".join(_clean("".join(piece[0] for piece in pieces)).split())
        if text:
            visible = [piece for piece in pieces if piece[0].strip()]
            size = max(visible, key=lambda piece: len(piece[0]))[3]  # a drop capital is not the line's size
            lines.append(Line(text, visible[0][1], visible[0][2], size))
        pieces.clear()

    def visit(text: str, cm: list[float], tm: list[float], font: Any, size: float) -> None:
        x = tm[4] * cm[0] + tm[5] * cm[2] + cm[4]
        y = tm[4] * cm[1] + tm[5] * cm[3] + cm[5]
        scale = math.sqrt(abs(tm[0] * tm[3] - tm[1] * tm[2]) * abs(cm[0] * cm[3] - cm[1] * cm[2]))
        for number, piece in enumerate(text.split("\n")):
            if number:
                end_line()
            if piece:
                pieces.append((piece, x, y, abs(float(size or 0)) * scale))

    page.extract_text(visitor_text=visit)
    end_line()
    return lines


def _clean(text: str) -> str:
    text = _LEADERS.sub(" ...", _CONTROL.sub("", text.translate(_LIGATURES)))
    return LONE_SURROGATE.sub("\ufffd", text)


def _labels(reader: pypdf.PdfReader, count: int) -> list[str]:
    """The PDF's own page labels where it has them, else 1-based numbers."""
    numbers = [str(index + 1) for index in range(count)]
    try:
        root: Any = reader.trailer["/Root"]
        labels = list(reader.page_labels) if "/PageLabels" in root else numbers
    except Exception:  # a damaged label tree costs the labels only
        return numbers
    return [label or number for label, number in zip(labels, numbers, strict=True)] if len(labels) == count else numbers


def _bookmarks(reader: pypdf.PdfReader) -> list[tuple[str, int]]:
    """(title, page index) of the outermost bookmarks; of those below where there is a single one."""
    try:
        level: Any = reader.outline
        while len([one for one in level if not isinstance(one, list)]) == 1 and isinstance(level[-1], list):
            level = level[-1]
        entries = [one for one in level if not isinstance(one, list)]
        pages = [reader.get_destination_page_number(one) for one in entries]
        titles = [" ".join(_clean(str(one.title or "")).split()) for one in entries]
    except Exception:  # a damaged outline costs the bookmarks only
        return []
    return [(title, page) for title, page in zip(titles, pages, strict=True) if title and page is not None]


def _chapters(text: str, bookmarks: list[tuple[str, int]], pages: dict[int, int]) -> tuple[Span, ...]:
    """Spans of the bookmarks. `pages` has where each page begins in the text; a page without text has none."""
    starts: list[tuple[int, str]] = []
    for title, page in bookmarks:
        if page not in pages:
            continue
        words = r"\s+".join(map(re.escape, title.split()))
        end = min((start for start in pages.values() if start > pages[page]), default=len(text))
        found = re.compile(words, re.IGNORECASE).search(text, pages[page], end)
        at = found.start() if found else pages[page]
        if not starts or at > starts[-1][0]:
            starts.append((at, title))
    return spans_from_starts("chapter", starts, len(text)) if len(starts) > 1 else ()


def _metadata(reader: pypdf.PdfReader, count: int) -> dict[str, str]:
    metadata = {"format": "pdf", "pages": str(count)}
    try:
        information = reader.metadata
        found = {"title": information.title, "author": information.author} if information else {}
    except Exception:
        return metadata
    cleaned = {key: _clean(str(value or "")).strip() for key, value in found.items()}
    # What PDF writers put where nobody gave a title or an author.
    empty = ("", "untitled", "(anonymous)", "(unspecified)", "anonymous")
    return metadata | {key: value for key, value in cleaned.items() if value.lower() not in empty}


def _broken(name: str, reason: str) -> DocumentError:
    return DocumentError(f"{name}: the PDF is broken ({reason}). Get an intact copy, or repair it, e.g. with qpdf.")


@contextmanager
def _quiet() -> Iterator[None]:
    """pypdf logs each oddity of a file; what matters of it becomes an error or metadata here."""
    logger = logging.getLogger("pypdf")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)
