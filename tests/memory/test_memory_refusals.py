"""Every broken or foreign file is refused, with a sentence that names the file and what is wrong with it."""

from __future__ import annotations

import json
import os
import struct
import tracemalloc
from pathlib import Path

import pytest
import torch
from memory_files import TEXT, make_memory, pack, refused, rewrite, seal, unpack

from ttt_docs.errors import MemoryFormatError, MemoryMismatchError
from ttt_docs.memory import Memory, inspect_memory


@pytest.fixture
def path(tmp_path) -> Path:
    return make_memory().save(tmp_path / "book.ttt")


# Versions and models


@pytest.mark.parametrize(
    ("version", "words"),
    [(2, "pip install -U"), (10**30, "pip install -U"), (0, "does not exist"), ("1", "does not exist")]
    + [(v, "does not exist") for v in (None, True, 1.0, [1])],
)
def test_versions(path, version, words):
    rewrite(path, lambda outer, document, data: document.update(format_version=version, new_field=1))
    assert words in refused(path)


def test_another_model_is_named(path):
    with pytest.raises(MemoryMismatchError) as caught:
        Memory.load(path, expect_fingerprint="ef" * 32, expect_model="smollm2-135m")
    for words in (
        "(tiny,",
        "(smollm2-135m,",
        "abababab",
        "efefefef",
        "open it with the model tiny",
        "read the document again",
    ):
        assert words in str(caught.value)
    with pytest.raises(MemoryMismatchError, match="this one"):
        Memory.load(path, expect_fingerprint="")
    assert Memory.load(path, expect_fingerprint="ab" * 32).model == "tiny"


# The description


def set_reading(**values):
    return lambda outer, document, data: document["reading"].update(values)


def set_document(**values):
    return lambda outer, document, data: document.update(values)


def set_first(**values):
    return lambda outer, document, data: document["documents"][0].update(values)


def set_span(**values):
    return lambda outer, document, data: document["documents"][0]["spans"][1].update(values)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_document(position=6), "not a multiple of the chunk"),
        (set_document(position=12), "past its 10 tokens"),
        (set_document(position=-4), "'position'"),
        (set_document(position=4), "more than a chunk"),
        (set_document(position=8.5), "position"),
        (set_document(position="8"), "position"),
        (set_document(position=True), "position"),
        (set_document(position=10**400), "position"),
        (set_document(skipped=-1), "skipped"),
        (set_document(skipped=None), "skipped"),
        (set_document(model=3), "model"),
        (set_document(extra={"a": 1}), "extra.a"),
        (set_document(extra=[]), "extra"),
        (set_document(precision="int8"), "precision"),
        (set_document(precision="bfloat16"), "should be BF16"),
        (set_document(created="yesterday"), "created"),
        (set_document(created="2024-01-01T00:00:00"), "created"),
        (set_document(fast_blocks=[1, 1]), "repeated"),
        (set_document(fast_blocks=[-1, 2]), "fast_blocks.0"),
        (set_document(fast_blocks=[1]), "does not belong"),
        (set_document(fast_blocks=[1, 2, 3]), "fast/3/w1' is missing"),
        (set_document(window_blocks=[0, 1, 10**300]), "window_blocks.2"),
        (set_document(window_blocks="012"), "window_blocks"),
        (set_document(documents=[None]), "documents.0"),
        (set_document(documents={}), "documents"),
        (set_document(model="\ud800"), "not valid JSON"),
        (set_document(extra={"\ud800": ""}), "not valid JSON"),
        (set_reading(chunk=0), "reading.chunk"),
        (set_reading(chunk=7), "reading"),
        (set_reading(chunk=3, window=6), "not a multiple"),
        (set_reading(window=5), "keeps 7 keys"),
        (set_reading(inner_lr=-1), "inner_lr"),
        (set_reading(inner_lr_factors=[1.0] * 5), "not one or three numbers for each block"),
        (set_reading(inner_rule="adam"), "inner_rule"),
        (set_reading(momentum=0.5), "momentum"),
        (set_first(end=len(TEXT) + 1), "outside the text"),
        (set_first(start=13), "out of order"),
        (set_first(start=-1), "documents.0.start"),
        (set_first(end=13), "out of order"),
        (set_first(name=None), "name"),
        (set_first(complete="yes"), "complete"),
        (set_span(end=len(TEXT) + 1), "outside the text"),
        (set_span(start=-1), "out of order"),
        (set_span(start=13), "out of order"),
        (set_span(label=7), "documents.0.spans.1"),
        (set_span(label="\ud800"), "not valid JSON"),
        (set_span(end=True), "documents.0.spans.1"),
        (set_span(style="bold"), "documents.0.spans.1"),
        (set_first(spans=[{"kind": "page", "label": "1", "start": s, "end": 9} for s in (5, 4)]), "out of order"),
    ],
)
def test_wrong_descriptions(path, change, words):
    rewrite(path, change)
    assert words in refused(path)


