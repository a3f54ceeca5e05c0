"""Reading without the host: the same results as plain reading, no synchronization, graphs on a device."""

import pytest
import torch
from tiny_model import TINY, tiny_decoder

pytest.importorskip("triton")

from ttt_docs.kernels.attention import triton_tiles as attention
from ttt_docs.kernels.attention.triton import window_attention_triton
from ttt_docs.kernels.attention.triton_tiles import Tiles
from ttt_docs.kernels.backends import REFERENCE, Kernels
from ttt_docs.kernels.inner_step import triton as sgd
from ttt_docs.kernels.inner_step.definition import Rule, Step
from ttt_docs.kernels.inner_step.layout import PrimeWeights, joined
from ttt_docs.model.config import ReadingConfig
from ttt_docs.model.decoder import Decoder
from ttt_docs.ttt.inner_loop import InnerLoop, learn_chunk
from ttt_docs.ttt.prefix import run_group
from ttt_docs.ttt.state import AHEAD, ChunkResult, ReadingState

CHUNK = 16
#: The definitions with the inner step on the device: reading then goes the way it goes on a GPU.
STEPS = REFERENCE.replace(inner_step=sgd.inner_step_triton, undo_step=sgd.undo_step_triton, asynchronous=True)


@pytest.fixture(autouse=True)
def small_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        monkeypatch.setattr(sgd, "CHUNK", 1024)
        monkeypatch.setattr(sgd, "BLOCK", 512)


#: Rates for w1, w2, w3 of every suffix block.
LEARNED = tuple(0.5 + 0.3 * i for i in range(3 * TINY.suffix_blocks))


def reading(**changes: object) -> ReadingConfig:
    return ReadingConfig(chunk=CHUNK, window=24, sinks=3, inner_rule="normalized", inner_lr=0.3).model_copy(
        update=changes
    )


def read(state: ReadingState, tokens: torch.Tensor, *pieces: int) -> list[ChunkResult]:
    """Reads pieces of so many chunks."""
    results: list[ChunkResult] = []
    for count in pieces:
        start = len(results) * CHUNK
        results += state.read(tokens[:, start : start + count * CHUNK + 1])
    return results


def tokens_for(chunks: int, batch: int = 1) -> torch.Tensor:
    return torch.randint(3, 300, (batch, chunks * CHUNK + 1))


def assert_same(found: list[ChunkResult], expected: list[ChunkResult]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        for name in ("nll", "loss", "grad_norm", "clip"):
            torch.testing.assert_close(getattr(mine, name), getattr(theirs, name), atol=2e-5, rtol=2e-5)
        assert torch.equal(mine.skipped, theirs.skipped) and mine.index == theirs.index


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"inner_rule": "sgd", "sinks": 0},
        {"inner_rule": "balanced", "inner_lr_factors": LEARNED},
        {"inner_lr_factors": (0.5, 1.5, 0.0)[: TINY.suffix_blocks]},
        {"guard": None},
        {"guard": -100.0},
        {"learn": False},
    ],
)
def test_the_same_as_plain_reading(changes: dict[str, object]) -> None:
    model, tokens = tiny_decoder(), tokens_for(5, batch=2)
    plain = ReadingState(model, reading(**changes), batch=2, kernels=REFERENCE, piece=5)
    ours = ReadingState(model, reading(**changes), batch=2, kernels=STEPS, piece=5)
    expected = read(plain, tokens, 5)
    assert_same(read(ours, tokens, 3, 2), expected)
    if changes.get("guard") == -100:  # whatever the update gains, it is not enough
        assert all(bool(result.skipped.all()) for result in expected)
    torch.testing.assert_close(ours.fast, plain.fast, atol=2e-5, rtol=2e-5)


