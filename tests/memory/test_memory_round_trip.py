"""What is saved comes back, bit for bit."""

from __future__ import annotations

import stat
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_files import bits, make_memory, unpack
from safetensors import safe_open

from ttt_docs import __version__
from ttt_docs.errors import MemoryFormatError, UsageError
from ttt_docs.memory import Memory, ReadDocument, Span, inspect_memory, memories_equal
from ttt_docs.model.config import ReadingConfig
from ttt_docs.weights.lowrank import LowRank

#: A 3 x 3 matrix as the sum of 4 terms.
TOO_MANY = LowRank(
    left8=torch.ones(2, 3, dtype=torch.int8),
    right8=torch.ones(2, 3, dtype=torch.int8),
    scale8=torch.ones(2),
    left4=torch.ones(2, 2, dtype=torch.uint8),
    right4=torch.ones(2, 2, dtype=torch.uint8),
    scale4=torch.ones(2),
)
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("memories")


def assert_same(a: Memory, b: Memory) -> None:
    assert memories_equal(a, b)
    for field in ("model", "fingerprint", "reading", "position", "text", "documents", "skipped", "extra"):
        assert getattr(a, field) == getattr(b, field), field
    assert list(a.fast) == list(b.fast) and list(a.window) == list(b.window)


@st.composite
def documents(draw, length: int) -> tuple[ReadDocument, ...]:
    cuts = sorted(draw(st.lists(st.integers(0, length), max_size=4)))
    found = []
    for start, end in pairwise(cuts):
        edges = sorted(draw(st.lists(st.integers(start, end), max_size=4)))
        spans = tuple(Span(draw(st.sampled_from(["page", "chapter"])), draw(names), s, e) for s, e in pairwise(edges))
        sha256 = draw(st.none() | st.just("0f" * 32))
        found.append(ReadDocument(draw(names), start, end, sha256, draw(st.booleans()), spans))
    return tuple(found)


