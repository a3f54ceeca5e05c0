"""Documents to shards to sequences."""

from __future__ import annotations

import json
import sys
from types import ModuleType

import numpy as np
import pytest
from training_files import write_books

from ttt_docs.errors import DocumentError, TTTDocsError, UsageError
from ttt_docs.text.tokenizer import Tokenizer
from ttt_docs.training import data as building
from ttt_docs.training.data import Sequences, TextSource, build_shards, find_texts, shards_folder, texts_of
from ttt_docs.training.model_io import BYTE_TOKENIZER

TEXTS = ["first text " * 9, "second, é " * 12, "third " * 3]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(BYTE_TOKENIZER)


def test_the_byte_tokenizer_has_a_token_for_every_byte(tokenizer):
    text = "".join(map(chr, range(256))) + "é€😀"
    ids = tokenizer.encode(text)
    assert tokenizer.vocab_size == 259 and len(ids) == len(text.encode()) and tokenizer.decode(ids) == text
    assert min(ids) == 3 and (tokenizer.bos_id, tokenizer.token_id("eos_token")) == (1, 2)


def test_every_kind_of_file_gives_the_same_documents(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    lines = "".join(json.dumps({"body": text}) + "\n\n" for text in TEXTS).encode()
    (tmp_path / "a.jsonl").write_bytes(lines)
    half = len(lines) // 2
    frames = [zstandard.ZstdCompressor().compress(part) for part in (lines[:half], lines[half:])]
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(frames))
    parquet.write_table(pyarrow.table({"body": TEXTS, "id": [1, 2, 3]}), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.jsonl.zst", "a.parquet"):
        (source,) = find_texts((str(tmp_path / name),), "body")
        assert list(texts_of(source)) == TEXTS
    with pytest.raises(DocumentError, match=r"a.parquet: row 1 has no text under 'text' \(there are: body, id\)"):
        list(texts_of(TextSource("a.parquet", tmp_path / "a.parquet")))
    (tmp_path / "b").mkdir()
    for index, text in enumerate(TEXTS):
        (tmp_path / "b" / f"{index}.txt").write_text(text, "utf-8")
    (tmp_path / "b" / "cover.png").write_bytes(b"x")
    for named in (str(tmp_path / "b"), str(tmp_path / "b" / "*.txt")):
        assert [text for source in find_texts((named,)) for text in texts_of(source)] == TEXTS


def test_a_hugging_face_dataset_by_its_id(tmp_path, monkeypatch):
    asked = []
    fake = ModuleType("datasets")
    fake.load_dataset = lambda *a, **k: asked.append((a, k)) or iter([{"text": text} for text in TEXTS])
    monkeypatch.setitem(sys.modules, "datasets", fake)
    (source,) = find_texts(("someone/books",), subset="en", split="test")
    assert list(texts_of(source)) == TEXTS
    assert asked == [(("someone/books", "en"), {"split": "test", "streaming": True})]
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match="pip install datasets"):
        list(texts_of(source))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "line 2 is not JSON"),
        ("a.jsonl", b'{"body": "x"}\n', r"line 1 has no text under 'text' \(there are: body\); set data.field"),
        ("a.jsonl", b"[1]\n", "line 1 has no text"),
        ("a.jsonl.zst", b"not zstd", "not intact zstd"),
        ("a.parquet", b"not parquet", "a.parquet cannot be read: .*not a parquet file"),
        ("a.txt", b"\xff\xfe\xff", "cannot be read"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DocumentError, match=message):
        list(texts_of(TextSource(name, tmp_path / name)))


def test_names_that_are_no_data(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"a.png is none of the kinds"):
        find_texts((str(tmp_path / "a.png"),))
    with pytest.raises(UsageError, match="no training data at"):
        find_texts((str(tmp_path / "none" / "*.jsonl"),))


