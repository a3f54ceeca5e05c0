import random

import pytest

from ttt_docs.documents import load_document
from ttt_docs.documents.plain import chapter_spans
from ttt_docs.errors import DocumentError

SENTENCE = "Die Bürger von Köln grüßten den König über die Brücke. “Ça va?” – naïve café, señor Müller aß Äpfel.\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"])
def test_usual_encodings(tmp_path, encoding):
    path = tmp_path / "a.txt"
    path.write_bytes((SENTENCE * 20).encode(encoding))
    assert load_document(path).text == SENTENCE * 20


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1252", "A naïve café, he said.\n"),
        ("cp1251", "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива.\n" * 5),
        ("shift_jis", "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。\n" * 5),
    ],
)
def test_other_encodings_are_detected(tmp_path, encoding, text):
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode(encoding))
    assert load_document(path).text == text


def test_a_late_8_bit_character_is_found(tmp_path):
    path = tmp_path / "a.txt"
    text = "Plain English all the way.\n" * 20000 + "And then a café.\n"
    path.write_bytes(text.encode("cp1252"))
    assert load_document(path).text == text


def test_utf8_with_a_cut_end_stays_utf8(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes((SENTENCE * 20 + "ü").encode()[:-1])
    assert load_document(path).text == SENTENCE * 20 + "\ufffd"


def test_newlines(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\r\ntwo\rthree\n\r\nfour")
    assert load_document(path).text == "one\ntwo\nthree\n\nfour"


@pytest.mark.parametrize(
    "data",
    [
        random.Random(0).randbytes(4000),
        b"MZ\x90\x00\x03\x00\x00\x00" + b"text" * 100,
        b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
        b"\xff\xfe\x00",
        bytes(range(1, 32)) * 20,
    ],
)
def test_binary_junk_is_refused(tmp_path, data):
    for name in ("a.txt", "a.md", "a.html", "a"):
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(DocumentError, match=r"not text|not valid"):
            load_document(path)


BODY = "\n\nIt was the best of times.\n\n"


def labels(text: str) -> list[str]:
    return [span.label for span in chapter_spans(text)]


def test_chapters(tmp_path):
    path = tmp_path / "novel.txt"
    path.write_text("A Title" + BODY + "CHAPTER I" + BODY + "Chapter II. The Sea" + BODY + "Epilogue" + BODY)
    document = load_document(path)
    assert [span.label for span in document.spans] == ["front matter", "CHAPTER I", "Chapter II. The Sea", "Epilogue"]
    assert document.spans[1].kind == "chapter"
    assert document.text[document.spans[1].start :].startswith("CHAPTER I\n")
    assert document.span_at(len(document) - 1).label == "Epilogue"


def test_a_table_of_contents_is_no_chapter():
    contents = "Chapter I\n\nChapter II\n\nChapter III\n\n“A motto.”\n\n"
    chapters = "".join(f"Chapter {number}" + BODY * 20 for number in ("I", "II", "III"))
    assert labels(contents + chapters) == ["front matter", "Chapter I", "Chapter II", "Chapter III"]


def test_part_above_chapter_is_one_span():
    text = "".join(f"PART {part}\n\nCHAPTER I" + BODY * 20 + "CHAPTER II" + BODY * 20 for part in ("ONE", "TWO"))
    assert labels(text) == ["PART ONE, CHAPTER I", "CHAPTER II", "PART TWO, CHAPTER I", "CHAPTER II"]


def test_sentences_are_no_headings():
    text = "He wrote\nchapter 1 of the book yesterday and\nchapter 2 today.\n\nPart two of the plan failed at once.\n"
    assert labels(text * 3) == []


def test_one_heading_is_no_structure():
    assert labels("Chapter 1" + BODY) == []
