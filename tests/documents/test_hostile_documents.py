"""Documents of strangers: nothing is fetched from anywhere, and what unpacks without end is cut."""

from __future__ import annotations

import io
import socket
import zlib

import pytest

from ttt_docs.documents import load_document
from ttt_docs.errors import DocumentError

ELSEWHERE = "http://127.0.0.1:9/x"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*arguments, **keywords):
        raise AssertionError(f"a document reached for the network: {arguments}")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "create_connection", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)


def raw_pdf(stream: bytes, filters: str, catalog: str = "") -> bytes:
    objects = [
        f"<< /Type /Catalog /Pages 2 0 R {catalog} >>".encode(),
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 200 200] /Contents 4 0 R "
        b"/Resources << /Font << /F 5 0 R >> >> >>",
        f"<< /Length {len(stream)} /Filter {filters} >>\nstream\n".encode() + stream + b"\nendstream",
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Times-Roman >>",
    ]
    out, places = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n".encode() + content + b"\nendobj\n"
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    end = f"xref\n0 6\n0000000000 65535 f \n{table}trailer << /Size 6 /Root 1 0 R >>\nstartxref\n{len(out)}\n%%EOF\n"
    return out + end.encode()


def test_html_fetches_nothing():
    page = (
        f'<!DOCTYPE html SYSTEM "{ELSEWHERE}"><html><head><base href="{ELSEWHERE}"><link rel=stylesheet '
        f'href="{ELSEWHERE}"><script src="{ELSEWHERE}"></script><meta http-equiv=refresh content="0;{ELSEWHERE}">'
        f'<body><img src="{ELSEWHERE}"><iframe src="{ELSEWHERE}"></iframe><object data="file:///etc/passwd"></object>'
        f'<a href="{ELSEWHERE}">Words</a></html>'
    )
    assert load_document(io.BytesIO(page.encode()), name="a.html").text == "Words"


def test_epub_fetches_nothing(make_epub):
    head = f'<?xml version="1.0"?><!DOCTYPE html PUBLIC "-//X" "{ELSEWHERE}">'
    nav = f'<nav type="toc"><a href="{ELSEWHERE}">One</a><a href="file:///etc/passwd">Two</a></nav>'
    data = make_epub({"a.xhtml": f'{head}<p>Words</p><img src="{ELSEWHERE}"/>'}, nav=nav)
    assert load_document(io.BytesIO(data), name="a.epub").text == "Words"


@pytest.mark.parametrize("path", [ELSEWHERE, "file:///etc/passwd", "../../../../etc/passwd", "/etc/passwd"])
def test_epub_reads_nothing_outside_itself(make_epub, path):
    opf = (
        f'<package xmlns="http://www.idpf.org/2007/opf"><manifest><item id="a" href="{path}" '
        'media-type="application/xhtml+xml"/></manifest><spine><itemref idref="a"/></spine></package>'
    )
    with pytest.raises(DocumentError, match="lacks its file"):
        load_document(io.BytesIO(make_epub({}, opf=opf)), name="a.epub")


def test_pdf_fetches_nothing():
    words = zlib.compress(b"BT /F 12 Tf 20 100 Td (Some words) Tj ET")
    actions = (
        f"/OpenAction << /S /URI /URI ({ELSEWHERE}) >> /AA << /O << /S /GoToR /F ({ELSEWHERE}) >> >> "
        f"/Names << /JavaScript << /Names [(x) << /S /JavaScript /JS (app.launchURL\\('{ELSEWHERE}'\\)) >>] >> >>"
    )
    assert load_document(io.BytesIO(raw_pdf(words, "/FlateDecode", actions)), name="a.pdf").text == "Some words"


def test_a_pdf_whose_page_unpacks_without_end_is_cut():
    packer = zlib.compressobj(9)
    bomb = b"".join([*(packer.compress(b" " * 1_000_000) for _ in range(150)), packer.flush()])
    for stream, filters in ((bomb, "/FlateDecode"), (zlib.compress(bomb), "[/FlateDecode /FlateDecode]")):
        data = raw_pdf(stream, filters)
        assert len(data) < 200_000
        with pytest.raises(DocumentError, match="none of its 1 pages can be read"):
            load_document(io.BytesIO(data), name="a.pdf")
