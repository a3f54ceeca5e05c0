"""Reading through TTTReader: what it leaves behind never depends on how the text came or where reading stopped."""

from __future__ import annotations

import io
import signal
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import tiny_decoder

from ttt_docs import (
    ChunkReport,
    Document,
    DocumentError,
    Memory,
    MemoryMismatchError,
    ReadingInterrupted,
    TTTReader,
    UsageError,
)
from ttt_docs.memory import memories_equal
from ttt_docs.model.config import ReadingConfig
from ttt_docs.reading.chunks import Track, read_stream
from ttt_docs.reading.restoring import state_of
from ttt_docs.ttt.state import ReadingState

CHUNK = 16
TEXT = "\n".join(f"{day}. The ship lay still; the captain counted {day * 37 % 101} waves." for day in range(1, 13))
OTHER = "\n".join(f"On page {page} nothing happens, {page * 7} times.\n" for page in range(1, 9))


@pytest.fixture(scope="module")
def reader(tiny_tokenizer) -> TTTReader:
    """A window of a few chunks and sinks, so that everything a long document meets happens within a few lines."""
    reading = ReadingConfig(chunk=CHUNK, window=48, sinks=4, inner_rule="normalized", inner_lr=0.1)
    return TTTReader(tiny_decoder(), tiny_tokenizer, reading, name="tiny", fingerprint="ab" * 32)


@pytest.fixture(scope="module")
def memory(reader) -> Memory:
    return reader.ingest(text=TEXT, name="ship")


def same(a: Memory, b: Memory) -> bool:
    return memories_equal(a, b) and a.text == b.text and a.skipped == b.skipped


def round_trip(memory: Memory, folder: Path) -> Memory:
    return Memory.load(memory.save(folder / "part.ttt"))


def read_ids(reader: TTTReader, ids: list[int], start: Memory | None = None) -> Memory:
    """Reads token ids after a memory, through the stream and the track that `ingest` uses."""

    class Ids:
        def encode(self, text: str) -> list[int]:
            return ids

    history = start or reader._checked(None)
    state = state_of(reader.model, history) if len(history.tokens) else ReadingState(reader.model, history.reading)
    track = Track(history)
    for _ in read_stream(state, track, ["stands for the ids"], Ids()):  # type: ignore[arg-type]
        pass
    return track.finish(state)


def test_every_kind_of_source_gives_the_same_memory(reader, memory, tmp_path):
    path = tmp_path / "ship.txt"
    path.write_text(TEXT, "utf-8")
    document = Document.from_text(TEXT, name="ship")
    sources = [
        path,
        str(path),
        document,
        io.BytesIO(TEXT.encode()),
        io.StringIO(TEXT),
        iter(TEXT),
        TEXT.splitlines(True),
    ]
    for source in sources:
        read = reader.ingest(source, name="ship")
        assert same(read, memory)
        assert read.documents[0].sha256 == memory.documents[0].sha256 == document.sha256
        assert (read.documents[0].name, read.documents[0].start, read.documents[0].end) == ("ship", 0, len(TEXT))


def test_the_memory_holds_what_was_read(reader, memory):
    ids = reader.tokenizer.encode(TEXT)
    assert memory.tokens.tolist() == ids and memory.text == TEXT
    assert memory.position == (len(ids) - 1) // CHUNK * CHUNK and 0 < len(memory.pending) <= CHUNK
    assert memory.fast.keys() == {2, 3} and memory.window.keys() == {0, 1, 2, 3}
    assert memory.window[0][0].shape == (2, 4 + 47, 8)  # sinks, and all of the window but the next query itself
    assert memory.documents[0].complete and memory.documents[0].first_token == 0


def test_every_token_but_the_first_is_scored(memory):
    """Also those of the last part of a chunk, which nothing was learned from yet."""
    assert len(memory.nll) == len(memory.tokens) and len(memory.pending) > 1
    assert memory.nll[0] == 0 and (memory.nll[1:] > 0).all()


def test_reports(reader):
    reports: list[ChunkReport] = []
    memory = reader.ingest(text=TEXT, on_chunk=reports.append)
    assert [r.index for r in reports] == list(range(memory.chunks))
    assert [r.tokens for r in reports] == [CHUNK * (i + 1) for i in range(memory.chunks)]
    for r in reports:
        scored = memory.nll[r.index * CHUNK + 1 : (r.index + 1) * CHUNK + 1]
        assert r.loss == pytest.approx(float(scored.mean()), abs=1e-5)
        assert r.grad_norm > 0 and r.clip == 1 and r.seconds > 0
    assert sum(r.skipped for r in reports) == memory.skipped