@st.composite
def memories(draw) -> Memory:
    chunk, chunks = draw(st.integers(1, 5)), draw(st.integers(0, 3))
    reading = ReadingConfig(
        chunk=chunk,
        window=chunk + draw(st.integers(0, 3)),
        sinks=draw(st.integers(0, 2)),
        learn=draw(st.booleans()),
        inner_lr=draw(st.floats(0, 10)),
        inner_clip=draw(st.floats(0, 10)),
    )
    tokens = chunk * chunks + draw(st.integers(0, chunk - 1))
    dim, mlp, heads, head = (draw(st.integers(1, 4)) for _ in range(4))
    cached = draw(st.integers(0, reading.window + reading.sinks))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    blocks = draw(st.lists(st.integers(0, 20), unique=True, max_size=3))
    torch.manual_seed(draw(st.integers(0, 2**32)))
    scale = draw(st.sampled_from([1e-40, 1.0, 1e30]))  # denormal numbers too
    text = draw(st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
    return Memory(
        model=draw(names),
        fingerprint=draw(names),
        reading=reading,
        fast={
            b: {n: torch.randn((dim, mlp) if n == "w2" else (mlp, dim)) * scale for n in ("w1", "w2", "w3")}
            for b in blocks
        },
        window={b: tuple(torch.randn(heads, cached, head).to(dtype) for _ in "kv") for b in blocks},
        position=chunk * chunks,
        tokens=torch.randint(0, 2**31 - 1, (tokens,), dtype=torch.int32),
        nll=torch.rand(tokens) * 20,
        text=text,
        documents=draw(documents(len(text) if text is not None else 50)),
        skipped=draw(st.integers(0, 5)),
        extra=draw(st.dictionaries(names, names, max_size=2)),
    )


@settings(max_examples=100, deadline=None)
@given(memory=memories())
def test_every_memory_comes_back_bit_for_bit(folder, memory):
    assert_same(Memory.load(memory.save(folder / "any.ttt")), memory)


def test_negative_zero_and_denormals_keep_their_bits(tmp_path):
    memory = make_memory()
    odd = torch.tensor([-0.0, 1e-45, -3.4e38, 1.1754942e-38, 0.0, -1e-45]).reshape(3, 2)
    memory.fast[1]["w1"] = odd
    assert bits(Memory.load(memory.save(tmp_path / "m.ttt")).fast[1]["w1"]) == bits(odd)


def test_views_and_tensors_with_gradients_are_saved_by_value(tmp_path):
    memory = make_memory()
    memory.fast[1]["w2"] = memory.fast[1]["w1"].t().requires_grad_()
    loaded = Memory.load(memory.save(tmp_path / "m.ttt"))
    assert torch.equal(loaded.fast[1]["w2"], memory.fast[1]["w2"]) and not loaded.fast[1]["w2"].requires_grad


def test_loaded_tensors_are_writable_and_outlive_the_file(tmp_path):
    path = make_memory().save(tmp_path / "m.ttt")
    loaded = Memory.load(path)
    path.unlink()
    loaded.fast[1]["w1"].add_(1.0)
    assert memories_equal(replace(loaded, fast=make_memory().fast), make_memory())


def test_the_safetensors_library_reads_the_file(tmp_path):
    memory = make_memory()
    with safe_open(memory.save(tmp_path / "m.ttt"), framework="pt") as file:
        assert set(file.metadata()) == {"ttt_docs", "crc32"}
        assert torch.equal(file.get_tensor("fast/2/w3"), memory.fast[2]["w3"])
        assert torch.equal(file.get_tensor("window/0/v"), memory.window[0][1])
        assert bytes(file.get_tensor("text").tolist()).decode() == memory.text


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_tensor_is_aligned(tmp_path, precision, dtype):
    path = make_memory(window_dtype=dtype).save(tmp_path / "m.ttt", precision=precision)
    outer, _, data = unpack(path.read_bytes())
    assert (path.stat().st_size - len(data)) % 8 == 0
    sizes = {"F32": 4, "I32": 4, "BF16": 2, "U8": 1}
    assert all(e["data_offsets"][0] % sizes[e["dtype"]] == 0 for n, e in outer.items() if n != "__metadata__")


def test_bfloat16_rounds_the_fast_weights_and_nothing_else(tmp_path):
    memory = make_memory(window_dtype=torch.float32)
    path = memory.save(tmp_path / "m.ttt", precision="bfloat16")
    loaded = Memory.load(path)
    rounded = {b: {n: w.bfloat16().float() for n, w in block.items()} for b, block in memory.fast.items()}
    assert_same(loaded, replace(memory, fast=rounded))
    assert loaded.fast[1]["w1"].dtype == torch.float32
    assert inspect_memory(path)["bytes"]["fast"] * 2 == sum(w.nbytes for b in memory.fast.values() for w in b.values())
    # Rounded once, it stays: saving the loaded memory again loses nothing more.
    assert_same(Memory.load(loaded.save(tmp_path / "n.ttt", precision="bfloat16")), loaded)


def test_text_can_be_left_out(tmp_path):
    memory = make_memory()
    path = memory.save(tmp_path / "m.ttt", text=False)
    assert b"Ishmael" not in path.read_bytes()
    assert_same(Memory.load(path), memory.with_text(None))


def test_no_text_and_empty_text_differ(tmp_path):
    for text in (None, ""):
        memory = make_memory(text=text, documents=())
        assert Memory.load(memory.save(tmp_path / "m.ttt")).text == text


def test_names_that_are_not_unicode_can_be_saved(tmp_path):
    document = ReadDocument("caf\udce9.pdf", 0, 3, spans=(Span("page", "\udce9", 0, 3),), metadata={"title": "\udce9"})
    memory = make_memory(model="mod\udce9le", documents=(document,), extra={"note": "\udce9t\udce9"})
    loaded = Memory.load(memory.save(tmp_path / "m.ttt"))
    (read,) = loaded.documents
    assert (read.name, read.spans[0].label, read.metadata) == ("caf?.pdf", "?", {"title": "?"})
    assert (loaded.model, loaded.extra) == ("mod?le", {"note": "?t?"})


def test_a_new_file_follows_the_umask_and_a_replaced_one_keeps_its_mode(tmp_path):
    path = make_memory().save(tmp_path / "m.ttt")
    (tmp_path / "plain").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    path.chmod(0o606)
    make_memory(1).save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o606


def test_a_link_is_followed(tmp_path):
    (tmp_path / "disk").mkdir()
    link = tmp_path / "m.ttt"
    link.symlink_to(tmp_path / "disk" / "real.ttt")
    assert make_memory().save(link) == link
    assert link.is_symlink() and memories_equal(Memory.load(tmp_path / "disk" / "real.ttt"), make_memory())


def test_the_file_says_which_package_wrote_it(tmp_path):
    facts = inspect_memory(make_memory().save(tmp_path / "m.ttt"))
    assert facts["package_version"] == __version__ and facts["created"].endswith("+00:00")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"position": 6}, "not a multiple of the chunk"),
        ({"position": 4}, "more than a chunk"),
        ({"nll": torch.zeros(9)}, r"nll is F32 \[9\]"),
        ({"nll": torch.full((10,), torch.nan)}, "NaN"),
        ({"tokens": torch.full((10,), -1, dtype=torch.int32)}, "negative token"),
        ({"tokens": torch.zeros(10, dtype=torch.int64)}, "int64"),
        ({"text": "a\ud800"}, "Unicode at character 1"),
        ({"text": "short"}, "outside the text"),
        ({"model": None}, "cannot be saved"),
        ({"fast": {1: {}}}, "cannot be saved"),
        ({"fast": {-1: make_memory().fast[1]}}, "fast_blocks"),
        ({"fast": {1: dict.fromkeys(("w1", "w2", "w3"), torch.zeros(0, 0))}}, "impossible shape"),
        ({"window": {0: (torch.zeros(0, 7, 2), torch.zeros(0, 7, 2))}}, "impossible shape"),
        ({"window": {0: (torch.zeros(1, 7, 0), torch.zeros(1, 7, 0))}}, "impossible shape"),
        ({"extra": {"page": 3}}, "cannot be saved"),
        ({"reading": ReadingConfig(inner_lr=float("inf"))}, "cannot be saved"),
        ({"model": "x" * 17_000_000}, "at most"),
        ({"fast": {}, "window": {}, "change": {1: dict.fromkeys(("w1", "w2", "w3"), TOO_MANY)}}, "4 terms, more than"),
    ],
)
def test_a_memory_that_could_not_be_loaded_is_not_saved(tmp_path, changes, words):
    with pytest.raises(MemoryFormatError, match=words):
        make_memory(**changes).save(tmp_path / "m.ttt")
    assert not list(tmp_path.iterdir())


def test_weights_that_bfloat16_cannot_hold_are_refused(tmp_path):
    memory = make_memory()
    memory.fast[1]["w1"][0, 0] = torch.finfo(torch.float32).max
    with pytest.raises(MemoryFormatError, match="infinite"):
        memory.save(tmp_path / "m.ttt", precision="bfloat16")
    assert not list(tmp_path.iterdir())
    memory.save(tmp_path / "m.ttt")


def test_an_unknown_precision_is_refused(tmp_path):
    with pytest.raises(UsageError, match="float32, bfloat16"):
        make_memory().save(tmp_path / "m.ttt", precision="int8")  # type: ignore[arg-type]
