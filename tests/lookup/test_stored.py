"""The index as a memory keeps it: the same after loading, and whatever else is in its place is refused."""

from __future__ import annotations

import random
import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ttt_docs import Memory, MemoryFormatError
from ttt_docs.text import index as stored
from ttt_docs.text.index import PassageIndex, build, packed, unpacked

TEXT = "\n\n".join(
    f"On day {i} the keeper of north-gate counted {i * 37 % 101} gulls, and wrote it down." for i in range(60)
)
QUESTION = "How many gulls did the keeper count on day 17?"
HEAD = struct.calcsize("<5I")


def assert_same(a: PassageIndex, b: PassageIndex) -> None:
    assert (a.text, a.language, a.sentences, a.vocabulary) == (b.text, b.language, b.sentences, b.vocabulary)
    assert list(a.vocabulary) == list(b.vocabulary)
    for name in ("firsts", "lasts", "counts", "holders", "_ends", "_held_back"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="ab .!?\n\t1-é白ͅ", max_size=600))
def test_loading_gives_the_same_index(text):
    index = build(text)
    assert_same(unpacked(packed(index), text), index)


def test_it_comes_with_the_memory_and_is_used(tiny_reader, tmp_path, monkeypatch):
    memory = tiny_reader.ingest(text=TEXT, learn=False)
    loaded = Memory.load(memory.save(tmp_path / "m.ttt"))
    assert loaded.index == memory.index == packed(build(TEXT))
    expected = tiny_reader.ask(memory, QUESTION, route="lookup")
    stored._index_of.cache_clear()
    monkeypatch.setattr(stored, "build", lambda text: pytest.fail("built again"))
    answer = tiny_reader.ask(loaded, QUESTION, route="lookup")
    assert replace(answer, seconds=0.0) == replace(expected, seconds=0.0)


def test_no_index_without_text_nor_when_compact(tiny_reader, tmp_path):
    memory = tiny_reader.ingest(text=TEXT[:300], progress=False)
    assert memory.index is not None
    assert Memory.load(memory.save(tmp_path / "bare.ttt", text=False)).index is None
    assert memory.with_text(None).index is None
    small = memory.compact(tiny_reader)
    assert small.index is None and Memory.load(small.save(tmp_path / "small.ttt")).index is None
    assert tiny_reader.ask(small, QUESTION, route="lookup").route == "lookup"  # made again


def test_reading_on_makes_it_anew(tiny_reader):
    first = tiny_reader.ingest(text=TEXT[:300], progress=False)
    both = tiny_reader.ingest(text="The lamp was lit in 1911.", memory=first, progress=False)
    assert both.index == packed(build(both.text))


def test_the_index_of_another_text_is_passed_over(tiny_reader):
    memory = tiny_reader.ingest(text=TEXT, learn=False)
    other = replace(memory, text=TEXT.replace("gulls", "ships"))
    assert unpacked(memory.index, other.text) is None
    answer = tiny_reader.ask(other, "How many ships did the keeper count on day 17?", route="lookup")
    assert all(found.quote == other.text[found.start : found.end] for found in answer.evidence)


def changed(at: int, value: int) -> bytes:
    data = bytearray(packed(build(TEXT)))
    struct.pack_into("<i", data, at, value)
    return bytes(data)


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (4, 10**9, "fill"),
        (HEAD, -1, "spans"),
        (HEAD, 10**6, "spans"),
        (HEAD + 4, 10**8, "spans"),
        (HEAD + 8 * 60, 0, "add up"),
        (HEAD + 8 * 60, 2**31 - 1, "add up"),
    ],
)
def test_what_is_not_an_index_is_refused(tiny_reader, at, value, message):
    memory = replace(tiny_reader.ingest(text=TEXT, learn=False), index=changed(at, value))
    stored._index_of.cache_clear()
    with pytest.raises(MemoryFormatError, match=message):
        tiny_reader.ask(memory, QUESTION, route="lookup")


def test_sentences_that_are_not_there():
    index = build(TEXT)
    holders = HEAD + 8 * len(index.sentences) + 4 * len(index.vocabulary)
    for value, message in ((-1, "not there"), (len(index.sentences), "not there"), (59, "order")):
        with pytest.raises(MemoryFormatError, match=message):
            unpacked(changed(holders, value), TEXT)
    with pytest.raises(MemoryFormatError, match="cut short"):
        unpacked(b"", TEXT)
    data = packed(index)
    for broken, message in ((data[:-1] + b"\xff", "no text"), (data.replace(b"gull", b"day\n"), "not what it says")):
        with pytest.raises(MemoryFormatError, match=message):
            unpacked(broken, TEXT)


def test_any_damage_is_refused_or_harmless():
    """An index that passes every check can be searched and quotes the text, whatever it says."""
    data, chance = packed(build(TEXT)), random.Random(0)
    outcomes = {"refused": 0, "other": 0, "sound": 0}
    for _ in range(300):
        broken = bytearray(data)
        for _ in range(chance.choice((1, 1, 4))):
            broken[chance.randrange(len(data))] = chance.randrange(256)
        try:
            index = unpacked(bytes(broken), TEXT)
        except MemoryFormatError:
            outcomes["refused"] += 1
            continue
        outcomes["other" if index is None else "sound"] += 1
        if index is not None:
            assert all(0 <= index.span(p)[0] < index.span(p)[1] <= len(TEXT) for p in range(len(index)))
            assert np.isfinite(index.scores(dict.fromkeys(index.vocabulary, 1.0))).all()
    assert all(outcomes.values()), outcomes