def test_an_infinite_number_written_as_a_large_one(path):
    outer, document, data = unpack(path.read_bytes())
    text = json.dumps(document).replace('"inner_lr": 0.3', '"inner_lr": 1e999')
    path.write_bytes(pack(outer, text, data))
    assert "reading parameters is not a finite number" in refused(path)


def test_a_missing_field_is_named(path):
    for field in unpack(path.read_bytes())[1]:
        make_memory().save(path)
        rewrite(path, lambda outer, document, data, field=field: document.pop(field))
        assert field.replace("_", " ").split()[-1] in refused(path)


# The table of tensors


def set_tensor(tensor: str, **values):
    return lambda outer, document, data: outer[tensor].update(values)


def rename(old: str, new: str):
    return lambda outer, document, data: outer.update({new: outer.pop(old)})


def shapes(part: str, shape: list[int]):
    def change(outer, document, data):
        for name in outer:
            if name.startswith(part):
                outer[name]["shape"] = shape

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (rename("nll", "loss"), "'nll' is missing"),
        (rename("text", "words"), "'words' that does not belong"),
        (rename("fast/1/w1", "fast/01/w1"), "'fast/1/w1' is missing"),
        (rename("window/0/k", "window/3/k"), "'window/0/k' is missing"),
        (set_tensor("nll", dtype="F64"), "nll.dtype"),
        (set_tensor("nll", dtype=["F32"]), "nll.dtype"),
        (set_tensor("nll", dtype="I32"), "should be F32"),
        (set_tensor("tokens", dtype="F32"), "should be I32"),
        (set_tensor("nll", shape=[2, 5]), "should be F32 [10]"),
        (set_tensor("nll", shape=[9]), "does not fill"),
        (set_tensor("nll", shape=[-10]), "nll.shape.0"),
        (set_tensor("nll", shape=[2**70]), "nll.shape.0"),
        (set_tensor("nll", shape=[True]), "nll.shape.0"),
        (set_tensor("nll", shape=10), "nll.shape"),
        (set_tensor("nll", shape=None, extra=1), "nll.shape"),
        (set_tensor("nll", data_offsets=[40, 0]), "starts at byte 40 instead of"),
        (set_tensor("nll", data_offsets=[0]), "nll.data_offsets"),
        (set_tensor("nll", data_offsets=[0.0, 40.0]), "nll.data_offsets.0"),
        (set_tensor("nll", data_offsets=[0, 40]), "starts at byte 0 instead of"),
        (set_tensor("nll", data_offsets=[10**12, 10**12 + 40]), "starts at byte"),
        (set_tensor("fast/1/w2", shape=[3, 2]), "should be F32 [2, 3]"),
        (set_tensor("fast/1/w3", shape=[2, 3]), "should be F32 [3, 2]"),
        (set_tensor("fast/2/w1", shape=[1, 6]), "should be F32 [3, 2]"),
        (set_tensor("fast/2/w1", shape=[6]), "should be F32 [3, 2]"),
        (set_tensor("window/2/v", shape=[7, 1, 2]), "should be BF16 [1, 7, 2]"),
        (set_tensor("window/2/v", dtype="F32", shape=[1, 7, 1]), "should be BF16"),
        (shapes("window/", [1, 14, 1]), "keeps 14 keys"),
        (shapes("window/", [0, 7, 2]), "does not fill"),
        (set_tensor("text", shape=[1, 32]), "should be U8"),
        (lambda outer, document, data: outer.update(nll=None), "'nll'"),
        (lambda outer, document, data: outer.pop("text"), "bytes follow after its end"),
        (lambda outer, document, data: data.extend(b"\0" * 5), "5 bytes follow after its end"),
        (lambda outer, document, data: data.__delitem__(slice(-5, None)), "5 of its"),
    ],
)
def test_wrong_tables(path, change, words):
    rewrite(path, change)
    assert words in refused(path)


def test_a_window_of_whole_numbers(path):
    make_memory(window_dtype=torch.float32).save(path)

    def change(outer, document, data):
        for name in outer:
            if name.startswith("window/"):
                outer[name]["dtype"] = "I32"

    rewrite(path, change)
    assert "its window is I32; it should be F32 or BF16" in refused(path)