def test_going_on_is_bit_for_bit_reading_in_one_go() -> None:
    model, tokens = tiny_decoder(), tokens_for(6)
    whole = ReadingState(model, reading(), kernels=STEPS, piece=16)
    parts = ReadingState(model, reading(), kernels=STEPS, piece=16)
    expected, found = read(whole, tokens, 6), read(parts, tokens, 1, 4, 1)
    assert all(torch.equal(a.nll, b.nll) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("read_before", [1, 2, 3])
def test_prefix_blocks_give_the_same_bits_wherever_reading_began(
    read_before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several chunks attend in one launch of Triton's kernel; in the second of these sinks come into sight."""
    monkeypatch.setattr(attention, "WIDE_TILES", {kernel: {256: Tiles(16, 16, 4, 1)} for kernel in attention.TILES})
    kernels = REFERENCE.replace(name="triton", window_attention=window_attention_triton)
    model, tokens = tiny_decoder(), tokens_for(4)[:, :-1]
    whole = ReadingState(model, reading(), kernels=kernels)
    parts = ReadingState(model, reading(), kernels=kernels)
    cut = read_before * CHUNK
    with torch.no_grad():
        expected = run_group(whole.loop, whole.caches, tokens, 0, AHEAD)
        run_group(parts.loop, parts.caches, tokens[:, :cut], 0, AHEAD)
        found = run_group(parts.loop, parts.caches, tokens[:, cut:], read_before, AHEAD)
    assert torch.equal(found[:, cut:], expected[:, cut:])


def test_ranges_are_joined_where_sinks_stand_still() -> None:
    positions = tiny_decoder().positions(0, 6 * CHUNK, 24, 3, CHUNK)  # the window passes the sinks in the second chunk
    assert positions.joined().ranges == ((0, CHUNK), (CHUNK, 2 * CHUNK), (2 * CHUNK, 6 * CHUNK))
    assert tiny_decoder().positions(0, 6 * CHUNK, 24, 0, CHUNK).joined().ranges == ((0, 6 * CHUNK),)


def test_chunks_of_a_piece_have_the_places_they_have_alone() -> None:
    model = tiny_decoder()
    piece = model.positions(0, 6 * CHUNK, 24, 3, CHUNK)
    for i in range(6):
        found, expected = piece.within(i * CHUNK, (i + 1) * CHUNK), model.positions(i * CHUNK, CHUNK, 24, 3)
        assert found.ranges == expected.ranges
        torch.testing.assert_close(found.rotation, expected.rotation)
        for mine, theirs in zip(found.sinks, expected.sinks, strict=True):
            assert (mine is None) == (theirs is None)
            if mine is not None and theirs is not None:
                torch.testing.assert_close(vars(mine), vars(theirs))
    end = piece.within(CHUNK + 10, 2 * CHUNK)
    (sink,) = end.sinks
    assert end.ranges == ((0, 6),) and sink is not None and sink.hidden is not None and sink.hidden.shape == (6, 3)
    torch.testing.assert_close(end.rotation, model.positions(CHUNK + 10, 6, 24, 3).rotation)


def test_a_copy_stays_where_it_was() -> None:
    model, tokens = tiny_decoder(), tokens_for(4)
    state = ReadingState(model, reading(), kernels=STEPS)
    read(state, tokens[:, : 2 * CHUNK + 1], 2)
    copy = state.copy()
    assert copy.fast is not None
    weights = copy.fast.clone()
    list(state.read(tokens[:, 2 * CHUNK :]))
    assert copy.position == 2 * CHUNK
    assert torch.equal(copy.fast, weights)


def test_a_step_asks_the_device_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever would make the host wait for a GPU fails here, but for what Triton's interpreter itself does."""
    model, tokens = tiny_decoder(), tokens_for(2)
    state = ReadingState(model, reading(), kernels=STEPS)
    read(state, tokens, 1)

    def waits(*arguments: object, **more: object) -> None:
        raise AssertionError("the host would wait for the device")

    plain = STEPS.replace(inner_step=_step_without_interpreter, undo_step=lambda step, accepted: step)
    hidden, targets = torch.randn(1, CHUNK, TINY.dim), tokens[:, CHUNK + 1 : 2 * CHUNK + 1]
    (positions,), weights = state._chunk_positions(1), state.weights
    assert weights is not None
    loop = InnerLoop(model, state.reading, plain)
    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, waits)
    measured, _ = learn_chunk(loop, hidden, targets, positions, state.caches, weights)
    monkeypatch.undo()
    assert measured.accepted.shape == (1,)


def _step_without_interpreter(
    fast: torch.Tensor, grads: list[PrimeWeights], rule: Rule, rates: object, dtype: torch.dtype, *rest: object
) -> Step:
    norm = joined(grads).square().sum().sqrt().view(1)
    return Step(fast, fast.to(dtype), norm, torch.ones(1), fast)


def small_model() -> Decoder:
    changes = {"blocks": 2, "suffix_blocks": 1, "heads": 2, "kv_heads": 1, "post_norm": True, "qk_norm": True}
    return tiny_decoder(TINY.model_copy(update=changes))


def test_a_whole_model_in_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is here: pytest -m gpu")
    monkeypatch.setattr(attention, "WIDE_TILES", {kernel: {256: Tiles(16, 16, 4, 1)} for kernel in attention.TILES})
    model, tokens = small_model(), tokens_for(3)
    plain = ReadingState(model, reading(guard=None), kernels=REFERENCE, piece=3)
    ours = ReadingState(model, reading(guard=None), kernels=triton_kernels(monkeypatch, torch.device("cpu")))
    # Sinks out of sight; coming into it, where queries are turned for them; settled, where their keys are.
    assert_same(read(ours, tokens, 3), read(plain, tokens, 3))


def triton_kernels(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> Kernels:
    from ttt_docs.kernels.dispatch import kernels_for

    monkeypatch.setenv("TTT_DOCS_KERNELS", "triton")
    return kernels_for(device)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("rule", ["sgd", "normalized", "balanced"])
@pytest.mark.parametrize("batch", [1, 2])
def test_graphs_give_what_plain_reading_gives(rule: str, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda")
    model, tokens = tiny_decoder().to(device), tokens_for(40, batch).to(device)
    plain = ReadingState(model, reading(inner_rule=rule), batch=batch, kernels=REFERENCE, piece=16)
    expected = read(plain, tokens, 16, 16, 8)
    for _ in range(2):  # captured while the first document is read, replayed for the second
        ours = ReadingState(model, reading(inner_rule=rule), batch=batch, kernels=triton_kernels(monkeypatch, device))
        for mine, theirs in zip(read(ours, tokens, 16, 16, 8), expected, strict=True):
            torch.testing.assert_close(mine.nll, theirs.nll.cpu(), atol=1e-3, rtol=1e-3)
            assert torch.equal(mine.skipped, theirs.skipped.cpu())
