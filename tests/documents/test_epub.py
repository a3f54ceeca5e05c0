import pytest

from ttt_docs.documents import load_document
from ttt_docs.errors import DocumentError

FILES = {
    "cover.xhtml": "<p>Cover</p>",
    "text/b.xhtml": "<h1>One</h1><p>First&nbsp;words.</p><h2 id='mid'>Half way</h2><p>More.</p>",
    "text/a.xhtml": "<h1>Two</h1><p>Last words.</p>",
}
NAV = (
    '<html xmlns:epub="x"><body><nav epub:type="toc"><ol><li><a href="text/b.xhtml">Chapter the First</a><ol>'
    '<li><a href="text/b.xhtml#mid">The Middle</a></li></ol></li><li><a href="text/a.xhtml">Chapter the Last</a></li>'
    '</ol></nav><nav epub:type="landmarks"><a href="cover.xhtml">Start</a></nav></body></html>'
)
NCX = (
    '<?xml version="1.0"?><!DOCTYPE ncx PUBLIC "-//NISO//DTD ncx 2005-1//EN" "http://127.0.0.1:9/ncx.dtd">'
    '<ncx xmlns="http://www.daisy.org/z3986/2005/ncx/"><navMap><navPoint><navLabel><text>I.</text></navLabel>'
    '<content src="text/b.xhtml"/></navPoint><navPoint><navLabel><text>II.</text></navLabel>'
    '<content src="text/a.xhtml"/></navPoint></navMap></ncx>'
)
TEXT = "Cover\n\nOne\n\nFirst words.\n\nHalf way\n\nMore.\n\nTwo\n\nLast words."


def load(tmp_path, data, **options):
    path = tmp_path / "book.epub"
    path.write_bytes(data)
    return load_document(path, **options)


def test_spine_order_and_nav_titles(tmp_path, make_epub):
    document = load(tmp_path, make_epub(FILES, nav=NAV))
    assert document.text == TEXT
    chapters = [(span.label, document.text[span.start : span.end].strip()) for span in document.spans]
    assert chapters == [
        ("front matter", "Cover"),
        ("Chapter the First", "One\n\nFirst words."),
        ("The Middle", "Half way\n\nMore."),
        ("Chapter the Last", "Two\n\nLast words."),
    ]
    assert document.metadata == {"format": "epub", "title": "The Book", "author": "A. Writer"}


def test_ncx_titles(tmp_path, make_epub):
    document = load(tmp_path, make_epub(FILES, ncx=NCX))
    assert [span.label for span in document.spans] == ["front matter", "I.", "II."]


@pytest.mark.parametrize("ncx", [None, "<ncx>broken"])
def test_headings_without_a_table_of_contents(tmp_path, make_epub, ncx):
    document = load(tmp_path, make_epub(FILES, ncx=ncx))
    assert document.text == TEXT
    assert [span.label for span in document.spans] == ["front matter", "One", "Half way", "Two"]


def test_recognized_by_content(tmp_path, make_epub):
    path = tmp_path / "download"
    path.write_bytes(make_epub(FILES))
    assert load_document(path).text == TEXT


def test_zip_bombs_are_cut(tmp_path, make_epub):
    data = make_epub({"a.xhtml": "<p>" + "0" * 5_000_000 + "</p>"})
    assert len(data) < 100_000
    with pytest.raises(DocumentError, match="unpacks to more than 1000000 bytes"):
        load(tmp_path, data, max_bytes=1_000_000)


def test_entities_are_refused(tmp_path, make_epub):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    opf = (
        f'<?xml version="1.0"?><!DOCTYPE p [<!ENTITY x SYSTEM "{secret.as_uri()}">]><package><manifest>'
        '<item id="a" href="a.xhtml"/></manifest><spine><itemref idref="a"/></spine></package>'
    )
    with pytest.raises(DocumentError, match="entities"):
        load(tmp_path, make_epub({"a.xhtml": "<p>text</p>"}, opf=opf))


def test_protected_books_are_refused_and_obfuscated_fonts_are_not(tmp_path, make_epub):
    encryption = (
        '<encryption xmlns:enc="http://www.w3.org/2001/04/xmlenc#"><enc:EncryptedData><enc:CipherData>'
        '<enc:CipherReference URI="OPS/{}"/></enc:CipherData></enc:EncryptedData></encryption>'
    )
    with pytest.raises(DocumentError, match="DRM"):
        load(tmp_path, make_epub(FILES, extra={"META-INF/encryption.xml": encryption.format("text/a.xhtml").encode()}))
    fonts = {"META-INF/encryption.xml": encryption.format("font.otf").encode()}
    assert load(tmp_path, make_epub(FILES, extra=fonts)).text == TEXT


def test_damaged_zip(tmp_path, make_epub):
    data = make_epub(FILES)
    with pytest.raises(DocumentError, match="intact copy"):
        load(tmp_path, data[: len(data) // 2])
    with pytest.raises(DocumentError, match="intact copy"):
        load(tmp_path, b"not a zip at all")
    start = data.index(b"OPS/book.opf") + 40
    with pytest.raises(DocumentError, match=r"damaged|valid XML"):
        load(tmp_path, data[:start] + b"\xff" * 40 + data[start + 40 :])


@pytest.mark.parametrize(
    ("opf", "message"),
    [
        ("<package/>", "spine is empty"),
        ("<package", "not valid XML"),
        (
            '<package><manifest><item id="a" href="gone"/></manifest><spine><itemref idref="a"/></spine></package>',
            "lacks",
        ),
    ],
)
def test_books_that_are_not_there(tmp_path, make_epub, opf, message):
    with pytest.raises(DocumentError, match=message):
        load(tmp_path, make_epub({}, opf=opf))


def test_book_without_text(tmp_path, make_epub):
    with pytest.raises(DocumentError, match="empty"):
        load(tmp_path, make_epub({"a.xhtml": "<img src='x.png'/>"}))


def test_a_container_without_a_book_is_refused(tmp_path, make_epub, monkeypatch):
    monkeypatch.setitem(make_epub.__globals__, "CONTAINER", "<container><rootfiles><rootfile/></rootfiles></container>")
    with pytest.raises(DocumentError, match="does not say where its book is"):
        load(tmp_path, make_epub(FILES))


@pytest.mark.parametrize("field", ["password", "compression"])
def test_members_that_zipfile_cannot_unpack(tmp_path, make_epub, field):
    data = bytearray(make_epub(FILES))
    entry = data.rindex(b"PK\x01\x02", 0, data.rindex(b"OPS/text/a.xhtml"))
    data[entry + {"password": 8, "compression": 10}[field]] |= {"password": 1, "compression": 99}[field]
    with pytest.raises(DocumentError, match=r"cannot be unpacked .* without a password, packed in the usual way"):
        load(tmp_path, bytes(data))
