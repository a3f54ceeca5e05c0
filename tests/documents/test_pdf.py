import io
import logging

import pypdf
import pytest
from reportlab.lib.utils import ImageReader

from ttt_docs.documents import load_document
from ttt_docs.documents.layout import Line, join_pages
from ttt_docs.errors import DocumentError

# Full lines are about 62 characters here, as in a small book.
PAGES = [
    [
        ("The ship had left the harbour before the sun was up, and exam-", 14),
        "ples of her cargo lay on the quay. A well-known man, whose well-",
        "known hat was wet, looked after her. He gave only one example.",
        ("“Gone,” he said.", 14),
        ("Nobody in the whole town could tell what the captain had been", 14),
        "thinking when he gave the order, for he was a man who did not",
    ],
    [
        "speak. The old clerk of the harbour wrote it all down in his log-",
        "book, as a logbook should be kept, with the Anglo-",
        "Saxon care that he gave to every one of the things he did there.",
        "",
        "Then it was noon, and for a long while there was nothing to re-",
    ],
    [
        "port. The end.",
        ("12 ships came in later.", 14),
    ],
]
EXPECTED = [
    "The ship had left the harbour before the sun was up, and examples of her cargo lay on the quay. A well-known man, "
    "whose well-known hat was wet, looked after her. He gave only one example.\n\n“Gone,” he said.\n\nNobody in the "
    "whole town could tell what the captain had been thinking when he gave the order, for he was a man who did not ",
    "speak. The old clerk of the harbour wrote it all down in his logbook, as a logbook should be kept, with the "
    "Anglo-Saxon care that he gave to every one of the things he did there.\n\nThen it was noon, and for a long while "
    "there was nothing to re",
    "port. The end.\n\n12 ships came in later.",
]


def load(data: bytes, **options):
    return load_document(io.BytesIO(data), name="ship.pdf", **options)


def test_running_text(make_pdf):
    document = load(make_pdf(PAGES, header="THE SHIP", numbers=True))
    assert document.text == "".join(EXPECTED)
    assert [(s.kind, s.label, document.text[s.start : s.end]) for s in document.spans] == [
        ("page", str(number), text) for number, text in enumerate(EXPECTED, 1)
    ]
    assert document.span_at(document.text.index("12 ships")).label == "3"
    assert document.metadata == {"format": "pdf", "pages": "3"}


def test_page_labels_and_metadata(make_pdf):
    def prepare(canvas):
        canvas.setTitle("The Ship")
        canvas.setAuthor("A. Sailor")
        canvas.addPageLabel(0, "ROMAN_LOWER", 1)
        canvas.addPageLabel(2, "ARABIC", 1)

    document = load(make_pdf([["One."], ["Two."], ["Three."]], prepare=prepare))
    assert [span.label for span in document.spans] == ["i", "ii", "1"]
    assert document.metadata == {"format": "pdf", "pages": "3", "title": "The Ship", "author": "A. Sailor"}


def bookmarked(data: bytes, *entries: tuple[str, int], under: str | None = None) -> bytes:
    """The PDF with bookmarks (title, page index), all of them below one of the name `under` if that is given."""
    writer = pypdf.PdfWriter(clone_from=pypdf.PdfReader(io.BytesIO(data)))
    parent = writer.add_outline_item(under, 0) if under else None
    for title, page in entries:
        writer.add_outline_item(title, page, parent=parent)
    writer.write(written := io.BytesIO())
    return written.getvalue()


@pytest.mark.parametrize("under", [None, "The Ship"])
def test_bookmarks_are_chapters_beside_the_pages(make_pdf, under):
    plain = make_pdf(PAGES)
    document = load(
        bookmarked(plain, ("The ship had  LEFT", 0), ("Nowhere to be found", 1), ("12 ships", 2), under=under)
    )
    pages = load(plain)
    assert document.text == pages.text and document.spans[: len(pages.spans)] == pages.spans
    chapters = [span for span in document.spans if span.kind == "chapter"]
    assert [span.label for span in chapters] == ["The ship had LEFT", "Nowhere to be found", "12 ships"]
    begins = [0, pages.spans[1].start, document.text.index("12 ships")]
    assert [span.start for span in chapters] == begins and chapters[-1].end == len(document.text)
    assert (
        document.span_at(begins[2], "page").label == "3" and document.span_at(begins[2], "chapter").label == "12 ships"
    )
    assert load(bookmarked(plain, ("The ship", 0))).spans == pages.spans


def test_pages_without_text_keep_their_numbers(make_pdf):
    document = load(make_pdf([["One."], [], ["Three."], []]))
    assert [span.label for span in document.spans] == ["1", "3"]
    assert document.text == "One.\n\nThree."


