import io
import itertools
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ttt_docs.documents import iter_text, load_document
from ttt_docs.errors import DocumentError

TEXTS = st.text(alphabet="aé漢😀 \r\n", min_size=1, max_size=40).map(lambda text: "x" + text)


def cut(whole, places):
    places = sorted({min(place, len(whole)) for place in places})
    return [whole[a:b] for a, b in itertools.pairwise([0, *places, len(whole)])]


@settings(deadline=None)
@given(TEXTS, st.lists(st.integers(0, 41), max_size=6))
def test_any_split_of_str_equals_the_whole(text, places):
    expected = text.replace("\r\n", "\n").replace("\r", "\n")
    assert "".join(iter_text(cut(text, places))) == expected


@settings(deadline=None)
@given(TEXTS, st.lists(st.integers(0, 200), max_size=6), st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]))
def test_any_split_of_bytes_equals_the_whole(text, places, encoding):
    data = text.encode(encoding)
    expected = load_document(io.BytesIO(data)).text
    assert "".join(iter_text(cut(data, places))) == expected
    assert "".join(iter_text(io.BytesIO(data))) == expected


def test_long_pieces_and_other_encodings():
    text = "Ein Gruß aus der Brücke, süß und schön.\r\n" * 10_000
    expected = text.replace("\r\n", "\n")
    for encoding in ("utf-8", "cp1252"):
        data = text.encode(encoding)
        assert "".join(iter_text(io.BytesIO(data))) == expected
        assert "".join(iter_text(data[i : i + 7777] for i in range(0, len(data), 7777))) == expected
    assert "".join(iter_text([text.encode("utf-16-le")], encoding="utf-16-le")) == expected


def test_paths_and_text_files(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\r\ntwo")
    assert "".join(iter_text(path)) == "one\ntwo"
    with open(path, newline="") as file:
        assert "".join(iter_text(file)) == "one\ntwo"


def test_memory_is_constant():
    def endless():
        while True:
            yield b"word " * 2000

    tracemalloc.start()
    total = sum(len(piece) for piece in itertools.islice(iter_text(endless()), 2000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total > 19_000_000
    assert peak < 1_000_000


def test_pieces_come_before_the_source_ends():
    def broken():
        yield "first"
        raise RuntimeError("the source goes on later")

    assert next(iter_text(broken())) == "first"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "empty"),
        (["", " ", "\n"], "whitespace"),
        ([b"%PDF-1.7 words"], "Load it as a document"),
        ([b"PK\x03\x04 words"], "Load it as a document"),
        ([b"words\0" * 9], "binary"),
        ([b"words " * 2000, b"\0\0"], "binary"),
        (["words", "\0"], "binary"),
        (["words", b"words"], "mix str and bytes"),
        ([b"words " * 2000, b"\xff"], "stops being valid utf-8"),
        (["words "] * 3, "limit of 10 bytes"),
        (b"words", "cannot read text from bytes"),
        (7, "cannot read text from int"),
    ],
)
def test_errors(source, message):
    with pytest.raises(DocumentError, match=message):
        list(iter_text(source, max_bytes=10 if "limit" in message else None))


def test_errors_of_files(tmp_path):
    with pytest.raises(DocumentError, match="no such file"):
        list(iter_text(tmp_path / "gone.txt"))
    for encoding in ("klingon", "rot13", "zlib", "a\0b"):  # two of them are codecs of Python, but not of text
        with pytest.raises(DocumentError, match="unknown encoding"):
            list(iter_text([b"words"], encoding=encoding))
    with pytest.raises(DocumentError, match="stops being valid undefined"):
        list(iter_text([b"words"], encoding="undefined"))


@pytest.mark.parametrize("pieces", [[b"bytes " * 2000, "str"], [b"bytes", "str"]])
def test_pieces_of_two_kinds_are_refused(pieces):
    with pytest.raises(DocumentError, match="mix str and bytes"):
        list(iter_text(pieces))
