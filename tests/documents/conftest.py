"""Makers of small PDFs and EPUBs."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Sequence

import pytest
from reportlab.pdfgen.canvas import Canvas

CONTAINER = (
    '<?xml version="1.0"?><container xmlns="urn:oasis:names:tc:opendocument:xmlns:container" version="1.0"><rootfiles>'
    '<rootfile full-path="OPS/book.opf" media-type="application/oebps-package+xml"/></rootfiles></container>'
)


@pytest.fixture
def make_pdf() -> Callable[..., bytes]:
    """make(pages, header=, numbers=, encrypt=, prepare=): a page is a list of lines, each a str or (str, indent)."""

    def make(
        pages: Sequence[Sequence[str | tuple[str, float]]],
        *,
        header: str | None = None,
        numbers: bool = False,
        encrypt: str | None = None,
        prepare: Callable[[Canvas], None] | None = None,
    ) -> bytes:
        buffer = io.BytesIO()
        canvas = Canvas(buffer, pagesize=(432, 648), encrypt=encrypt, invariant=1)
        if prepare:
            prepare(canvas)
        for number, lines in enumerate(pages, 1):
            canvas.setFont("Times-Roman", 10)
            if header:
                canvas.drawCentredString(216, 610, header)
            if numbers:
                canvas.drawCentredString(216, 30, str(number))
            y = 570.0
            for line in lines:
                text, indent = line if isinstance(line, tuple) else (line, 0.0)
                if text:
                    canvas.drawString(54 + indent, y, text)
                y -= 13
            canvas.showPage()
        canvas.save()
        return buffer.getvalue()

    return make


@pytest.fixture
def make_epub() -> Callable[..., bytes]:
    """make({file: body}, ncx=, nav=, extra=): an EPUB whose spine has the files in order."""

    def make(
        files: dict[str, str],
        *,
        nav: str | None = None,
        ncx: str | None = None,
        extra: dict[str, bytes] | None = None,
        opf: str | None = None,
    ) -> bytes:
        items = "".join(
            f'<item id="i{n}" href="{name}" media-type="application/xhtml+xml"/>' for n, name in enumerate(files)
        )
        items += '<item id="nav" href="nav.xhtml" properties="nav" media-type="application/xhtml+xml"/>' if nav else ""
        items += '<item id="ncx" href="toc.ncx" media-type="application/x-dtbncx+xml"/>' if ncx else ""
        spine = "".join(f'<itemref idref="i{n}"/>' for n in range(len(files)))
        opf = opf or (
            '<?xml version="1.0"?><package xmlns="http://www.idpf.org/2007/opf" version="3.0"><metadata '
            'xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>The Book</dc:title><dc:creator>A. Writer'
            f'</dc:creator></metadata><manifest>{items}</manifest><spine toc="ncx">{spine}</spine></package>'
        )
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("mimetype", "application/epub+zip", zipfile.ZIP_STORED)
            archive.writestr("META-INF/container.xml", CONTAINER)
            archive.writestr("OPS/book.opf", opf)
            for name, body in files.items():
                archive.writestr(f"OPS/{name}", f"<html><head><title>x</title></head><body>{body}</body></html>")
            if nav:
                archive.writestr("OPS/nav.xhtml", nav)
            if ncx:
                archive.writestr("OPS/toc.ncx", ncx)
            for name, data in (extra or {}).items():
                archive.writestr(name, data)
        return buffer.getvalue()

    return make