def test_shards_hold_long_documents_and_count_the_others(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(building, "SHARD_CHARACTERS", 800)
    (source,) = find_texts((str(write_books(tmp_path / "b.jsonl")),))
    built = build_shards(tmp_path / "s", [source], tokenizer, shortest=100, progress=False)
    assert len(built.lengths) > 1 and built.tokens[0].dtype == np.dtype("<u2")
    assert (built.documents, built.left_out) == (4, 2)
    assert sum(lengths.sum() for lengths in built.lengths) == 700 + 400 + 1000 + 650
    texts = [text for text in texts_of(source) if len(text) >= 100]
    stored = np.concatenate(built.tokens)
    assert tokenizer.decode(stored.tolist()) == "".join(texts)
    again = build_shards(tmp_path / "t", [source], tokenizer, shortest=100, progress=False)
    assert again.sha256 == built.sha256 and Sequences(tmp_path / "s").sha256 == built.sha256


def test_a_killed_build_goes_on_where_it_was(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(building, "SHARD_CHARACTERS", 800)
    (source,) = find_texts((str(write_books(tmp_path / "b.jsonl")),))
    whole = build_shards(tmp_path / "whole", [source], tokenizer, 100, progress=False)
    genuine, calls = building._write_shard, []

    def dies(folder, index, *rest):
        calls.append(index)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return genuine(folder, index, *rest)

    monkeypatch.setattr(building, "_write_shard", dies)
    with pytest.raises(KeyboardInterrupt):
        build_shards(tmp_path / "s", [source], tokenizer, 100, progress=False)
    first = tmp_path / "s" / "shard-00000.tokens"
    first.write_bytes(bytes(first.stat().st_size))  # as a crash of the machine may leave it
    built = build_shards(tmp_path / "s", [source], tokenizer, 100, progress=False)
    assert built.sha256 == whole.sha256 and calls[:4] == [0, 1, 2, 0] and 1 not in calls[3:]
    assert build_shards(tmp_path / "s", [], tokenizer, 100).sha256 == whole.sha256  # finished: nothing is read
    first.write_bytes(b"short")
    with pytest.raises(TTTDocsError, match=r"damaged \(shard-00000.tokens has another size"):
        Sequences(tmp_path / "s")


def test_no_document_that_is_long_enough(tmp_path, tokenizer):
    (source,) = find_texts((str(write_books(tmp_path / "b.jsonl")),))
    with pytest.raises(DocumentError, match=r"no document of b.jsonl has 1,025 tokens \(the longest has 1,000 char"):
        build_shards(tmp_path / "s", [source], tokenizer, 1025, progress=False)


def test_a_folder_belongs_to_documents_tokenizer_and_length(tmp_path, tokenizer):
    books = write_books(tmp_path / "b.jsonl")
    (source,) = find_texts((str(books),))
    folder = BYTE_TOKENIZER
    first = shards_folder(tmp_path, [source], folder, 9)
    assert first == shards_folder(tmp_path, [source], folder, 9) != shards_folder(tmp_path, [source], folder, 8)
    write_books(books, (50, 60), seed=1)
    assert shards_folder(tmp_path, find_texts((str(books),)), folder, 9) != first


def test_sequences_lie_in_one_document_and_their_order_is_the_seeds(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(building, "SHARD_CHARACTERS", 800)
    (source,) = find_texts((str(write_books(tmp_path / "b.jsonl")),))
    sequences = build_shards(tmp_path / "s", [source], tokenizer, 65, progress=False)
    expected = [
        text[start : start + 65]
        for text in texts_of(source)
        if len(text) >= 65
        for start in range(0, len(text) - 64, 64)
    ]
    assert [tokenizer.decode(sequences[i].tolist()) for i in range(len(sequences))] == expected
    count = len(sequences)
    epoch = np.concatenate([sequences.batch(step, 1, seed=3) for step in range(count)])
    assert sorted(epoch) == list(range(count)) and list(epoch) != list(range(count))
    assert (epoch == np.concatenate([sequences.batch(0, count, seed=3)])).all()
    assert (epoch != np.concatenate([sequences.batch(0, count, seed=4)])).any()
    second = sequences.batch(1, count, seed=3)
    assert sorted(second) == sorted(epoch) and (second != epoch).any()
    documents_seen = sequences.spread(sequences.documents)
    assert [expected[i] for i in documents_seen] == [t[:65] for t in texts_of(source) if len(t) >= 65]
