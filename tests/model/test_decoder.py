"""The decoder, the inner step and the reading state, on tiny random models."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.reference import load_reference
from ttt_docs.errors import TTTDocsError, UsageError
from ttt_docs.kernels.backends import CPU, NATIVE, REFERENCE
from ttt_docs.kernels.dispatch import kernels_for
from ttt_docs.kernels.inner_step.definition import Rule, Step, inner_step_reference, updated
from ttt_docs.kernels.inner_step.layout import FastLayout
from ttt_docs.model.config import CONFIGS, ModelConfig, ReadingConfig
from ttt_docs.model.decoder import Decoder
from ttt_docs.ttt.state import ChunkResult, ReadingState
from ttt_docs.weights.loading import build_decoder

REFERENCES = sorted((Path(__file__).parents[1] / "reference").glob("*.npz"))
READING = ReadingConfig(chunk=16, window=24, sinks=4)


def tiny(**changes: Any) -> Decoder:
    settings = {
        "name": "tiny", "vocab_size": 97, "blocks": 4, "dim": 32, "heads": 6, "kv_heads": 2, "head_dim": 8,
        "mlp_dim": 48, "suffix_blocks": 2, "sinks": 4, "bos_token_id": 1,
    }  # fmt: skip
    torch.manual_seed(0)
    model = Decoder(ModelConfig(**settings | changes)).initialize()
    for parameter in model.parameters():
        parameter.data *= 3  # far from linear, so that a wrong term shows
    return model.requires_grad_(False)


def tokens_of(length: int, batch: int = 1) -> torch.Tensor:
    return torch.randint(2, 97, (batch, length), generator=torch.Generator().manual_seed(3))


def read_all(state: ReadingState, tokens: torch.Tensor, chunks: int) -> list[ChunkResult]:
    return list(state.read_whole(tokens[:, : state.position + chunks * state.reading.chunk + 1]))


def same_state(a: ReadingState, b: ReadingState) -> bool:
    assert a.fast is not None and b.fast is not None
    pairs = [(a.fast, b.fast)]
    pairs += [
        (x, y) for c, d in zip(a.caches, b.caches, strict=True) for x, y in zip(c.export(), d.export(), strict=True)
    ]
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("kernels", [CPU, REFERENCE], ids=lambda k: k.name)
@pytest.mark.parametrize("path", REFERENCES, ids=lambda p: p.stem)
def test_reference_losses(path: Path, kernels: Any) -> None:
    reference = load_reference(path)
    model = build_decoder(reference.config, reference.state, torch.device("cpu"), torch.float32)
    tokens = torch.as_tensor(reference.tokens).long()[None]
    state = ReadingState(model, reference.reading, kernels=kernels)
    results = read_all(state, tokens, (tokens.shape[1] - 1) // reference.reading.chunk)
    nll = torch.cat([result.nll[0] for result in results])
    assert len(nll) == len(reference.token_nll)
    assert (nll - torch.as_tensor(reference.token_nll)).abs().max() <= 5e-6


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize("rule", ["sgd", "normalized", "balanced"])
def test_cpu_kernels_read_like_the_definitions(qk_norm: bool, post_norm: bool, rule: Any) -> None:
    model = tiny(qk_norm=qk_norm, post_norm=post_norm)
    reading = READING.model_copy(update={"inner_rule": rule, "inner_lr": 0.3})
    losses = []
    for kernels in (CPU, REFERENCE):
        state = ReadingState(model, reading, batch=2, kernels=kernels)
        losses.append(torch.cat([r.nll for r in read_all(state, tokens_of(6 * 16 + 1, 2), 6)], dim=1))
    # A step of fixed norm along a tiny gradient carries its rounding on, so only the first chunks agree closely.
    torch.testing.assert_close(losses[0][:, :32], losses[1][:, :32], atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(losses[0], losses[1], atol=2e-3, rtol=1e-3)


def test_each_document_of_a_batch_gets_what_it_gets_alone() -> None:
    model, tokens = tiny(), tokens_of(5 * 16 + 1, 3)
    together = ReadingState(model, READING, batch=3)
    batched = read_all(together, tokens, 5)
    for row in range(3):
        alone = ReadingState(model, READING)
        single = read_all(alone, tokens[row : row + 1], 5)
        for a, b in zip(batched, single, strict=True):
            torch.testing.assert_close(a.nll[row], b.nll[0], atol=1e-5, rtol=1e-5)
        assert together.fast is not None and alone.fast is not None
        torch.testing.assert_close(together.fast[row], alone.fast[0], atol=1e-5, rtol=1e-5)


def test_token_by_token_is_the_same_as_chunk_by_chunk() -> None:
    """Sinks, window and RoPE are defined per query, so how tokens are grouped cannot matter."""
    model, tokens = tiny(), tokens_of(80)
    by_chunk, by_token = ReadingState(model, READING), ReadingState(model, READING)
    wide = torch.cat([by_chunk.run(tokens[:, i : i + 16]) for i in range(0, 80, 16)], dim=1)
    narrow = torch.cat([by_token.run(tokens[:, i : i + 1]) for i in range(80)], dim=1)
    torch.testing.assert_close(wide, narrow, atol=1e-4, rtol=1e-4)


def test_with_sinks_the_window_begins_right_behind_them() -> None:
    """At the position where sinks and window together hold everything, a window model is the full-attention model."""
    model, tokens = tiny(suffix_blocks=0), tokens_of(28)
    windowed = ReadingState(model, ReadingConfig(chunk=8, window=24, sinks=4, learn=False))
    full = ReadingState(model, ReadingConfig(chunk=8, window=1000, learn=False))
    torch.testing.assert_close(windowed.run(tokens), full.run(tokens), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_going_on_from_a_restored_state_is_bit_for_bit_the_uninterrupted_reading(dtype: torch.dtype, cut: int) -> None:
    model = tiny().to(dtype)
    tokens = tokens_of(6 * 16 + 1)
    whole = ReadingState(model, READING)
    expected = read_all(whole, tokens, 6)
    first = ReadingState(model, READING)
    read_all(first, tokens, cut)
    second = ReadingState(model, READING)
    second.restore(first.position, first.fast, [cache.export() for cache in first.caches])
    rest = read_all(second, tokens, 6 - cut)
    assert all(torch.equal(a.nll, b.nll) for a, b in zip(expected[cut:], rest, strict=True))
    assert same_state(whole, second)


def test_scoring_leaves_the_state_as_it_was() -> None:
    model, tokens = tiny(), tokens_of(60)
    state, untouched = ReadingState(model, READING), ReadingState(model, READING)
    read_all(state, tokens, 2), read_all(untouched, tokens, 2)
    partial = state.score(tokens[:, 32:45])
    assert same_state(state, untouched) and state.position == 32
    torch.testing.assert_close(partial, read_all(state, tokens, 1)[0].nll[:, :12], atol=1e-5, rtol=1e-5)


def test_clip_bounds_the_step_and_normalized_gives_each_matrix_its_norm() -> None:
    layout = FastLayout(blocks=1, hidden=3, dim=3)
    fast, grad = torch.zeros(2, layout.size), torch.randn(2, layout.size) * 10
    layout.matrices(grad)[0][0] = 0
    after, _, clip = updated(fast, grad, layout, Rule("sgd", 0.5, 1.0))
    torch.testing.assert_close(after.norm(dim=1), torch.full((2,), 0.5))
    assert (clip < 1).all()
    free, _, _ = updated(fast, grad, layout, Rule("sgd", 0.5, 0))
    torch.testing.assert_close(free, -0.5 * grad)
    even, _, _ = updated(fast, grad, layout, Rule("normalized", 0.3))
    w1, _, w3 = layout.matrices(even)
    torch.testing.assert_close(w3.norm(dim=(1, 2)), torch.full((2,), 0.3))
    assert w1[0].abs().max() == 0  # no gradient, no step


def test_balanced_steps_depend_half_as_much_on_the_sizes_of_rows_and_columns() -> None:
    layout = FastLayout(blocks=1, hidden=4, dim=6)
    rows, columns = torch.rand(2, 4, 1) + 0.5, torch.rand(2, 1, 6) + 0.5
    signs = torch.randn(2, 4, 6).sign()
    grad = rows * columns * signs
    grad[:, 1], grad[:, :, 2] = 0, 0
    whole = layout.join([grad, 5 * grad.mT, torch.zeros_like(grad)])
    after, grad_norm, _ = updated(torch.zeros(2, layout.size), whole, layout, Rule("balanced", 0.3))
    wanted = grad.abs().sqrt() * -signs
    wanted *= 0.3 / wanted.norm(dim=(1, 2), keepdim=True)
    w1, w2, w3 = layout.matrices(after)
    torch.testing.assert_close(w1, wanted)
    torch.testing.assert_close(w2, wanted.mT)  # whatever its size
    assert not w3.any()
    torch.testing.assert_close(grad_norm, grad.norm(dim=(1, 2)) * 26**0.5)


def test_learned_rates_and_steps_are_matrix_by_matrix() -> None:
    layout = FastLayout(blocks=2, hidden=3, dim=4)
    grad, rates = torch.randn(2, layout.size), torch.arange(6.0)
    after, _, _ = updated(torch.zeros(2, layout.size), grad, layout, Rule("sgd", 1.0, 0), rates)
    for rate, moved, own in zip(rates, layout.matrices(after), layout.matrices(grad), strict=True):
        assert torch.equal(moved, -rate * own)
    assert torch.equal(layout.join(layout.matrices(grad)), grad)


def test_the_guard_undoes_a_step_that_worsens_the_chunk_and_reports_it() -> None:
    model, tokens = tiny(), tokens_of(3 * 16 + 1, 2)

    def ruinous(fast: torch.Tensor, *arguments: Any) -> Step:
        """A fine step for the first document, a long one uphill for the second."""
        step = inner_step_reference(fast, *arguments)
        made = fast + torch.tensor([1.0, -8.0])[:, None] * (step.fast - fast)
        return step._replace(fast=made, products=made)

    kernels = CPU.replace(inner_step=ruinous)
    state = ReadingState(model, READING.model_copy(update={"guard": 0.05}), batch=2, kernels=kernels)
    assert [r.skipped.tolist() for r in read_all(state, tokens, 3)] == [[False, True]] * 3
    initial = model.initial_fast_weights(2)
    assert state.fast is not None
    assert torch.equal(state.fast[1], initial[1]) and not torch.equal(state.fast[0], initial[0])
    unguarded = ReadingState(model, READING.model_copy(update={"guard": None}), batch=2, kernels=kernels)
    assert not any(bool(result.skipped.any()) for result in read_all(unguarded, tokens, 1))


def test_a_gradient_that_is_not_finite_is_skipped_for_its_document_only() -> None:
    model, tokens = tiny(), tokens_of(16 + 1, 2)
    state = ReadingState(model, READING, batch=2)
    broken = model.initial_fast_weights(2).clone()
    broken[1, 0] = float("nan")
    state.set_fast(broken)
    (result,) = read_all(state, tokens, 1)
    assert result.skipped.tolist() == [False, True]
    assert state.fast is not None and torch.isnan(state.fast[1, 0]) and torch.isfinite(state.fast[1, 1:]).all()
    assert torch.isfinite(state.fast[0]).all() and not torch.equal(state.fast[0], broken[0])


@pytest.mark.parametrize("kernels", [CPU, CPU.replace(asynchronous=True)], ids=["host", "asynchronous"])
def test_an_error_in_the_middle_of_a_piece_leaves_no_state_that_reads_on(kernels: Any) -> None:
    model, tokens, chunks = tiny(), tokens_of(2 * 16 + 1), []

    def failing(*arguments: Any) -> Step:
        chunks.append(arguments)
        if len(chunks) == 2:
            raise RuntimeError("out of memory")
        return inner_step_reference(*arguments)

    state = ReadingState(model, READING, kernels=kernels.replace(inner_step=failing))
    with pytest.raises(RuntimeError, match="out of memory"):
        list(state.read(tokens))
    one = ReadingState(model, READING)
    read_all(one, tokens, 1)
    assert state.position == one.position == 16 and state.fast is not None and one.fast is not None
    assert torch.equal(state.fast, one.fast)  # position and weights are those of the first chunk
    for go_on in (lambda: list(state.read(tokens[:, 16:])), lambda: state.run(tokens[:, 16:])):
        with pytest.raises(TTTDocsError, match="middle of a piece"):  # the prefix has run ahead
            go_on()


def test_targets_that_are_bos_do_not_count() -> None:
    model, tokens = tiny(), tokens_of(17)
    tokens[:, 8] = 1
    (result,) = read_all(ReadingState(model, READING), tokens, 1)
    assert result.nll[0, 7] == 0
    torch.testing.assert_close(result.loss[0], result.nll[0].sum() / 15)


def test_configurations_that_cannot_work_are_refused() -> None:
    for changes in ({"window": 8}, {"chunk": 0}, {"inner_lr": -1}, {"inner_rule": "adam"}):
        with pytest.raises(ValueError):
            ReadingConfig(**{"chunk": 16, "window": 24} | changes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="heads"):
        tiny(kv_heads=4)
    with pytest.raises(ValueError, match="pre_norm"):
        tiny(pre_norm=False)  # no model goes without


def test_published_sizes_have_the_published_parameter_counts() -> None:
    """Within 5 % of their names; and a configuration can be printed and read back."""
    for name, millions in {"125m": 125, "350m": 350, "760m": 760, "1.3b": 1300, "3b": 3000}.items():
        config = CONFIGS[name]
        assert ModelConfig.model_validate(json.loads(config.model_dump_json())) == config
        with torch.device("meta"):
            model = Decoder(config)
        without_tables = sum(p.numel() for n, p in model.named_parameters() if not n.startswith("embed"))
        assert 0.6 * millions < without_tables / 1e6 < 1.1 * millions


def test_kernels_can_be_forced_and_a_wrong_name_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels_for(torch.device("cpu")) in (CPU, NATIVE)
    monkeypatch.setenv("TTT_DOCS_KERNELS", "cpu")
    assert kernels_for(torch.device("cpu")) is CPU
    monkeypatch.setenv("TTT_DOCS_KERNELS", "reference")
    assert kernels_for(torch.device("cpu")) is REFERENCE
    monkeypatch.setenv("TTT_DOCS_KERNELS", "fast")
    with pytest.raises(UsageError, match="TTT_DOCS_KERNELS"):
        kernels_for(torch.device("cpu"))
