"""The decoder, the inner step and the reading state, on tiny random models."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.reference import load_reference
from ttt_docs.errors import UsageError
from ttt_docs.kernels.backends import CPU, NATIVE, REFERENCE
from ttt_docs.kernels.dispatch import kernels_for
from ttt_docs.model.config import CONFIGS, ModelConfig, ReadingConfig
from ttt_docs.model.decoder import Decoder, FastWeights, ProductWeights, product_weights
from ttt_docs.ttt import state as state_module
from ttt_docs.ttt.inner_loop import Step, inner_step, product_step
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
    results: list[ChunkResult] = []
    while len(results) < chunks:
        count = min(chunks - len(results), state.slots_left)
        results += state.read(tokens[:, state.position : state.position + count * state.reading.chunk + 1])
    return results


def same_state(a: ReadingState, b: ReadingState) -> bool:
    pairs = [(x, y) for f, g in zip(a.fast, b.fast, strict=True) for x, y in zip(f, g, strict=True)]
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
        for f, g in zip(together.fast, alone.fast, strict=True):
            torch.testing.assert_close(f.w2[row], g.w2[0], atol=1e-5, rtol=1e-5)


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
    fast = [FastWeights(*(torch.zeros(2, 3, 3) for _ in range(3)))]
    grads = [FastWeights(*(torch.randn(2, 3, 3) * 10 for _ in range(3)))]
    grads[0].w1[0] = 0
    step = inner_step(fast, grads, ReadingConfig(chunk=1, window=1, inner_lr=0.5, inner_clip=1.0))
    total = torch.stack([w.square().sum((1, 2)) for w in step.fast[0]]).sum(0).sqrt()
    torch.testing.assert_close(total, torch.full((2,), 0.5))
    assert (step.clip < 1).all()
    free = inner_step(fast, grads, ReadingConfig(chunk=1, window=1, inner_lr=0.5, inner_clip=0))
    torch.testing.assert_close(free.fast[0].w2, -0.5 * grads[0].w2)
    even = inner_step(fast, grads, ReadingConfig(chunk=1, window=1, inner_lr=0.3, inner_rule="normalized"))
    torch.testing.assert_close(even.fast[0].w3.norm(dim=(1, 2)), torch.full((2,), 0.3))
    assert even.fast[0].w1[0].abs().max() == 0  # no gradient, no step


def test_balanced_steps_depend_half_as_much_on_the_sizes_of_rows_and_columns() -> None:
    rows, columns = torch.rand(2, 4, 1) + 0.5, torch.rand(2, 1, 6) + 0.5
    signs = torch.randn(2, 4, 6).sign()
    fast, grad = torch.zeros(2, 4, 6), rows * columns * signs
    grad[:, 1], grad[:, :, 2] = 0, 0
    reading = ReadingConfig(chunk=1, window=1, inner_lr=0.3, inner_rule="balanced")
    step = inner_step([FastWeights(fast, fast, fast)], [FastWeights(grad, 5 * grad, torch.zeros_like(grad))], reading)
    wanted = grad.abs().sqrt() * -signs
    wanted *= 0.3 / wanted.norm(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(step.fast[0].w1, wanted)
    torch.testing.assert_close(step.fast[0].w2, wanted)  # whatever its size
    assert not step.fast[0].w3.any()
    torch.testing.assert_close(step.grad_norm, grad.norm(dim=(1, 2)) * 26**0.5)


def test_the_guard_undoes_a_step_that_worsens_the_chunk_and_reports_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = tiny(), tokens_of(3 * 16 + 1, 2)

    def ruinous(fast: Any, *arguments: Any) -> tuple[Step, list[ProductWeights]]:
        """A fine step for the first document, a long one uphill for the second."""
        step, _ = product_step(fast, *arguments)
        along = torch.tensor([1.0, -8.0])[:, None, None]
        blocks = zip(fast, step.fast, strict=True)
        made = [FastWeights(*(w + along * (n - w) for w, n in zip(*b, strict=True))) for b in blocks]
        return step._replace(fast=made), [product_weights(block, model.dtype) for block in made]

    monkeypatch.setattr(state_module, "product_step", ruinous)
    state = ReadingState(model, READING.model_copy(update={"guard": 0.05}), batch=2)
    assert [r.skipped.tolist() for r in read_all(state, tokens, 3)] == [[False, True]] * 3
    for block, initial in zip(state.fast, model.initial_fast_weights(2), strict=True):
        assert torch.equal(block.w2[1], initial.w2[1]) and not torch.equal(block.w2[0], initial.w2[0])
    unguarded = ReadingState(model, READING.model_copy(update={"guard": None}), batch=2)
    assert not any(bool(result.skipped.any()) for result in read_all(unguarded, tokens, 1))


def test_a_gradient_that_is_not_finite_is_skipped_for_its_document_only() -> None:
    model, tokens = tiny(), tokens_of(16 + 1, 2)
    state = ReadingState(model, READING, batch=2)
    broken = state.fast[0].w1.clone()
    broken[1, 0, 0] = float("nan")
    state.set_fast([FastWeights(broken, state.fast[0].w2, state.fast[0].w3), *state.fast[1:]])
    (result,) = read_all(state, tokens, 1)
    assert result.skipped.tolist() == [False, True]
    assert torch.isnan(state.fast[0].w1[1, 0, 0]) and torch.isfinite(state.fast[1].w1).all()


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
