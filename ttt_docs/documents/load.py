"""One way in: `load_document` finds the format by content and by suffix, and hands over to that format's file."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import PurePosixPath
from typing import IO

from ttt_docs.documents.document import Document
from ttt_docs.documents.origin import DEFAULT_MAX_BYTES, read_source, source_name
from ttt_docs.documents.plain import byte_order_mark
from ttt_docs.errors import DocumentError

#: File names that say what a document is.
SUFFIXES = {
    ".pdf": "pdf",
    ".epub": "epub",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".md": "markdown",
    ".markdown": "markdown",
    ".txt": "text",
    ".text": "text",
}
_EPUB_TYPE = b"application/epub+zip"


def load_document(
    source: str | os.PathLike[str] | IO[bytes] | IO[str] | Document,
    *,
    password: str | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
    name: str | None = None,
) -> Document:
    """Reads a PDF, EPUB, HTML, Markdown or plain text file into a Document.

    `source` is a path, "-" for standard input, an open file (binary or text), a URL of any scheme that fsspec knows,
    or a Document, which is returned as it is. `password` opens an encrypted PDF. `max_bytes` limits the bytes read,
    and the unpacked bytes of an EPUB. `name` replaces the file's name; its suffix then tells the format.

    Raises DocumentError when the source is missing, a folder, not permitted, too large, empty, encrypted, broken, a
    scan without text, or not text at all. The message says which, and what to do.
    """
    if isinstance(source, Document):
        return source
    name = name or source_name(source)
    content = read_source(source, name, max_bytes)
    if not content or content.isspace():
        what = "holds only whitespace" if content else "is empty"
        raise DocumentError(f"{name}: the file {what}. Give a file that has text in it.")
    # A URL's query is not in `name`; a name given by the caller may lack the suffix that the path has.
    suffixes = [PurePosixPath(candidate).suffix.lower() for candidate in (name, source_name(source))]
    by_suffix = next((SUFFIXES[suffix] for suffix in suffixes if suffix in SUFFIXES), None)
    form = _format(content, by_suffix, name)
    # Parsers are imported when needed: pypdf alone takes longer to import than a text file to read.
    if isinstance(content, bytes) and form == "pdf":
        from ttt_docs.documents.pdf import read_pdf

        return read_pdf(content, name, password)
    if isinstance(content, bytes) and form == "epub":
        from ttt_docs.documents.epub import read_epub

        return read_epub(content, name, max_bytes)
    from ttt_docs.documents import html, markdown, plain

    if isinstance(content, bytes):
        content = html.decode_html(content, name) if form == "html" else plain.decode(content, name)
    content = content.removeprefix("\ufeff")
    if form == "html":
        return html.html_document(content, name)
    parse = markdown.markdown_document if form == "markdown" else plain.text_document
    return parse(content.replace("\r\n", "\n").replace("\r", "\n"), name)


def _format(content: bytes | str, by_suffix: str | None, name: str) -> str:
    """Content that is unmistakable wins over the suffix; the suffix wins over a guess."""
    if isinstance(content, str):
        if by_suffix in ("pdf", "epub") or content.startswith("%PDF-"):
            raise DocumentError(f"{name}: a PDF or EPUB must be opened in binary mode, e.g. open(path, 'rb').")
        if "\0" in content:
            raise DocumentError(f"{name}: this is binary data, not text. Open the file in binary mode, e.g. 'rb'.")
        head = content[:1024]
    else:
        if content.startswith(b"%PDF-") or (by_suffix == "pdf" and b"%PDF-" in content[:1024]):
            return "pdf"
        if content.startswith(b"PK\x03\x04"):
            if by_suffix == "epub" or _is_epub(content):
                return "epub"
            raise DocumentError(
                f"{name}: this is a zip file (or an Office document, which is one inside), not a document that can be "
                "read. Unpack it, or save the document as PDF, EPUB, HTML or text."
            )
        if by_suffix in ("pdf", "epub"):
            what = "a PDF: it lacks the %PDF- mark" if by_suffix == "pdf" else "an EPUB: it is no readable zip file"
            raise DocumentError(f"{name}: not {what}. The file is broken or has the wrong suffix; get an intact copy.")
        head = content[:4096].decode(byte_order_mark(content) or "latin-1", "ignore")[:1024]
    head = head.lstrip("\ufeff \t\r\n").lower()
    html = "<html" in head if head.startswith("<?xml") else head.startswith(("<!doctype html", "<html"))
    return by_suffix or ("html" if html else "text")


def _is_epub(content: bytes) -> bool:
    if _EPUB_TYPE in content[:100]:
        return True
    try:  # NotImplementedError: zipfile's, for a version of the format it does not know
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return "META-INF/container.xml" in archive.namelist()
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, NotImplementedError):
        return False
