"""A real local cluster of two workers, one of which is killed in the middle."""

from __future__ import annotations

import os
import socket
import sys
from functools import partial

import pytest
from corpus_reading import open_mortal, open_tiny

from ttt_docs import MemoryStore, TTTDocsError
from ttt_docs.corpus.batches import Settings
from ttt_docs.corpus.ingestion import corpus_sources, ingest_corpus

pytestmark = pytest.mark.ray
ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster():
    """Its processes get what they need from the environment: with a runtime_env, Ray starts an agent for it first, and
    cannot use the processes that it has started ahead."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_register_timeout_seconds", "300")  # a busy machine starts processes slowly
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        patch.setenv("OMP_NUM_THREADS", "1")
        ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False, object_store_memory=80_000_000)
        yield
        ray.shutdown()


@pytest.mark.parametrize("address", ["nowhere.invalid:1", "127.0.0.1:{closed}", "ray://[::1]:{closed}", "here:99999"])
def test_a_cluster_that_does_not_answer_is_said_before_ray_tries(books, tmp_path, monkeypatch, address):
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was asked"))
    with pytest.raises(TTTDocsError, match=r"no Ray cluster at .*ray start --head.*leave the address out"):
        ingest_corpus(
            corpus_sources(books),
            MemoryStore(tmp_path / "store"),
            open_tiny,
            engine="ray",
            address=address.format(closed=closed),
            progress=False,
        )


def test_an_address_that_ray_refuses_is_said(books, tmp_path, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(TTTDocsError, match="no Ray cluster at nonsense: Invalid address format"):
        ingest_corpus(
            corpus_sources(books), MemoryStore(tmp_path / "store"), open_tiny, engine="ray", address="nonsense"
        )


def test_a_killed_worker_costs_nothing(cluster, books, tmp_path):
    (books / "bad.txt").write_text(" ")
    log = tmp_path / "log"
    log.mkdir()
    store = MemoryStore(tmp_path / "store")
    report = ingest_corpus(
        corpus_sources(books),
        store,
        partial(open_mortal, str(log), "5.txt"),
        engine="ray",
        workers=2,
        settings=Settings(batch=2),
        progress=False,
    )
    killed = (log / "killed").read_text()
    assert [outcome.source for outcome in report.failed] == [str(books / "bad.txt")]
    assert len(report.outcomes) == 10 and {one.source for one in report.outcomes} == set(corpus_sources(books))
    read = [path.name.split("-") for path in log.iterdir() if path.name != "killed"]
    assert sorted(name for name, _ in read) == sorted(f"{n}.txt" for n in range(9)), "every document was read once"
    assert dict(read)["5.txt"] != killed, "another process read what the dead one was at"
    assert sorted(entry.documents[0].name for entry in store.list()) == sorted(f"{n}.txt" for n in range(9))
    assert all(wrong is None for _, wrong in store.verify())
    assert store.get(store.find(name="5.txt")[0].key).tokens.equal(open_tiny().ingest(books / "5.txt").tokens)


@pytest.mark.long  # four processes, one after the other
def test_a_document_that_always_kills_is_named(cluster, books, tmp_path):
    for path in books.iterdir():
        if path.name not in ("1.txt", "2.txt"):
            path.unlink()
    store = MemoryStore(tmp_path / "store")
    opener = partial(open_mortal, str(tmp_path / "never made"), "2.txt")  # no marker can be left: it kills each time
    report = ingest_corpus(
        corpus_sources(books), store, opener, engine="ray", workers=2, settings=Settings(batch=1), progress=False
    )
    (failed,) = report.failed
    assert failed.source == str(books / "2.txt") and "died 3 times" in failed.reason
    assert [outcome.status for outcome in report.outcomes if outcome is not failed] == ["read"]
