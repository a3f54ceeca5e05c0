"""The shipped book: the PDF gives the words of the text, and so does a PDF made afresh."""

import difflib
import importlib.util
import re
from pathlib import Path

import pytest

from ttt_docs.documents import load_document

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def text():
    return load_document(EXAMPLES / "portrait.txt")


def words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text)


def ratio(a: list[str], b: list[str]) -> float:
    """Share of the words that both have in the same order."""
    return 1.0 if a == b else difflib.SequenceMatcher(None, a, b).ratio()


def test_the_pdf_gives_the_text(text):
    book = load_document(EXAMPLES / "portrait.pdf")
    assert ratio(words(text.text), words(book.text)) > 0.99
    assert len(book.spans) == 198
    assert book.spans[0].start == 0 and book.spans[-1].end == len(book)
    assert book.metadata["title"] == "A Portrait of the Artist as a Young Man"
    assert book.text.startswith("A Portrait of the Artist as a Young Man\n\nJames Joyce\n\n“Et ignotas")
    # Paragraphs as well: almost as many as in the text, none torn apart by a page.
    paragraphs = [len(re.findall(r"\n\n+", document.text)) for document in (text, book)]
    assert abs(paragraphs[0] - paragraphs[1]) < 20
    assert not re.search(r"[a-z,]\n\n[a-z]", book.text)


def test_chapters_of_the_text(text):
    assert [span.label for span in text.spans] == [
        "front matter",
        *(f"Chapter {n}" for n in ("I", "II", "III", "IV", "V")),
    ]
    assert 450_000 < len(text) < 700_000


def test_make_book(tmp_path):
    spec = importlib.util.spec_from_file_location("make_book", EXAMPLES / "make_book.py")
    make_book = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_book)
    paragraph = "It was _the_ best of times & the worst of times, " * 300
    source = "Two Cities\nC. Dickens\n\n" + "".join(
        f"Chapter {n}\n\n{paragraph}.\n\n  A verse\n  of two\n\n{paragraph}.\n\n" for n in (1, 2)
    )
    pages = make_book.make_book(source, tmp_path / "book.pdf")
    document = load_document(tmp_path / "book.pdf")
    assert document.metadata["pages"] == str(pages)
    assert words(document.text) == words(source)