def test_reports_of_a_second_document_go_on_counting(reader, memory):
    reports: list[ChunkReport] = []
    both = reader.ingest(text=OTHER, memory=memory, on_chunk=reports.append)
    assert [r.index for r in reports] == list(range(memory.chunks, both.chunks))


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(1, 700), min_size=1, max_size=4))
def test_reading_in_parts_is_reading_in_one_go_bit_for_bit(reader, memory, cuts, tmp_path_factory):
    """At any token: most of these cuts leave a part of a chunk pending, which the next part completes."""
    ids = memory.tokens.tolist()
    edges = [0, *sorted({cut for cut in cuts if cut < len(ids)}), len(ids)]
    part = None
    for first, last in pairwise(edges):
        part = read_ids(reader, ids[first:last], part)
        part = round_trip(part, tmp_path_factory.mktemp("cut"))
    assert part is not None and memories_equal(part, memory)


@pytest.mark.parametrize(
    ("chunk", "window", "sinks"), [(1, 1, 0), (1, 8, 0), (16, 16, 0), (16, 17, 4), (8, 100, 20), (2, 3, 4)]
)
def test_reading_in_parts_with_other_shapes(reader, tmp_path, chunk, window, sinks):
    reading = reader.reading.model_copy(update={"chunk": chunk, "window": window, "sinks": sinks})
    other = TTTReader(reader.model, reader.tokenizer, reading, name="tiny", fingerprint="ab" * 32)
    ids = reader.tokenizer.encode(TEXT)[:80]
    whole = read_ids(other, ids)
    for cut in (1, 2, 3, 5, 15, 16, 17, 33, 47, 79):
        part = round_trip(read_ids(other, ids[:cut]), tmp_path)
        assert memories_equal(read_ids(other, ids[cut:], part), whole), cut


@pytest.mark.parametrize("after", [1, 2, 3, 7, 20])
def test_an_interrupted_reading_goes_on_to_the_same_bits(reader, interrupt, tmp_path, after):
    text = TEXT * 9  # longer than a segment
    whole = reader.ingest(text=text, name="long")
    interrupt(after)
    with pytest.raises(ReadingInterrupted) as caught:
        reader.ingest(text=text, name="long")
    part = round_trip(caught.value.memory, tmp_path)
    assert not part.documents[-1].complete and 0 < part.position < whole.position
    assert torch.equal(part.nll[: part.position + 1], whole.nll[: part.position + 1])
    resumed = reader.ingest(text=text, name="long", memory=part)
    assert same(resumed, whole) and resumed.documents == whole.documents


def test_an_interrupted_second_document(reader, memory, interrupt, tmp_path):
    text = OTHER * 20
    both = reader.ingest(text=text, memory=memory)
    interrupt(5)
    with pytest.raises(ReadingInterrupted) as caught:
        reader.ingest(text=text, memory=memory)
    part = round_trip(caught.value.memory, tmp_path)
    assert [d.complete for d in part.documents] == [True, False]
    resumed = reader.ingest(text=text, memory=part)
    assert same(resumed, both) and resumed.documents == both.documents


def test_an_interrupted_reading_can_be_interrupted_again(reader, interrupt):
    text = TEXT * 12
    whole, part = reader.ingest(text=text), None
    while part is None or not part.documents[-1].complete:
        interrupt(40)
        try:
            part = reader.ingest(text=text, memory=part)
        except ReadingInterrupted as stop:
            part = stop.memory
    assert same(part, whole) and part.documents == whole.documents


def test_after_an_interruption_another_document_may_follow(reader, interrupt):
    interrupt(3)
    with pytest.raises(ReadingInterrupted) as caught:
        reader.ingest(text=TEXT * 9)
    both = reader.ingest(text=OTHER, memory=caught.value.memory)
    assert [d.complete for d in both.documents] == [False, True]
    assert both.text is not None and both.text[both.documents[1].start :] == OTHER


def test_signals_are_as_before_after_reading(reader, interrupt):
    before = signal.getsignal(signal.SIGINT)
    reader.ingest(text=TEXT)
    interrupt(1)
    with pytest.raises(ReadingInterrupted):
        reader.ingest(text=TEXT * 9)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_document(reader, memory):
    document = Document.from_text(OTHER, name="pages")
    both = reader.ingest(document, memory=memory)
    first, second = both.documents
    assert first == memory.documents[0] and both.text == TEXT + "\n\n" + OTHER
    assert both.text[second.start : second.end] == OTHER
    assert second.first_token == len(memory.tokens)
    separator_and_text = reader.tokenizer.decode(both.tokens[second.first_token :].tolist())
    assert separator_and_text == "\n\n" + OTHER
    assert both.nll[second.first_token] > 0  # the seam is read like any other text


