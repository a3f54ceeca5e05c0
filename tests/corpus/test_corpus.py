"""Many documents into a store: each is read as it would be alone, and a bad one costs only itself."""

from __future__ import annotations

import os
from itertools import pairwise

import pytest
import torch
from corpus_reading import open_tiny

from ttt_docs import MemoryStore, StoreError, UsageError
from ttt_docs.corpus.batches import AHEAD, Settings
from ttt_docs.corpus.ingestion import corpus_sources, ingest_corpus
from ttt_docs.documents import load_document
from ttt_docs.store.store import memory_key


@pytest.fixture(scope="module")
def reader():
    return open_tiny()


def ingest(reader, sources, store, **settings):
    return ingest_corpus(sources, store, lambda: reader, settings=Settings(**settings), progress=False)


def test_every_document_is_read_as_alone(reader, books, tmp_path):
    store = MemoryStore(tmp_path / "store")
    heard = []
    report = ingest_corpus(
        corpus_sources(books),
        store,
        lambda: reader,
        settings=Settings(batch=3),
        progress=False,
        on_outcome=heard.append,
    )
    assert heard == report.outcomes and report.count("read") == 9 and not report.failed
    assert {entry.documents[0].name for entry in store.list()} == {f"{n}.txt" for n in range(9)}
    for outcome in report.outcomes:
        memory, alone = store.get(outcome.key), reader.ingest(outcome.source)
        assert torch.equal(memory.tokens, alone.tokens) and memory.text == alone.text
        assert torch.allclose(memory.nll, alone.nll, atol=1e-3) and outcome.tokens == len(alone.tokens)
    assert report.tokens == sum(entry.tokens for entry in store.list())


def test_a_bad_document_costs_only_itself(reader, books, tmp_path):
    (books / "4a.txt").write_text("  \n")
    (books / "4b.pdf").write_bytes(b"%PDF-1.4 broken")
    (books / "4c.epub").write_bytes(b"PK\x03\x04 broken")
    report = ingest(reader, [*corpus_sources(books), str(books / "gone.txt")], MemoryStore(tmp_path / "store"))
    assert report.count("read") == 9
    reasons = {outcome.source.rsplit("/")[-1]: outcome.reason for outcome in report.failed}
    assert reasons.keys() == {"4a.txt", "4b.pdf", "4c.epub", "gone.txt"}
    assert "only whitespace" in reasons["4a.txt"] and "no such file" in reasons["gone.txt"]


def test_a_document_that_fails_in_a_batch_costs_only_itself(reader, books, tmp_path, monkeypatch):
    genuine = type(reader).ingest_batch

    def ingest_batch(self, documents, **options):
        if any(document.name == "5.txt" for document in documents):
            raise RuntimeError("out of\nmemory")
        return genuine(self, documents, **options)

    monkeypatch.setattr(type(reader), "ingest_batch", ingest_batch)
    report = ingest(reader, corpus_sources(books), MemoryStore(tmp_path / "store"))
    assert report.count("read") == 8 and [one.reason for one in report.failed] == ["out of memory"]


def test_resume_reads_only_what_is_missing(reader, books, tmp_path):
    store = MemoryStore(tmp_path / "store")
    ingest(reader, corpus_sources(books)[:4], store)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").iterdir()}
    report = ingest(reader, corpus_sources(books), store, resume=True)
    assert (report.count("read"), report.count("there already")) == (5, 4)
    assert all(path.stat().st_mtime_ns == written for path, written in before.items())
    again = ingest(reader, corpus_sources(books), store)
    assert again.count("read") == 9 and len(store.keys()) == 9


def test_the_same_text_twice_is_read_once(reader, books, tmp_path):
    (books / "copy.txt").write_text((books / "3.txt").read_text("utf-8"), "utf-8")
    report = ingest(reader, corpus_sources(books), MemoryStore(tmp_path / "store"))
    assert (report.count("read"), report.count("there already")) == (9, 1)


def test_compact_memories(reader, books, tmp_path):
    store = MemoryStore(tmp_path / "store")
    ingest(reader, corpus_sources(books)[:2], store, compact=True)
    assert all(store.get(entry.key).change is not None for entry in store.list())


