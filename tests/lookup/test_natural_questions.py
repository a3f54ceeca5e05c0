"""The natural questions: their answers stand in the books, at the places given."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BOOKS = ROOT.parent / "shared" / "books" / "valid.jsonl.zst"
ROWS = [json.loads(line) for line in (ROOT / "benchmarks/questions/natural.jsonl").read_text("utf-8").splitlines()]


def test_there_are_enough_and_from_every_book():
    assert len(ROWS) >= 120 and len({row["question"] for row in ROWS}) == len(ROWS)
    count = Counter(row["book"] for row in ROWS)
    assert len(count) == 12 and max(count.values()) - min(count.values()) <= 4


@pytest.mark.skipif(not BOOKS.is_file(), reason="the validation books are not here")
def test_answers_stand_where_they_are_said_to():
    import zstandard

    with BOOKS.open("rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw) as stream:
        texts = {book["id"]: book["text"] for book in map(json.loads, io.TextIOWrapper(stream, encoding="utf-8"))}
    for row in ROWS:
        assert texts[row["book"]].startswith(row["answer"], row["start"]), row
        assert " ".join(row["answer"].split()).lower() not in row["question"].lower(), row
    places = Counter(int(4 * row["start"] / len(texts[row["book"]])) for row in ROWS)
    assert min(places.values()) >= 20  # in every quarter of the books