def test_spans_of_a_second_document_move_with_it(reader, memory, tmp_path):
    path = tmp_path / "book.md"
    path.write_text("# One\n\nFirst words.\n\n# Two\n\nSecond words.\n", "utf-8")
    alone, both = reader.ingest(path), reader.ingest(path, memory=memory)
    assert alone.text is not None and both.text is not None and alone.documents[0].spans
    shift = both.documents[1].start
    for a, b in zip(alone.documents[0].spans, both.documents[1].spans, strict=True):
        assert (b.start, b.end) == (a.start + shift, a.end + shift)
        assert alone.text[a.start : a.end] == both.text[b.start : b.end]


def test_a_memory_without_text_can_be_read_on(reader, memory, tmp_path):
    silent = Memory.load(memory.save(tmp_path / "silent.ttt", text=False))
    both = reader.ingest(text=OTHER, memory=silent)
    assert both.text is None and memories_equal(both, reader.ingest(text=OTHER, memory=memory))


def test_reading_on_never_changes_the_memory(reader, memory):
    kept = replace(
        memory,
        tokens=memory.tokens.clone(),
        nll=memory.nll.clone(),
        fast={i: {n: w.clone() for n, w in block.items()} for i, block in memory.fast.items()},
        window={i: (k.clone(), v.clone()) for i, (k, v) in memory.window.items()},
    )
    once = reader.ingest(text=OTHER, memory=memory)
    assert same(memory, kept) and not memories_equal(once, memory)
    assert same(reader.ingest(text=OTHER, memory=memory), once)


def test_a_memory_of_another_model_is_refused(reader, memory):
    other = TTTReader(reader.model, reader.tokenizer, reader.reading, name="other", fingerprint="cd" * 32)
    with pytest.raises(MemoryMismatchError, match=r"tiny.*other"):
        other.ingest(text=OTHER, memory=memory)
    with pytest.raises(MemoryMismatchError):
        other.continue_text(memory)


def test_a_memory_keeps_its_own_reading_parameters(reader, memory):
    reading = ReadingConfig(chunk=8, window=8, learn=False)
    other = TTTReader(reader.model, reader.tokenizer, reading, name="tiny", fingerprint="ab" * 32)
    assert same(other.ingest(text=OTHER, memory=memory), reader.ingest(text=OTHER, memory=memory))


def test_a_batch_is_one_by_one(reader):
    texts = [TEXT, OTHER, TEXT[:100], "x", TEXT + OTHER]
    documents = [Document.from_text(text, name=f"d{i}") for i, text in enumerate(texts)]
    reports: list[tuple[int, ChunkReport]] = []
    batch = reader.ingest_batch(documents, on_chunk=lambda i, r: reports.append((i, r)))
    for i, (read, document) in enumerate(zip(batch, documents, strict=True)):
        alone = reader.ingest(document)
        assert read.documents == alone.documents and read.text == alone.text and read.position == alone.position
        assert torch.equal(read.tokens, alone.tokens)
        torch.testing.assert_close(read.nll, alone.nll, atol=1e-5, rtol=1e-5)
        for block in alone.fast:
            for name in ("w1", "w2", "w3"):
                torch.testing.assert_close(read.fast[block][name], alone.fast[block][name], atol=1e-5, rtol=1e-5)
        assert [r.index for d, r in reports if d == i] == list(range(alone.chunks))
    assert reader.ingest_batch([]) == []


def test_without_learning(reader):
    reading = reader.reading.model_copy(update={"learn": False})
    plain = TTTReader(reader.model, reader.tokenizer, reading, name="tiny", fingerprint="ab" * 32)
    reports: list[ChunkReport] = []
    memory = plain.ingest(text=TEXT, on_chunk=reports.append)
    assert memory.fast == {} and memory.skipped == 0 and all(r.grad_norm == 0 for r in reports)
    learned = reader.ingest(text=TEXT)
    assert torch.equal(memory.nll[: CHUNK + 1], learned.nll[: CHUNK + 1])  # before the first update: the same model
    assert not torch.equal(memory.nll, learned.nll)
    both = plain.ingest(text=OTHER, memory=memory)
    assert both.fast == {} and len(both.nll) == len(both.tokens)


