"""MemoryStore: what was read once is not read again, whoever writes at the same time."""

from __future__ import annotations

import os
import pickle
import time
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from memory_files import make_memory

from ttt_docs import Document, Memory, MemoryFormatError, MemoryStore, StoreError, UsageError
from ttt_docs.memory import ReadDocument, memories_equal
from ttt_docs.store.store import key_of, memory_key

TEXT = "\n".join(f"{day}. The ship lay still; the captain counted {day * 37 % 101} waves." for day in range(1, 13))


def stored(seed: int = 0, name: str = "a.txt", sha256: str = "cd" * 32, **changes) -> Memory:
    metadata = {"author": f"Author {seed}"}
    return make_memory(seed, documents=(ReadDocument(name, 0, 12, sha256, metadata=metadata),), **changes)


@pytest.fixture(scope="module")
def bucket():
    """A bucket on a server of our own that speaks S3."""
    moto = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    server = moto.ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    options = {"key": "any", "secret": "any", "client_kwargs": {"endpoint_url": f"http://{host}:{port}"}}
    import s3fs

    s3fs.S3FileSystem(**options).mkdir("memories")
    yield options
    server.stop()


@pytest.fixture(params=["folder", "file://", "memory://", "moved", "s3://"])
def store(request, tmp_path) -> MemoryStore:
    if request.param == "folder":
        return MemoryStore(tmp_path / "not" / "there yet")
    if request.param == "file://":
        return MemoryStore(f"file://{tmp_path}/store")
    if request.param in ("memory://", "moved"):
        store = MemoryStore(f"memory://{uuid.uuid4().hex}")
        store._objects.single_put = request.param == "memory://"  # a filesystem whose puts can be seen half done
        return store
    return MemoryStore(f"s3://memories/{uuid.uuid4().hex}", **request.getfixturevalue("bucket"))


def test_put_get_list_delete(store):
    assert store.keys() == [] and store.list() == [] and store.get("ab" * 32 + "-" + "0" * 32) is None
    memory = stored()
    key = store.put(memory)
    assert key == key_of(memory) and key.startswith("cd" * 32) and key in store
    assert memories_equal(store.get(key), memory)
    (entry,) = store.list()
    assert (entry.key, entry.tokens, entry.model, entry.extra) == (key, 10, "tiny", {"note": "для меня"})
    assert entry.documents[0].name == "a.txt" and entry.reading == memory.reading and entry.nbytes > 1000
    assert store.delete(key) and not store.delete(key)
    assert key not in store and store.get(key) is None and store.list() == []


def test_a_put_replaces(store):
    store.put(stored(skipped=1))
    key = store.put(stored(skipped=2))
    assert store.get(key).skipped == 2 and len(store.list()) == 1


def test_listing_sees_what_changed(store):
    key = store.put(stored())
    assert store.list()[0].extra == {"note": "для меня"}
    other = pickle.loads(pickle.dumps(store))  # as another process has it
    other.put(stored(extra={"note": "new"}))
    assert store.list()[0].extra == {"note": "new"}
    other.delete(key)
    assert store.list() == []


def test_find(store):
    a, b = stored(1, "a.txt", "ab" * 32), stored(2, "b.txt", "cd" * 32, fingerprint="12" * 32)
    keys = {store.put(a), store.put(b)}
    both = make_memory(documents=(*a.documents, replace(b.documents[0], start=12, end=20)))
    keys.add(store.put(both))
    assert len(keys) == 3 and len(store.find()) == 3

    def names(**wanted):
        return sorted("+".join(one.name for one in entry.documents) for entry in store.find(**wanted))

    assert names(document="ab" * 32) == names(document="abababab") == ["a.txt", "a.txt+b.txt"]
    assert names(name="b.txt") == ["a.txt+b.txt", "b.txt"]
    assert names(name="b.txt", fingerprint="12" * 32) == ["b.txt"]
    assert names(metadata={"author": "Author 1"}) == ["a.txt", "a.txt+b.txt"]
    assert names(metadata={"author": "Author 1", "note": "для меня"}) == ["a.txt", "a.txt+b.txt"]
    assert names(name="b") == names(metadata={"author": "1"}) == []
    with pytest.raises(UsageError, match="at least its first 8"):
        store.find(document="abc")


def test_another_reading_is_another_key():
    memory = stored()
    keys = {
        key_of(memory),
        key_of(replace(memory, fingerprint="12" * 32)),
        key_of(replace(memory, reading=memory.reading.model_copy(update={"inner_lr": 0.2}))),
        key_of(replace(memory, documents=(*memory.documents, ReadDocument("b", 12, 13, "ef" * 32)))),
    }
    assert len(keys) == 4
    assert key_of(replace(memory, documents=(replace(memory.documents[0], name="other"),))) in keys


