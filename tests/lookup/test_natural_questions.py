"""The natural questions, and those that places were learned from: their answers stand in the books, where they say."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "books"
BOOKS = SHARED / "valid.jsonl.zst"


def questions(name):
    return [json.loads(line) for line in (ROOT / "benchmarks/questions" / name).read_text("utf-8").splitlines()]


def texts_of(path):
    import zstandard

    with path.open("rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw) as stream:
        return {book["id"]: book["text"] for book in map(json.loads, io.TextIOWrapper(stream, encoding="utf-8"))}


ROWS, TRAINING = questions("natural.jsonl"), questions("training.jsonl")


def test_there_are_enough_and_from_every_book():
    assert len(ROWS) >= 120 and len({row["question"] for row in ROWS}) == len(ROWS)
    count = Counter(row["book"] for row in ROWS)
    assert len(count) == 12 and max(count.values()) - min(count.values()) <= 4


@pytest.mark.skipif(not BOOKS.is_file(), reason="the validation books are not here")
def test_answers_stand_where_they_are_said_to():
    texts = texts_of(BOOKS)
    for row in ROWS:
        assert texts[row["book"]].startswith(row["answer"], row["start"]), row
        assert " ".join(row["answer"].split()).lower() not in row["question"].lower(), row
    places = Counter(int(4 * row["start"] / len(texts[row["book"]])) for row in ROWS)
    assert min(places.values()) >= 20  # in every quarter of the books


def test_training_questions_are_on_other_books():
    assert len(TRAINING) >= 900 and not {row["book"] for row in TRAINING} & {row["book"] for row in ROWS}


@pytest.mark.skipif(not SHARED.is_dir(), reason="the training books are not here")
def test_answers_of_training_questions_stand_where_they_are_said_to():
    path = SHARED / "train-00.jsonl.zst"
    texts = texts_of(path)
    here = [row for row in TRAINING if row["book"] in texts]
    assert here
    for row in here:
        assert texts[row["book"]].startswith(row["answer"], row["start"]), row