@pytest.mark.parametrize("text", ["x", "ab", "x" * CHUNK, "x" * (CHUNK + 1)])
def test_texts_around_a_chunk(reader, text, tmp_path):
    memory = reader.ingest(text=text)
    assert memory.chunks == (len(text) - 1) // CHUNK and len(memory.tokens) == len(text)
    assert (memory.nll[1:] > 0).all()
    both = reader.ingest(text=OTHER, memory=round_trip(memory, tmp_path))
    assert memories_equal(both, read_ids(reader, reader.tokenizer.encode(text + "\n\n" + OTHER)))


def test_nothing_is_left_behind_after_an_error(reader, memory):
    """A callback or a source that raises ends the reading; the reader and the memories are as before."""

    def broken() -> Iterator[str]:
        yield TEXT * 9
        raise OSError("the disk is gone")

    def stop(report: ChunkReport) -> None:
        raise RuntimeError("enough")

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises((OSError, DocumentError)):
        reader.ingest(broken())
    with pytest.raises(RuntimeError, match="enough"):
        reader.ingest(text=OTHER, memory=memory, on_chunk=stop)
    assert signal.getsignal(signal.SIGINT) is before
    assert same(reader.ingest(text=TEXT, name="ship"), memory)


@pytest.mark.parametrize("arguments", [{}, {"source": "a.txt", "text": "b"}])
def test_one_source_is_needed(reader, arguments):
    with pytest.raises(UsageError, match="source"):
        reader.ingest(**arguments)


NOT_A_MEMORY = [None, "book.ttt", Path("book.ttt"), 3, {}]


@pytest.mark.parametrize("given", NOT_A_MEMORY, ids=repr)
def test_what_is_no_memory(reader, given):
    calls = [
        lambda: reader.ask(given, "Who?"),
        lambda: reader.ask([given], "Who?") if given is not None else reader.ask([], "Who?"),
        lambda: reader.summarize(given),
        lambda: reader.continue_text(given),
        lambda: reader.expand(given),
        lambda: reader.compact(given),
        lambda: reader.check(given),
    ]
    if given is not None:
        calls += [
            lambda: reader.chat(given, [("user", "Who?")]),
            lambda: reader.ingest(text="x", memory=given),
        ]
    for call in calls:
        with pytest.raises(UsageError, match="memory"):
            call()


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("ask", {"question": None}),
        ("ask", {"question": ["Who?"]}),
        ("ask", {"question": "Who?", "route": 3}),
        ("ask", {"question": "Who?", "top_k": "3"}),
        ("ask", {"question": "Who?", "max_context": 0.5}),
        ("ask", {"question": "Who?", "temperature": "hot"}),
        ("ask", {"question": "Who?", "flavour": 1}),
        ("summarize", {"length": None}),
        ("summarize", {"seed": "x"}),
        ("continue_text", {"max_new_tokens": "many"}),
        ("continue_text", {"stop": 3}),
        ("chat", {"conversation": None}),
        ("chat", {"conversation": "Who?"}),
        ("chat", {"conversation": [("user",)]}),
        ("chat", {"conversation": [("user", None)]}),
        ("compact", {"max_bytes": "12 MB"}),
        ("compact", {"max_bytes": True}),
    ],
    ids=str,
)
def test_arguments_of_a_wrong_type(reader, memory, method, arguments):
    with pytest.raises(UsageError):
        getattr(reader, method)(memory, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": ["a.pdf", "b.pdf"]}, "names documents"),
        ({"source": [Path("a.txt")]}, "names documents"),
        ({"source": [Document.from_text("x")]}, "names documents"),
        ({"source": 5}, "int cannot be read"),
        ({"source": b"bytes"}, "bytes cannot be read"),
        ({"text": b"bytes"}, "text="),
        ({"text": "x", "name": 5}, "name="),
        ({"source": "x.txt", "password": 5}, "password="),
        ({"text": "x", "max_bytes": "10"}, "max_bytes="),
        ({"text": "x", "store": "memories"}, "MemoryStore"),
        ({"text": "x", "on_chunk": "print"}, "on_chunk="),
    ],
    ids=str,
)
def test_ingest_with_arguments_of_a_wrong_type(reader, arguments, message):
    with pytest.raises(UsageError, match=message):
        reader.ingest(**arguments)


@pytest.mark.parametrize("documents", [None, "a.pdf", ["a.pdf"], Document.from_text("x"), [None]], ids=str)
def test_a_batch_of_what_is_no_document(reader, documents):
    with pytest.raises(UsageError, match="Document"):
        reader.ingest_batch(documents)


def test_text_may_name_a_file(reader):
    """Only a list of nothing but names is taken for one."""
    assert reader.ingest(["Read the ", "file.txt"]).text == "Read the file.txt"
