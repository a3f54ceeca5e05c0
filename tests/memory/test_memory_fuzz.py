"""Random damage: a file loads as a sound memory or is refused with a MemoryFormatError; nothing else can happen."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memory_files import make_memory, pack, seal, unpack

from ttt_docs.errors import MemoryFormatError
from ttt_docs.memory import Memory, inspect_memory, memories_equal, summary

MEMORY = make_memory()
#: The same examples in every run; `hostile.py` makes many more, and others with each seed.
fuzz = settings(max_examples=250, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> bytes:
    return MEMORY.save(tmp_path_factory.mktemp("original") / "book.ttt").read_bytes()


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "book.ttt"


def load(target, raw: bytes) -> Memory | None:
    """The memory, if the file is accepted: it can then be saved, described and read again."""
    target.write_bytes(raw)
    try:
        inspect_memory(target)
    except MemoryFormatError:
        with pytest.raises(MemoryFormatError):  # what inspecting refuses, loading refuses
            Memory.load(target)
        return None
    try:
        loaded = Memory.load(target)
    except MemoryFormatError:
        return None
    json.dumps(summary(loaded))
    assert loaded.pending.numel() <= loaded.reading.chunk
    assert memories_equal(Memory.load(loaded.save(target)), loaded)
    return loaded


@fuzz
@given(data=st.data())
def test_flipped_bytes_and_cuts(original, target, data):
    raw = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw))) :]
    loaded = load(target, bytes(raw))
    assert loaded is None or memories_equal(loaded, MEMORY)  # the checksum finds every change that matters


@fuzz
@given(data=st.data())
def test_changed_bytes_under_a_right_checksum(original, target, data):
    """As a stranger would who knows the format: the checks behind the checksum must hold alone."""
    length = int.from_bytes(original[:8], "little")
    crc = b'"crc32":"' + unpack(original)[0]["__metadata__"]["crc32"].encode()
    header = bytearray(original[8 : 8 + length].replace(crc, b'"crc32":"00000000'))
    body = bytearray(original[8 + length :])
    for part in data.draw(st.lists(st.sampled_from([header, body]), min_size=1, max_size=3)):
        where = data.draw(st.integers(0, len(part) - 1))
        part[where] = data.draw(st.integers(0, 255) | st.sampled_from(b'0123456789[]{}",:-e'))
    load(target, seal(bytes(header), bytes(body)))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-1, 12) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def places(value, path=()):
    """Every place in a JSON value, as a path of keys."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


@fuzz
@given(data=st.data())
def test_edited_headers(original, target, data):
    outer, document, body = unpack(original)
    del outer["__metadata__"]
    both = {"table": outer, "document": document}
    for _ in range(data.draw(st.integers(1, 2))):
        *parents, last = data.draw(st.sampled_from([p for p in places(both) if len(p) > 1]))
        holder = both
        for key in parents:
            holder = holder[key]
        if data.draw(st.booleans()) or isinstance(holder, list):
            holder[last] = data.draw(json_values)
        elif data.draw(st.booleans()):
            holder[data.draw(st.text(max_size=5))] = holder.pop(last)
        else:
            del holder[last]
    load(target, pack(both["table"], both["document"], body))


@settings(fuzz, max_examples=100)
@given(raw=st.binary(max_size=64), length=st.integers(0, 64))
def test_any_bytes(target, raw, length):
    assert load(target, raw) is None
    assert load(target, length.to_bytes(8, "little") + b"{" + raw) is None


def test_the_unchanged_file_loads(original, target):
    loaded = load(target, original)
    assert loaded is not None and memories_equal(loaded, MEMORY)
    assert torch.equal(loaded.pending, MEMORY.tokens[8:])