def test_a_text_too_long_to_be_compacted_costs_only_itself(reader, books, tmp_path, monkeypatch):
    store = MemoryStore(tmp_path / "store")
    long = books / "long.txt"
    long.write_text("".join(chr(0x4E00 + n * 7919 % 20_000) for n in range(600)), "utf-8")
    monkeypatch.setattr("ttt_docs.corpus.batches.COMPACT_BYTES", 68_000)
    report = ingest(reader, corpus_sources(books), store, compact=True)
    assert report.count("read") == 9 and [one.source for one in report.failed] == [str(long)]
    assert "too small" in report.failed[0].reason and len(store.keys()) == 9


def test_batches_are_of_similar_length_and_no_more_is_held(reader, books, tmp_path, monkeypatch):
    batches, alive, genuine = [], [], load_document

    def load(source, **options):
        alive.append(source)
        return genuine(source, **options)

    def ingest_batch(documents, **options):
        assert len(alive) <= AHEAD * 2
        batches.append([len(document) for document in documents])
        alive[:] = [] if len(batches) % AHEAD == 0 else alive
        return type(reader).ingest_batch(reader, documents, **options)

    monkeypatch.setattr("ttt_docs.corpus.batches.load_document", load)
    monkeypatch.setattr(reader, "ingest_batch", ingest_batch)
    ingest(reader, corpus_sources(books), MemoryStore(tmp_path / "store"), batch=2)
    assert [len(batch) for batch in batches] == [2, 2, 2, 2, 1]
    assert all(max(a) <= min(b) for a, b in pairwise(batches[:AHEAD]))


def test_a_store_that_cannot_be_written_ends_the_work(reader, books, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError):
        ingest(reader, corpus_sources(books), MemoryStore(tmp_path / "file"))


def test_settings_that_cannot_work(reader, books, tmp_path):
    with pytest.raises(UsageError, match="at least 1"):
        ingest(reader, corpus_sources(books), MemoryStore(tmp_path / "store"), batch=0)


def test_sources(books, tmp_path):
    (books / "deep").mkdir()
    (books / "deep" / "x.MD").write_text("# x")
    (books / "notes.xyz").write_text("not a document")
    assert len(corpus_sources(books)) == 10 and corpus_sources(books)[-1].endswith("x.MD")
    assert corpus_sources(str(books / "*.txt")) == sorted(map(str, books.glob("*.txt")))
    assert len(corpus_sources(str(books / "**" / "*"))) == 11
    listing = tmp_path / "list.txt"
    listing.write_text(f"# all\nbooks/1.txt\n\n{books}/2.txt\ns3://bucket/a.pdf\nbooks/1.txt\n")
    assert corpus_sources(listing) == [str(books / "1.txt"), str(books / "2.txt"), "s3://bucket/a.pdf"]
    (tmp_path / "none").mkdir()
    for nothing in (tmp_path / "none", tmp_path / "*.pdf"):
        with pytest.raises(UsageError, match="there is no"):
            corpus_sources(nothing)


def test_what_a_folder_has_and_nobody_can_read_is_listed(reader, books, tmp_path, monkeypatch, caplog):
    (books / "broken.txt").symlink_to(books / "gone")
    (books / "locked").mkdir()
    (books / "report.docx").write_text("not a document")
    (books / ".hidden").write_text("nobody's business")
    genuine = os.scandir

    def scandir(path):
        if os.fspath(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return genuine(path)

    monkeypatch.setattr(os, "scandir", scandir)  # root may read everything
    report = ingest(reader, corpus_sources(books), MemoryStore(tmp_path / "store"))
    reasons = {os.path.basename(outcome.source): outcome.reason for outcome in report.failed}
    assert report.count("read") == 9 and reasons.keys() == {"broken.txt", "locked"}
    assert "no such file" in reasons["broken.txt"] and "no permission" in reasons["locked"]
    assert "1 left out" in caplog.text and "report.docx" in caplog.text and ".hidden" not in caplog.text
    assert str(books / "broken.txt") in corpus_sources(str(books / "*.txt"))


def test_a_list_that_is_no_text_is_named(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="a list is a UTF-8 text file"):
        corpus_sources(tmp_path / "list.txt")


def test_keys_are_those_of_reading_one_by_one(reader, books, tmp_path):
    store = MemoryStore(tmp_path / "store")
    ingest(reader, corpus_sources(books)[:1], store)
    document = load_document(corpus_sources(books)[0])
    assert store.keys() == [memory_key([document.sha256], reader.fingerprint, reader.reading)]
