"""Collections of documents: text files and JSON lines."""

from __future__ import annotations

import json

import pytest

from ttt_docs.errors import DocumentError
from ttt_docs.evaluation.books import read_collection

LINES = [{"id": 7, "title": "One", "text": "first"}, {"text": "second"}]


def test_files_and_lines_in_order(tmp_path):
    import zstandard

    lines = "".join(json.dumps(row) + "\n" for row in LINES)
    (tmp_path / "plain.jsonl").write_text(lines, "utf-8")
    frames = [zstandard.compress(part.encode()) for part in lines.splitlines(keepends=True)]
    (tmp_path / "small.jsonl.zst").write_bytes(b"".join(frames))
    (tmp_path / "book.txt").write_text("third", "utf-8")
    found = list(read_collection(tmp_path / name for name in ("plain.jsonl", "small.jsonl.zst", "book.txt")))
    assert [(t.id, t.title, t.text) for t in found] == [
        ("7", "One", "first"), ("plain-2", "plain-2", "second"),
        ("7", "One", "first"), ("small-2", "small-2", "second"),
        ("book", "book.txt", "third"),
    ]  # fmt: skip


@pytest.mark.parametrize("line", ['{"text": 3}', '{"title": "x"}', "[1]", "nonsense", '{"text": " "}'])
def test_a_bad_line_is_named(tmp_path, line):
    file = tmp_path / "bad.jsonl"
    file.write_text(json.dumps(LINES[0]) + "\n" + line + "\n", "utf-8")
    with pytest.raises(DocumentError, match=r"bad\.jsonl, line 2"):
        list(read_collection([file]))


def test_a_broken_or_missing_file_is_named(tmp_path):
    broken = tmp_path / "broken.jsonl.zst"
    broken.write_bytes(b"not zstd at all")
    with pytest.raises(DocumentError, match=r"broken\.jsonl\.zst is not intact zstd"):
        list(read_collection([broken]))
    with pytest.raises(DocumentError, match="missing"):
        list(read_collection([tmp_path / "missing.jsonl"]))
