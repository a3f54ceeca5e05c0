import io
import os
import sys
from pathlib import Path

import fsspec
import pytest

from ttt_docs.documents import Document, load_document
from ttt_docs.errors import DocumentError

TEXT = "It was the best of times.\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "times.txt"
    path.write_text(TEXT)
    return path


def test_paths_files_and_documents(path):
    by_path = load_document(path)
    assert (by_path.text, by_path.name) == (TEXT, "times.txt")
    assert load_document(str(path)) == by_path
    with open(path, "rb") as binary, open(path) as text:
        assert load_document(binary) == by_path
        assert load_document(text) == by_path
        assert not binary.closed and not text.closed
    assert load_document(io.StringIO(TEXT)).name == "stream"
    assert load_document(by_path) is by_path
    assert load_document(path, name="Dickens").name == "Dickens"


def test_a_local_path_does_not_go_through_fsspec(path, monkeypatch):
    monkeypatch.setattr(fsspec, "open", lambda *_: pytest.fail("fsspec was used"))
    load_document(path)


def test_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("Grüße".encode())))
    document = load_document("-")
    assert (document.text, document.name) == ("Grüße", "standard input")


def test_urls(path):
    with fsspec.open("memory://shelf/page.md", "wb") as file:
        file.write(b"# One\n\nWords.")
    document = load_document("memory://shelf/page.md")
    assert (document.name, document.metadata["format"]) == ("page.md", "markdown")
    assert load_document(path.as_uri()).text == TEXT


def test_the_name_keeps_the_format_of_the_path(tmp_path):
    path = tmp_path / "a.md"
    path.write_text("# One\n\nWords.")
    assert load_document(path, name="notes").metadata["format"] == "markdown"


def test_content_wins_over_a_wrong_suffix(tmp_path, make_pdf, make_epub):
    (tmp_path / "a.txt").write_bytes(make_pdf([["Words."]]))
    assert load_document(tmp_path / "a.txt").metadata["format"] == "pdf"
    (tmp_path / "b.pdf").write_bytes(make_epub({"a.xhtml": "<p>Words.</p>"}))
    assert load_document(tmp_path / "b.pdf").metadata["format"] == "epub"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://nothing/here.txt", "nothing at this address"),
        ("nosuchscheme://x/y.txt", "nosuchscheme://"),
        ("file:///", "folder|address"),
    ],
)
def test_urls_that_fail(url, message):
    with pytest.raises(DocumentError, match=message):
        load_document(url)


def test_a_missing_backend_says_what_to_install(monkeypatch):
    def missing(*_, **__):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "open", missing)
    with pytest.raises(DocumentError, match=r"s3://.*Install s3fs"):
        load_document("s3://bucket/book.pdf")


def test_a_failing_backend_is_a_document_error(monkeypatch):
    class NoCredentials(Exception):
        pass

    def fail(*_, **__):
        raise NoCredentials("who are you?")

    monkeypatch.setattr(fsspec, "open", fail)
    with pytest.raises(DocumentError, match=r"NoCredentials: who are you\?"):
        load_document("s3://bucket/book.pdf")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "is empty"),
        ("a.pdf", b"", "is empty"),
        ("a.txt", b" \r\n\t ", "whitespace"),
        ("a.txt", " \n".encode("utf-16"), "whitespace"),
        ("a.pdf", b"words", "not a PDF"),
        ("a.epub", b"words", "not an EPUB"),
        ("a.docx", b"PK\x03\x04 and so on", "zip"),
    ],
)
def test_unreadable_content(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DocumentError, match=message):
        load_document(path)


def test_missing_folder_and_strange_paths(tmp_path):
    with pytest.raises(DocumentError, match="no such file"):
        load_document(tmp_path / "gone.txt")
    with pytest.raises(DocumentError, match="folder"):
        load_document(tmp_path)
    with pytest.raises(DocumentError, match="cannot open"):
        load_document("a\0b")
    with pytest.raises(DocumentError, match="cannot read a document from int"):
        load_document(3)


def test_no_permission(path, monkeypatch):
    if os.geteuid() == 0:  # root may read everything, so the system's refusal is acted
        monkeypatch.setattr("builtins.open", lambda *_, **__: (_ for _ in ()).throw(PermissionError()))
    else:
        path.chmod(0)
    with pytest.raises(DocumentError, match="no permission"):
        load_document(path)


class Endless(io.RawIOBase):
    """A stream without an end, which counts what is taken from it."""

    taken = 0

    def read(self, size=-1):
        assert size > 0, "must be read in pieces"
        self.taken += size
        return b"word " * (size // 5)


def test_size_limit(path):
    assert load_document(path, max_bytes=len(TEXT)).text == TEXT
    with pytest.raises(DocumentError, match=r"limit of 25 bytes.*max_bytes"):
        load_document(path, max_bytes=len(TEXT) - 1)
    with pytest.raises(DocumentError, match="limit"):
        load_document(io.StringIO("ü" * 20), max_bytes=30)
    endless = Endless()
    with pytest.raises(DocumentError, match="limit"):
        load_document(endless, max_bytes=3_000_000)
    assert endless.taken < 6_000_000


def test_a_text_file_of_the_wrong_encoding(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("café".encode("cp1252"))
    with open(path, encoding="utf-8") as file, pytest.raises(DocumentError, match="binary mode"):
        load_document(file)


def test_a_failing_stream():
    class Torn(io.RawIOBase):
        def read(self, size=-1):
            raise ConnectionResetError("gone")

    with pytest.raises(DocumentError, match="reading failed"):
        load_document(Torn())


def test_a_pdf_in_text_mode():
    with pytest.raises(DocumentError, match="binary mode"):
        load_document(io.StringIO("%PDF-1.7 words"))


def test_documents_are_values(path):
    assert isinstance(load_document(path), Document)
    assert load_document(path).sha256 == load_document(path).sha256


def test_binary_data_in_text_mode():
    with pytest.raises(DocumentError, match="Open the file in binary mode"):
        load_document(io.StringIO("words\0"))
