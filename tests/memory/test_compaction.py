"""Compact memories: the file's size, how close they are, and what a damaged one gives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_files import pack, refused, rewrite, unpack

from ttt_docs import Memory, MemoryMismatchError, MemoryStore, TTTDocsError, TTTReader, UsageError
from ttt_docs.kernels.inner_step.layout import NAMES
from ttt_docs.memory import inspect_memory, memories_equal, summary
from ttt_docs.memory.packing import pack as pack_bytes
from ttt_docs.memory.packing import pack_numbers, unpack_numbers
from ttt_docs.memory.packing import unpack as unpack_bytes
from ttt_docs.reading.restoring import snapshot, state_of
from ttt_docs.store.store import key_of
from ttt_docs.weights.lowrank import compress, term_bytes

TEXT = "\n".join(f"{day}. The ship lay still; the captain counted {day * 37 % 101} waves." for day in range(1, 13))
ROOM = 1_000_000  # more than everything of the tiny model takes


@pytest.fixture(scope="module")
def memory(tiny_reader) -> Memory:
    return tiny_reader.ingest(text=TEXT, name="ship")


@pytest.fixture(scope="module")
def compact(tiny_reader, memory) -> Memory:
    return memory.compact(tiny_reader, ROOM)


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), seed=st.integers(0, 1000), max_bytes=st.integers(0, 400))
@settings(max_examples=60, deadline=None)
def test_the_budget_holds_and_more_bytes_are_closer(rows, columns, seed, max_bytes):
    noise = torch.Generator().manual_seed(seed)
    changes = {3: {n: torch.randn(rows, columns, generator=noise) for n in ("w1", "w3")}}
    low = compress(changes, max_bytes)[3]
    assert sum(part.nbytes for part in low.values()) <= max_bytes

    def off(bytes_: int) -> float:
        found = compress(changes, bytes_)[3]
        return sum(float((found[n].expand() - changes[3][n]).square().sum()) for n in found)

    assert off(10**6) <= off(0) == pytest.approx(sum(float(c.square().sum()) for c in changes[3].values()), rel=1e-5)


def test_a_matrix_of_low_rank_is_kept_closely():
    noise = torch.Generator().manual_seed(0)
    change = torch.randn(96, 3, generator=noise) @ torch.randn(3, 64, generator=noise)
    low = compress({0: {"w1": change}}, 3 * term_bytes(96, 64, 8))[0]["w1"]
    assert low.left8.shape == (3, 96) and low.nbytes == 3 * (96 + 64 + 4)
    assert float((low.expand() - change).norm() / change.norm()) < 0.01
    narrow = compress({0: {"w1": change}}, 3 * term_bytes(96, 64, 8) - 1)[0]["w1"]
    assert narrow.scale8.numel() < 3


def test_no_change_takes_no_bytes():
    low = compress({0: {"w1": torch.zeros(4, 6)}}, 1000)[0]["w1"]
    assert low.nbytes == 0 and torch.equal(low.expand(), torch.zeros(4, 6))


def test_it_is_small_and_says_what_it_holds(tiny_reader, memory, tmp_path):
    budget = 80_000
    small = memory.compact(tiny_reader, budget)
    path = small.save(tmp_path / "small.ttt")
    assert path.stat().st_size <= budget < memory.save(tmp_path / "exact.ttt").stat().st_size
    page = inspect_memory(path)
    assert page["precision"] == "compact" and page["tokens"] == len(memory.tokens)
    assert page["fast"]["w1"] == [48, 32] and page["fast"]["w2"] == [32, 48] and sum(page["fast"]["terms"].values())
    assert summary(small)["mean_nll"] == pytest.approx(summary(memory)["mean_nll"], abs=1e-3)
    assert sum(page["bytes"][part] for part in ("header", "fast", "tokens", "nll", "text")) == page["bytes"]["file"]


def test_file_and_store_give_it_back(tiny_reader, memory, compact, tmp_path):
    loaded = Memory.load(compact.save(tmp_path / "a.ttt"))
    assert loaded.fast == {} and loaded.window == {} and loaded.text == memory.text
    assert torch.equal(loaded.tokens, memory.tokens) and loaded.documents == memory.documents
    assert torch.allclose(loaded.nll, memory.nll, atol=5e-3)
    assert memories_equal(tiny_reader.expand(loaded), tiny_reader.expand(compact))
    store = MemoryStore(tmp_path)
    assert store.get(store.put(compact)).change is not None and len(store.list()) == 1
    assert not memories_equal(compact, memory.compact(tiny_reader, 80_000))
    exact = tiny_reader.ingest(text=TEXT, store=store)  # where the exact one is promised, the compact one is no help
    assert exact.change is None and memories_equal(exact, memory) and len(store.list()) == 2
    assert store.get(key_of(compact)).change is not None and store.get(key_of(exact)).change is None
    old = tmp_path / f"{key_of(exact)}.ttt"  # release 0.1.0 kept it under the exact one's key
    compact.save(old)
    assert memories_equal(tiny_reader.ingest(text=TEXT, store=store), memory)
    assert store.get(key_of(exact)).change is None
    assert Memory.load(compact.save(tmp_path / "b.ttt", text=False)).text is None


def test_expanded_it_is_close_to_the_exact_one(tiny_reader, memory, compact):
    whole = tiny_reader.expand(compact)
    assert tiny_reader.expand(whole) is whole
    for block, weights in memory.fast.items():
        for name, exact in weights.items():
            initial = getattr(tiny_reader.model.block(block).prime_mlp, name)
            assert float((whole.fast[block][name] - exact).norm() / (exact - initial).norm()) < 0.1
    for block in range(4):
        for mine, exact in zip(whole.window[block], memory.window[block], strict=True):
            assert mine.shape == exact.shape
            # Below the first prime MLP nothing depends on what was learned; this text is shorter than a window.
            assert torch.allclose(mine, exact, atol=1e-4) if block < 2 else mine.isfinite().all()


@pytest.mark.parametrize(("window", "sinks"), [(48, 4), (48, 0), (16, 20)])
def test_with_exact_fast_weights_only_the_window_differs(tiny_reader, window, sinks):
    """Where nothing was learned, even the window is the same up to rounding, but for what lies long before it."""
    reading = tiny_reader.reading.model_copy(update={"window": window, "sinks": sinks, "learn": False})
    reader = TTTReader(tiny_reader.model, tiny_reader.tokenizer, reading, name="tiny", fingerprint="ab" * 32)
    memory = reader.ingest(text=TEXT)
    whole = reader.expand(memory.compact(reader, ROOM))
    assert whole.fast == {} and whole.position == memory.position
    for mine, exact in zip(whole.window[0], memory.window[0], strict=True):
        assert mine.shape == exact.shape and torch.allclose(mine, exact, atol=1e-4)
    for block in range(1, 4):
        assert whole.window[block][0].shape == memory.window[block][0].shape
        assert torch.allclose(whole.window[block][0][:, :sinks], memory.window[block][0][:, :sinks], atol=1e-4)


def test_whatever_takes_a_memory_takes_a_compact_one(tiny_reader, memory, compact):
    assert tiny_reader.continue_text(compact, 5, temperature=0) == tiny_reader.continue_text(
        tiny_reader.expand(compact), 5, temperature=0
    )
    assert tiny_reader.ask(compact, "Who counted?", max_new_tokens=4).text is not None
    on = tiny_reader.ingest(text="More of it. " * 10, memory=compact)
    assert on.change is None and on.position > compact.position and on.fast.keys() == {2, 3}


def test_what_cannot_be_compacted(tiny_reader, memory, compact):
    with pytest.raises(UsageError, match="compact already"):
        compact.compact(tiny_reader)
    with pytest.raises(UsageError, match="too small"):
        memory.compact(tiny_reader, 100)
    with pytest.raises(UsageError, match="precision"):
        compact.save("never.ttt", precision="bfloat16")
    other = TTTReader(tiny_reader.model, tiny_reader.tokenizer, tiny_reader.reading, name="x", fingerprint="12" * 32)
    with pytest.raises(MemoryMismatchError):
        memory.compact(other)


def test_a_memory_that_has_read_nothing(tiny_reader):
    short = tiny_reader.ingest(text="Hi.")
    whole = tiny_reader.expand(short.compact(tiny_reader))
    assert whole.position == 0 and torch.equal(whole.tokens, short.tokens)
    assert all(torch.equal(whole.fast[b][n], short.fast[b][n]) for b in short.fast for n in NAMES)


def test_shapes_of_another_model_are_refused_before_they_are_expanded(tiny_reader, compact, tmp_path):
    def widen(outer, document, data):
        for name, entry in outer.items():
            if name.startswith("change/"):
                entry["shape"][0] = 0  # no terms, and a million times as many hidden units
                if (name.endswith(("left8", "left4")) and "/w2/" not in name) or "/w2/right" in name:
                    entry["shape"][1] = 2**30 if name.endswith("8") else 2**29

    path = compact.save(tmp_path / "a.ttt")
    outer, document, body = unpack(path.read_bytes())
    del outer["__metadata__"]
    widen(outer, document, body)
    kept, place = bytearray(), 0
    for entry in sorted(outer.values(), key=lambda entry: entry["data_offsets"]):
        begin, end = entry["data_offsets"] if entry["shape"][0] else (0, 0)
        kept += body[begin:end]
        entry["data_offsets"] = [place, place := place + end - begin]
    path.write_bytes(pack(outer, document, bytes(kept)))
    with pytest.raises(MemoryMismatchError, match="shapes"):
        tiny_reader.expand(Memory.load(path))
    assert state_of(tiny_reader.model, compact).position == compact.position


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o, d, b: (d["packed"].update(tokens=2**30), d.update(position=2**30)), "would unpack"),
        (lambda o, d, b: d["packed"].update(tokens=d["packed"]["tokens"] - 1), "does not unpack"),
        (lambda o, d, b: d["packed"].update(text_bytes=None), "do not agree"),
        (lambda o, d, b: d["packed"].update(text_bytes=5), "does not unpack"),
        (lambda o, d, b: d.update(window_blocks=[0]), "holds a window"),
        (lambda o, d, b: d.update(packed=None), "is missing"),
        (lambda o, d, b: o["change/2/w1/left8"].update(shape=o["change/2/w1/left8"]["shape"][::-1]), "should be"),
        (lambda o, d, b: b.__setitem__(slice(*o["text"]["data_offsets"]), b"x" * 10_000), None),
    ],
)
def test_damage_is_named(compact, tmp_path, change, message):
    path = compact.save(tmp_path / "a.ttt")
    if message is None:

        def change(o, d, b):
            begin, end = o["text"]["data_offsets"]
            b[begin:end] = bytes(end - begin)

        message = "cannot be unpacked"
    assert message in refused(rewrite(path, change))


def test_scales_that_would_overflow_are_refused(compact, tmp_path):
    def change(outer, document, body):
        begin, end = outer["change/2/w1/scale8"]["data_offsets"]
        body[begin:end] = torch.full(((end - begin) // 4,), 3e38).numpy().tobytes()

    assert "too large" in refused(rewrite(compact.save(tmp_path / "a.ttt"), change))


@given(data=st.binary(max_size=200), repeat=st.sampled_from([1, 3, 10_000]))
@settings(max_examples=60, deadline=None)
def test_packing(data, repeat):
    packed = pack_bytes(data * repeat)
    assert unpack_bytes("text", packed, len(data) * repeat).numpy().tobytes() == data * repeat
    numbers = torch.randint(-(2**31), 2**31 - 1, (len(data),), dtype=torch.int32)
    assert torch.equal(unpack_numbers("n", pack_numbers(numbers), len(data), torch.int32), numbers)


def test_no_memory_is_taken_of_a_state_that_an_exception_tore(tiny_reader, memory, monkeypatch):
    state = state_of(tiny_reader.model, memory)

    monkeypatch.setattr(state, "_prefix_end", state.position + memory.reading.chunk)  # as within a piece of chunks
    with pytest.raises(TTTDocsError, match="start again from the last memory"):
        snapshot(state)
