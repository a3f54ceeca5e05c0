"""The outer loop in float64: every way of computing it against `unrolled` (docs/method.md section 4)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ttt_docs.errors import UsageError
from ttt_docs.kernels.attention import cpu as attention
from ttt_docs.kernels.attention import jvp as attention_jvp
from ttt_docs.kernels.backends import CPU, REFERENCE
from ttt_docs.kernels.cross_entropy import cpu as cross_entropy
from ttt_docs.model.config import ModelConfig, ReadingConfig
from ttt_docs.model.decoder import Decoder
from ttt_docs.ttt import recompute as checkpointing
from ttt_docs.ttt.outer_loop import OuterLoss, outer_loss

READING = ReadingConfig(chunk=8, window=12, sinks=2, inner_lr=0.5, guard=None)


def tiny(**changes: Any) -> Decoder:
    settings = {
        "name": "tiny", "vocab_size": 67, "blocks": 4, "dim": 16, "heads": 4, "kv_heads": 2, "head_dim": 4,
        "mlp_dim": 24, "suffix_blocks": 3, "sinks": 2, "bos_token_id": 1, "qk_norm": True, "post_norm": True,
    }  # fmt: skip
    torch.manual_seed(0)
    model = Decoder(ModelConfig(**settings | changes)).initialize().double()
    for parameter in model.parameters():
        parameter.data *= 8 if parameter.dim() > 1 else 1  # far from linear, so that a wrong term shows
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def tokens_of(length: int, batch: int = 2) -> Tensor:
    return torch.randint(1, 67, (batch, length + 1), generator=torch.Generator().manual_seed(3))


def gradients(model: Decoder, result: OuterLoss, extra: Tensor | None = None) -> dict[str, Tensor]:
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if extra is not None:
        named["inner_lr"] = extra
    grads = torch.autograd.grad(2 * result.loss, list(named.values()), allow_unused=True)
    return {name: grad for name, grad in zip(named, grads, strict=True) if grad is not None}


def assert_same(model: Decoder, expected: OuterLoss, actual: OuterLoss, rate: Tensor | None = None) -> None:
    for a, b in zip(expected, actual, strict=True):
        torch.testing.assert_close(a.detach(), b.detach(), atol=1e-10, rtol=1e-10)
    wanted, got = gradients(model, expected, rate), gradients(model, actual, rate)
    assert wanted.keys() == got.keys()
    for name in wanted:
        error = (wanted[name] - got[name]).norm() / wanted[name].norm().clamp_min(1e-6)
        assert error < 1e-9, name


@pytest.fixture(autouse=True)
def several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (
        (attention, "TILE"), (attention, "BACKWARD_TILE"), (attention_jvp, "TILE"), (checkpointing, "PIECE"),
        (cross_entropy, "ROWS"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, 5)
    monkeypatch.setattr(cross_entropy, "COLUMNS", 20)


@pytest.mark.parametrize("recompute", ["chunks", "suffix", "logarithmic"])
@pytest.mark.parametrize("kernels", [CPU, REFERENCE], ids=lambda k: k.name)
@pytest.mark.parametrize(
    "reading",
    [
        READING,
        READING.model_copy(update={"inner_clip": 0.01}),
        READING.model_copy(update={"inner_clip": 0.0, "inner_lr": 0.05}),
        READING.model_copy(update={"inner_rule": "normalized", "inner_lr": 0.1}),
        READING.model_copy(update={"inner_rule": "balanced", "inner_lr": 0.1}),
        READING.model_copy(update={"window": 8, "sinks": 0}),
    ],
    ids=["sgd", "clipped", "no-clip", "normalized", "balanced", "no-sinks"],
)
def test_meta_gradients_are_those_of_the_unrolled_loop(reading: ReadingConfig, kernels: Any, recompute: Any) -> None:
    model, tokens = tiny(), tokens_of(7 * 8)
    rate = torch.tensor([0.7, 1.1, 0.9], dtype=torch.float64, requires_grad=True)
    expected = outer_loss(model, tokens, reading, inner_lr=rate, recompute="none")
    actual = outer_loss(model, tokens, reading, inner_lr=rate, recompute=recompute, kernels=kernels)
    assert_same(model, expected, actual, rate)


@pytest.mark.parametrize("rule", ["sgd", "normalized", "balanced"])
def test_each_matrix_may_have_a_rate_of_its_own(rule: Any) -> None:
    model, tokens, reading = tiny(), tokens_of(3 * 8), READING.model_copy(update={"inner_rule": rule})
    rate = torch.tensor([[0.7, 0.0, 0.4], [1.1, 0.2, 1.0], [0.9, 0.5, 0.1]], dtype=torch.float64, requires_grad=True)
    expected = outer_loss(model, tokens, reading, inner_lr=rate, recompute="none")
    assert_same(model, expected, outer_loss(model, tokens, reading, inner_lr=rate, kernels=CPU), rate)
    by_block = torch.tensor([0.7, 1.1, 0.9], dtype=torch.float64)
    losses = [outer_loss(model, tokens, reading, inner_lr=r).loss for r in (by_block, by_block[:, None].expand(3, 3))]
    torch.testing.assert_close(*losses, atol=0, rtol=0)
    assert losses[0] != expected.loss


@pytest.mark.parametrize("mode", ["first-order", "naive", "none"])
def test_other_modes_are_those_of_the_unrolled_loop(mode: Any) -> None:
    model, tokens = tiny(), tokens_of(4 * 8)
    expected = outer_loss(model, tokens, READING, mode=mode, recompute="none")
    assert_same(model, expected, outer_loss(model, tokens, READING, mode=mode))


@pytest.mark.parametrize(
    "changes",
    [
        {"suffix_blocks": 1, "prime_norm": False},
        {"suffix_blocks": 4, "attention_bias": True, "tied_head": False},
        {"post_norm": False, "qk_norm": False, "heads": 2},
    ],
    ids=["shared-norm", "bias", "llama"],
)
def test_meta_gradients_of_other_models(changes: dict[str, Any]) -> None:
    model, tokens = tiny(**changes), tokens_of(4 * 8)
    assert_same(model, outer_loss(model, tokens, READING, recompute="none"), outer_loss(model, tokens, READING))


@pytest.mark.long  # half a minute of compiling
def test_compiled_updates_are_those_of_the_unrolled_loop() -> None:
    model, tokens = tiny(suffix_blocks=1), tokens_of(4 * 8)
    rate = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    expected = outer_loss(model, tokens, READING, inner_lr=rate, recompute="none")
    assert expected.grad_norms.max() > READING.inner_clip  # the clip's own gradient is in it
    actual = outer_loss(model, tokens, READING, inner_lr=rate, recompute="compiled")
    assert_same(model, expected, actual, rate)


def test_compiled_updates_want_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UsageError, match=r"needs a C\+\+ compiler.*set it to 'none'"):
        outer_loss(tiny(suffix_blocks=1), tokens_of(16), READING, recompute="compiled")


def test_compiled_updates_want_one_suffix_block() -> None:
    model, tokens = tiny(), tokens_of(16)
    with pytest.raises(UsageError, match="one suffix block"):
        outer_loss(model, tokens, READING, recompute="compiled")
    plain = outer_loss(model, tokens, READING, mode="naive", recompute="none")
    assert_same(model, plain, outer_loss(model, tokens, READING, mode="naive", recompute="compiled"))


@pytest.mark.parametrize("mode", ["meta", "naive"])
@pytest.mark.parametrize("recompute", ["none", "chunks"])
def test_attention_that_adds_nothing_can_be_left_out(recompute: Any, mode: Any) -> None:
    model, tokens = tiny(), tokens_of(3 * 8)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".attention" not in name)
        if name.endswith("attention.wo.weight"):
            parameter.data.zero_()
    expected = outer_loss(model, tokens, READING, mode=mode, recompute=recompute)
    wanted = gradients(model, expected)
    model.attends = False
    actual = outer_loss(model, tokens, READING, mode=mode, recompute=recompute)
    assert torch.equal(expected.token_nll, actual.token_nll)
    for name, grad in gradients(model, actual).items():
        torch.testing.assert_close(grad, wanted[name], atol=1e-12, rtol=1e-9)


def test_gradients_agree_with_finite_differences() -> None:
    """Along a random direction through all parameters, by central differences of two step sizes."""
    model, tokens = tiny(), tokens_of(3 * 8)
    grads = gradients(model, outer_loss(model, tokens, READING))
    named = dict(model.named_parameters())
    generator = torch.Generator().manual_seed(1)
    along = {
        name: torch.randn(p.shape, generator=generator, dtype=p.dtype) * p.detach().std() for name, p in named.items()
    }

    def slope(step: float) -> float:
        sides = []
        for sign in (1, -1):
            moved = {name: p.detach() + sign * step * along[name] for name, p in named.items()}
            with torch.no_grad():
                other = tiny()
                other.load_state_dict(moved)
            sides.append(float(outer_loss(other, tokens, READING).loss.detach()))
        return (sides[0] - sides[1]) / step  # of 2 * loss, as `gradients` takes it

    expected = (4 * slope(2e-5) - slope(4e-5)) / 3
    assert float(sum((grads[n] * along[n]).sum() for n in grads)) == pytest.approx(expected, rel=1e-9)


def test_first_order_gives_w0_the_mean_of_the_inner_gradients() -> None:
    from ttt_docs.ttt.state import ReadingState

    model, tokens = tiny(sinks=0), tokens_of(3 * 8, batch=1)
    reading = READING.model_copy(update={"sinks": 0})
    outer_loss(model, tokens, reading, mode="first-order").loss.backward()
    state = ReadingState(model, reading, kernels=REFERENCE)
    before, steps = state.fast, []
    for start in range(0, 24, 8):
        clip = next(iter(state.read(tokens[:, start : start + 9]))).clip
        steps.append((before - state.fast) / (reading.inner_lr * clip))
        before = state.fast
    mean = model.fast_layout.views(torch.stack(steps).mean(dim=0))[0].w2[0]
    torch.testing.assert_close(model.block(1).prime_mlp.w2.grad, mean, atol=1e-12, rtol=1e-9)


def test_each_sequence_of_a_batch_is_a_computation_of_its_own() -> None:
    model, tokens = tiny(), tokens_of(3 * 8, batch=3)
    together = outer_loss(model, tokens, READING)
    alone = [outer_loss(model, row[None], READING) for row in tokens]
    torch.testing.assert_close(together.chunk_losses, torch.cat([a.chunk_losses for a in alone]))
    torch.testing.assert_close(together.grad_norms, torch.cat([a.grad_norms for a in alone]))
    mean = [sum(g) / 3 for g in zip(*(gradients(model, a).values() for a in alone), strict=True)]
    torch.testing.assert_close(list(gradients(model, together).values()), mean)


def test_only_what_asks_for_gradient_gets_it() -> None:
    model, tokens = tiny(), tokens_of(3 * 8)
    expected = gradients(model, outer_loss(model, tokens, READING))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".prime_mlp." in name or "norm" in name)
    got = gradients(model, outer_loss(model, tokens, READING))
    assert got.keys() == {name for name in expected if ".prime_mlp." in name or "norm" in name}
    for name, grad in got.items():
        torch.testing.assert_close(grad, expected[name])


def test_reading_a_chunk_costs_the_same_whatever_else_is_trained() -> None:
    """The inner gradient asks for fast weights alone: no product may be spent on slow weights or what lies below."""

    def operations(chunks: int, frozen: bool) -> int:
        model = tiny()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not frozen or ".prime_mlp." in name)
        with FlopCounterMode(display=False) as counter:
            outer_loss(model, tokens_of(chunks * 8), READING, kernels=CPU)
        return counter.get_total_flops()

    # The last chunk is differentiated for everything at once: what one chunk more costs is reading it.
    of_a_chunk = [operations(5, frozen) - operations(4, frozen) for frozen in (False, True)]
    assert of_a_chunk[0] == of_a_chunk[1] > 0


def test_evaluation_needs_no_gradient() -> None:
    model, tokens = tiny(), tokens_of(3 * 8)
    with torch.no_grad():
        result = outer_loss(model, tokens, READING)
    assert not result.loss.requires_grad
    torch.testing.assert_close(result.loss, outer_loss(model, tokens, READING).loss.detach())


def test_the_inner_learning_rate_is_scaled() -> None:
    model, tokens = tiny(), tokens_of(3 * 8)
    half = outer_loss(model, tokens, READING, lr_scale=0.5)
    direct = outer_loss(model, tokens, READING.model_copy(update={"inner_lr": 0.25}))
    torch.testing.assert_close(half.token_nll, direct.token_nll)
    none = outer_loss(model, tokens, READING, lr_scale=0.0)
    torch.testing.assert_close(none.token_nll, outer_loss(model, tokens, READING, mode="naive").token_nll)


def test_bfloat16_is_as_close_to_float64_as_plain_autograd_is() -> None:
    model, tokens = tiny(), tokens_of(2 * 8, batch=1)
    for name, parameter in model.named_parameters():
        if ".prime_mlp." not in name:
            parameter.data = parameter.data.bfloat16().double()
    wanted = gradients(model, outer_loss(model, tokens, READING))
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if ".prime_mlp." in name else torch.bfloat16)
    errors = []
    for recompute in ("chunks", "none"):
        got = gradients(model, outer_loss(model, tokens, READING, recompute=recompute))
        errors.append(sum(float((got[n].double() - wanted[n]).norm() / wanted[n].norm()) for n in got) / len(got))
    assert errors[0] < 1.3 * errors[1] < 0.5


def test_bad_input_is_named() -> None:
    model, tokens = tiny(), tokens_of(3 * 8)
    with pytest.raises(UsageError, match=r"23 tokens .* not a multiple of the chunk \(8\).*use 16 or 24"):
        outer_loss(model, tokens[:, 1:], READING)
    with pytest.raises(UsageError, match="batch"):
        outer_loss(model, tokens[0], READING)
    with pytest.raises(UsageError, match="no prime MLPs"):
        outer_loss(tiny(suffix_blocks=0), tokens, READING)
    with pytest.raises(UsageError, match="'metaa' is not known"):
        outer_loss(model, tokens, READING, mode="metaa")
    with pytest.raises(UsageError, match="'some' is not known"):
        outer_loss(model, tokens, READING, recompute="some")
    with pytest.raises(UsageError, match=r"must be \[3\] or \[3, 3\], not \[2\]"):
        outer_loss(model, tokens, READING, inner_lr=torch.ones(2))