@pytest.mark.parametrize("document", [ReadDocument("a", 0, 1, None), ReadDocument("a", 0, 1, "ab" * 32, False)])
def test_what_has_no_key_is_not_stored(tmp_path, document):
    with pytest.raises(UsageError, match="whole documents"):
        MemoryStore(tmp_path).put(make_memory(documents=(document,)))
    with pytest.raises(UsageError, match="without documents"):
        MemoryStore(tmp_path).put(make_memory(documents=()))


@pytest.mark.parametrize("key", ["", "../../etc/passwd", "ab" * 32, "AB" * 32 + "-" + "0" * 32, "a/b"])
def test_no_key_leads_out_of_the_store(tmp_path, key):
    for use in (MemoryStore(tmp_path).get, MemoryStore(tmp_path).delete, MemoryStore(tmp_path).part):
        with pytest.raises(UsageError, match="no key"):
            use(key)


def test_places_that_cannot_be_stores(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError):
        MemoryStore(tmp_path / "file").list()
    with pytest.raises(StoreError):
        MemoryStore(tmp_path / "file").put(stored())
    with pytest.raises(StoreError, match=r"nonsense|protocol"):
        MemoryStore("nonsense://bucket")
    with pytest.raises(UsageError):
        MemoryStore("")
    with pytest.raises(UsageError, match="progress_every"):
        MemoryStore(tmp_path, progress_every=0)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError("denied"), "no permission for the store"),
        (ImportError("paramiko"), "not installed: paramiko"),
        (OSError("name or service not known"), "cannot be used"),
    ],
)
def test_why_a_place_cannot_be_used(monkeypatch, error, words):
    store = MemoryStore(f"memory://{uuid.uuid4().hex}")
    store._objects.single_put = False

    def fail(*arguments, **named):
        raise error

    for name in ("ls", "cat_file", "exists", "mv"):
        monkeypatch.setattr(store._objects.system, name, fail)
    for use in (store.list, lambda: store.get(key_of(stored())), lambda: store.put(stored())):
        with pytest.raises(StoreError, match=words):
            use()
    monkeypatch.undo()
    assert not store._objects.stamps(), "a failed put leaves nothing"


def test_a_damaged_entry_is_named_and_hides_no_other(store):
    good, bad = store.put(stored(1, sha256="ab" * 32)), store.put(stored(2))
    with store._objects.open(bad + ".ttt") as file:
        content = bytearray(file.read())
    content[-1] ^= 1

    def write():
        with store._objects.create(bad + ".ttt") as file:
            file.write(content)

    write()
    with pytest.raises(MemoryFormatError, match="checksum"):
        store.get(bad)
    found = dict(store.verify())
    assert found[good] is None and "checksum" in found[bad]
    content[8:] = b""
    write()
    assert [entry.key for entry in store.list()] == [good]


def test_verify_finds_an_entry_under_a_wrong_key(tmp_path):
    store = MemoryStore(tmp_path)
    key = store.put(stored())
    os.rename(tmp_path / f"{key}.ttt", tmp_path / f"{'00' * 32}-{'0' * 32}.ttt")
    ((_, wrong),) = store.verify()
    assert "another memory" in wrong


def test_the_oldest_go_where_a_store_is_limited(tmp_path, caplog):
    store = MemoryStore(tmp_path)
    keys = [store.put(stored(sha256=f"{number}" * 64)) for number in range(4)]
    for age, key in enumerate(reversed(keys)):
        os.utime(tmp_path / f"{key}.ttt", (1e9 - age, 1e9 - age))
    (tmp_path / "letter.ttt").write_bytes(bytes(9999))  # somebody's own file is none of the store's
    nbytes = store.list()[0].nbytes
    assert store.prune(max_bytes=3 * nbytes, dry_run=True) == [f"{keys[0]}.ttt"] and len(store.keys()) == 4
    assert store.prune(older_than=3600 * 24 * 365 * 100) == [] and store.prune(max_bytes=4 * nbytes) == []
    limited = MemoryStore(tmp_path, max_bytes=2 * nbytes + 10)
    with caplog.at_level("INFO", logger="ttt_docs"):
        new = limited.put(stored(sha256="a" * 64))
    assert set(store.keys()) == {keys[3], new} and "3 of the oldest" in caplog.text
    last = MemoryStore(tmp_path, max_bytes=1).put(stored(sha256="b" * 64))  # what was just put stays, however large
    assert store.keys() == [last] and (tmp_path / "letter.ttt").exists()


def test_gc(tmp_path):
    store = MemoryStore(tmp_path)
    done, unfinished = key_of(stored()), memory_key(["ef" * 32], "12" * 32, stored().reading)
    store.put_part(done, stored())
    store.put_part(unfinished, stored())
    (tmp_path / ".ttt-0123.tmp").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("of the user")
    assert store.gc() == []  # a process may be at work on any of them
    store.put(stored())
    assert store.gc(dry_run=True) == store.gc() == [f"{done}.part"]
    assert store.parts().keys() == {unfinished}
    old = time.time() - 100_000
    for path in tmp_path.iterdir():
        os.utime(path, (old, old))
    assert sorted(store.gc()) == sorted([".ttt-0123.tmp", f"{unfinished}.part"])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([f"{done}.ttt", "notes.txt"])