def test_sizes_of_zero_hide_no_large_ones(path):
    make_memory(window={0: (torch.zeros(1, 0, 2), torch.zeros(1, 0, 2))}).save(path)
    rewrite(path, shapes("window/", [2**61, 0, 2**61]))
    assert "impossible shape" in refused(path)


def test_a_wrong_table_is_refused_by_inspect_too(path):
    rewrite(path, rename("nll", "loss"))
    with pytest.raises(MemoryFormatError, match="'nll' is missing"):
        inspect_memory(path)


# The tensors' values


@pytest.mark.parametrize("name", ["fast/1/w2", "window/2/k", "nll"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinite_values(path, name, value):
    def change(outer, document, data):
        dtype = torch.bfloat16 if outer[name]["dtype"] == "BF16" else torch.float32
        stored = bytes(torch.tensor([value], dtype=dtype).view(torch.uint8).tolist())
        end = outer[name]["data_offsets"][1]
        data[end - len(stored) : end] = stored

    rewrite(path, change)
    assert f"the tensor {name} holds NaN or infinite values" in refused(path)


def test_negative_tokens_and_broken_text(path):
    def at(name, value):
        def change(outer, document, data):
            begin = outer[name]["data_offsets"][0]
            data[begin : begin + len(value)] = value

        return change

    rewrite(path, at("tokens", b"\xff\xff\xff\xff"))
    assert "negative token ids" in refused(path)
    rewrite(make_memory().save(path), at("text", b"K\xc3("))
    assert "not valid UTF-8 at byte 1" in refused(path)


# Damage on the way


def test_every_truncation_is_refused(path):
    raw = path.read_bytes()
    for length in range(0, len(raw), 11):
        path.write_bytes(raw[:length])
        refused(path)


def test_trailing_bytes_are_refused(path):
    path.write_bytes(path.read_bytes() + b"\n")
    assert "1 bytes follow" in refused(path)


def test_a_flipped_bit_in_any_tensor_or_the_description_is_noticed(path):
    raw = path.read_bytes()
    for place in [*range(len(raw) - 1, 8, -23)]:
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        refused(path)


def test_a_missing_or_doubled_checksum(path):
    outer, document, data = unpack(path.read_bytes())
    for metadata in ({}, {"crc32": 1}, {"crc32": "00000000", "crc33": ""}, {"crc32": 'x"é'}):
        outer["__metadata__"] = {"ttt_docs": json.dumps(document), **metadata}
        path.write_bytes(seal(json.dumps(outer, separators=(",", ":")).encode(), data))
        assert "no checksum" in refused(path)


def test_a_file_that_shrinks_while_it_is_read(path, monkeypatch):
    make_memory(text=TEXT * 10_000).save(path)  # larger than what one read fetches ahead

    def shrink(*arguments):
        os.truncate(path, path.stat().st_size - 60)

    monkeypatch.setattr("ttt_docs.memory.checks.check_layout", shrink)
    assert "became shorter" in refused(path)


def test_a_tensor_that_does_not_fit_into_memory(path, monkeypatch):
    def full(*arguments, **named):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch, "empty", full)
    assert "do not fit into memory. Free some memory." in refused(path)


def test_large_claims_allocate_nothing(path):
    claims = [
        struct.pack("<Q", 2**40),
        struct.pack("<Q", 16 * 1024 * 1024),
        rewrite(path, set_tensor("nll", shape=[2**40], data_offsets=[0, 2**42])).read_bytes(),
    ]
    for raw in claims:
        path.write_bytes(raw)
        tracemalloc.start()
        refused(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1_000_000


@pytest.mark.parametrize("where", ["table", "description"])
def test_a_header_of_many_small_lists_is_refused_before_it_is_parsed(path, where):
    outer, _, data = unpack(path.read_bytes())
    many = '{"x":[' + "[]," * 600_000 + "[]]}"
    if where == "table":
        path.write_bytes(seal(many.encode(), data))
    else:
        path.write_bytes(pack(outer, many, data))
    tracemalloc.start()
    message = refused(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "more than 250,000 lists" in message
    assert peak < 20_000_000


def test_a_shape_of_a_thousand_dimensions_makes_no_long_message(path):
    rewrite(path, set_tensor("nll", shape=[1] * 1000))
    assert len(refused(path)) < 400


def test_messages_carry_no_control_characters(path):
    rewrite(path, rename("text", "\x1b[31mred\n" + "x" * 1000))
    assert len(refused(path)) < 400