def test_headers_that_alternate_and_count(make_pdf):
    pages = [[f"{n} THE SHIP" if n % 2 else f"A. SAILOR {n}", "", f"Words of page {'abcdefgh'[n]}."] for n in range(8)]
    text = load(make_pdf(pages)).text
    assert "SHIP" not in text and "SAILOR" not in text
    assert text.count("Words of page") == 8


def test_what_is_no_header_stays(make_pdf):
    # Numbers of a table, a year alone on a line, and a first line that only two pages share.
    pages = [["Yes.", "100 200 300", f"Some words {'xyzuvw'[n]}.", "1923", "5 5 5"] for n in range(2)]
    text = load(make_pdf(pages)).text
    assert text.count("Yes.") == 2 and text.count("1923") == 2 and text.count("5 5 5") == 2


def test_a_document_of_equal_pages_keeps_its_text(make_pdf):
    assert "Same words." in load(make_pdf([["Same words."]] * 4)).text


def joined(*lines: str) -> str:
    return join_pages([[Line(line) for line in lines]])[0]


def test_hyphens():
    assert joined("a soft\u00ad", "ware") == "a software"
    assert joined("from 1914-", "18 on") == "from 1914-18 on"
    assert joined("a mother-in-", "law") == "a mother-in-law"
    assert joined("the dog and the like of a dog, like that: a dog-", "like thing").endswith("a dog-like thing")
    assert joined("AN OP-", "TIONAL WORD") == "AN OPTIONAL WORD"
    assert joined("waited for some-", "thing") == "waited for something"
    assert joined("he paused—", "then spoke") == "he paused—then spoke"


def test_encrypted(make_pdf):
    data = make_pdf([["Secret words."]], encrypt="open sesame")
    assert load(data, password="open sesame").text == "Secret words."
    with pytest.raises(DocumentError, match=r"encrypted.*--password"):
        load(data)
    with pytest.raises(DocumentError, match=r"wrong.*--password"):
        load(data, password="guess")


def test_a_scan_names_ocr(make_pdf):
    from PIL import Image

    picture = ImageReader(Image.new("RGB", (20, 20)))
    data = make_pdf([[], []], prepare=lambda canvas: canvas.drawImage(picture, 50, 50))
    with pytest.raises(DocumentError, match=r"no text layer.*OCR.*ocrmypdf"):
        load(data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"%PDF-1.7\n" + b"junk " * 50,
        lambda data: b"%PDF-",
        lambda data: data[:200],
        lambda data: data.replace(b"/Pages", b"/Cages"),
        lambda data: data.replace(b"/Kids", b"/Cats"),
        lambda data: data.replace(b"stream", b"strom!"),
        lambda data: b"just words, no PDF",
    ],
)
def test_broken(make_pdf, damage, caplog):
    with caplog.at_level(logging.WARNING), pytest.raises(DocumentError, match=r"broken|no text layer"):
        load(damage(make_pdf(PAGES)))
    assert not caplog.records


def test_one_bad_page_costs_only_itself(make_pdf, monkeypatch):
    data = make_pdf([["One."], ["Two."], ["Three."]])
    extract = pypdf.PageObject.extract_text

    def fail_on_second(page, *arguments, **options):
        if page.page_number == 1:
            raise KeyError("/Font")
        return extract(page, *arguments, **options)

    monkeypatch.setattr(pypdf.PageObject, "extract_text", fail_on_second)
    document = load(data)
    assert document.text == "One.\n\nThree."
    assert document.metadata["unreadable_pages"] == "2"


def test_verse_quotations_and_contents(make_pdf):
    full = "A full line of this little book is some sixty characters long"
    page = [
        "Chapter One . . . . . . . . . . . . . . . . . . . . . . . . 7",
        "chapter two . . . . . . . . . . . . . . . . . . . . . . . . 9",
        "",
        *([full] * 6),
        "and it ends here.",
        ("A new one begins, and after it a poem.", 14),
        ("O, the wild rose blossoms", 40),
        ("on the little green place.", 40),
        ("Again " + full.lower()[6:], 14),
        ("that is set in like a quotation, without a first line. And", 14),
        ("so on.", 14),
    ]
    text = load(make_pdf([page])).text
    assert text.startswith("Chapter One ... 7\nchapter two ... 9\n\nA full line")
    assert (
        "long and it ends here.\n\nA new one begins, and after it a poem.\n\nO, the wild rose blossoms\non the" in text
    )
    assert text.endswith("long that is set in like a quotation, without a first line. And so on.")