def _write(place: str, options: dict, seed: int) -> None:
    store = MemoryStore(place, **options)
    for _ in range(20):
        store.put(stored(seed, skipped=seed))


def _read(place: str, options: dict, key: str, ended, seen) -> None:
    store, found = MemoryStore(place, **options), set()
    while not ended.is_set() or not found:
        memory = store.get(key)
        if memory is not None:
            expected = stored(memory.skipped, skipped=memory.skipped)
            assert memories_equal(memory, expected), "an entry of two writers"
            found.add(memory.skipped)
        assert [entry.key for entry in store.list()] in ([], [key])
    seen.put(found)


@pytest.mark.parametrize("place", ["folder", "s3://"])
def test_writers_in_several_processes_never_show_a_broken_entry(place, tmp_path, request, processes):
    options = {} if place == "folder" else request.getfixturevalue("bucket")
    where = str(tmp_path) if place == "folder" else f"s3://memories/{uuid.uuid4().hex}"
    seen, ended, key = processes.Queue(), processes.Event(), key_of(stored())
    writers = [processes.Process(target=_write, args=(where, options, seed)) for seed in (1, 2, 3)]
    readers = [processes.Process(target=_read, args=(where, options, key, ended, seen)) for _ in range(2)]
    for process in (*readers, *writers):
        process.start()
    for process in writers:
        process.join(120)
        assert process.exitcode == 0
    ended.set()
    found = set.union(*(seen.get(timeout=60) for _ in readers))
    for process in readers:
        process.join(60)
        assert process.exitcode == 0
    assert found and found <= {1, 2, 3}
    if place == "folder":
        assert [path.name for path in Path(where).iterdir()] == [f"{key}.ttt"]


@pytest.fixture
def counting(tiny_reader, monkeypatch):
    """The reader, and a list that grows with every chunk it reads."""
    chunks: list[int] = []
    import ttt_docs.reading.chunks

    genuine = ttt_docs.reading.chunks.report

    def report(*arguments):
        chunks.append(1)
        return genuine(*arguments)

    monkeypatch.setattr(ttt_docs.reading.chunks, "report", report)
    return tiny_reader, chunks


def test_what_was_read_is_not_read_again(store, counting):
    reader, chunks = counting
    memory = reader.ingest(text=TEXT, name="ship", store=store)
    count = len(chunks)
    assert count > 20 and len(store.keys()) == 1 and store.parts() == {}
    again = reader.ingest(text=TEXT, name="ship", store=store)
    assert len(chunks) == count and memories_equal(again, memory) and again.documents == memory.documents
    assert memories_equal(reader.ingest(text=TEXT), memory) and len(chunks) == 2 * count


def test_the_same_text_from_another_file_has_its_name_and_pages(tmp_path, counting):
    reader, chunks = counting
    reader.ingest(text=TEXT, name="ship", store=(store := MemoryStore(tmp_path)))
    count = len(chunks)
    from ttt_docs.memory import Span

    document = Document.from_text(TEXT, name="b.pdf", spans=[Span("page", "i", 0, 50)], metadata={"author": "X"})
    memory = reader.ingest(document, store=store)
    (read,) = memory.documents
    assert (read.name, read.spans[0].label, read.metadata["author"]) == ("b.pdf", "i", "X") and len(chunks) == count


def test_reading_on_with_a_store(tmp_path, counting):
    reader, chunks = counting
    store = MemoryStore(tmp_path)
    first = reader.ingest(text=TEXT, store=store)
    both = reader.ingest(iter(TEXT.upper()), memory=first, store=store)
    assert len(store.keys()) == 2
    count = len(chunks)
    assert memories_equal(reader.ingest(text=TEXT.upper(), memory=first, store=store), both) and len(chunks) == count
    assert memories_equal(both, reader.ingest(text=TEXT.upper(), memory=reader.ingest(text=TEXT)))


def test_a_damaged_entry_is_read_anew(tmp_path, counting, caplog):
    reader, _ = counting
    store = MemoryStore(tmp_path)
    memory = reader.ingest(text=TEXT, store=store)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    assert memories_equal(reader.ingest(text=TEXT, store=store), memory) and "read anew" in caplog.text
    assert torch.equal(store.get(store.keys()[0]).tokens, memory.tokens)


def test_after_ctrl_c_the_same_call_goes_on(tmp_path, counting, interrupt):
    reader, chunks = counting
    whole = reader.ingest(text=TEXT)
    count = len(chunks)
    store = MemoryStore(tmp_path, progress_every=1000)
    interrupt(after=10)
    with pytest.raises(KeyboardInterrupt):
        reader.ingest(text=TEXT, store=store)
    assert store.keys() == [] and len(store.parts()) == 1
    assert memories_equal(reader.ingest(text=TEXT, store=store), whole)
    assert len(chunks) == 2 * count and store.parts() == {} and len(store.keys()) == 1
