"""The outer loop in float64: every way of computing it against METHOD section 4 unrolled under plain autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ttt_docs.kernels import attention, cross_entropy, pair_attention, pair_cross_entropy
from ttt_docs.kernels.dispatch import REFERENCE, TRAINING
from ttt_docs.model.config import ModelConfig, ReadingConfig
from ttt_docs.model.decoder import Decoder
from ttt_docs.training import sequence
from ttt_docs.training.outer import OuterLoss, outer_loss

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
        (attention, "TILE"), (attention, "BACKWARD_TILE"), (pair_attention, "TILE"), (sequence, "PIECE"),
        (cross_entropy, "ROWS"), (pair_cross_entropy, "ROWS"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, 5)
    for module in (cross_entropy, pair_cross_entropy):
        monkeypatch.setattr(module, "COLUMNS", 20)


@pytest.mark.parametrize("recompute", ["chunks", "logarithmic"])
@pytest.mark.parametrize("kernels", [TRAINING, REFERENCE], ids=lambda k: k.name)
@pytest.mark.parametrize(
    "reading",
    [
        READING,
        READING.model_copy(update={"inner_clip": 0.01}),
        READING.model_copy(update={"inner_clip": 0.0, "inner_lr": 0.05}),
        READING.model_copy(update={"inner_rule": "normalized", "inner_lr": 0.1}),
        READING.model_copy(update={"window": 8, "sinks": 0}),
    ],
    ids=["sgd", "clipped", "no-clip", "normalized", "no-sinks"],
)
def test_meta_gradients_are_those_of_the_unrolled_loop(reading: ReadingConfig, kernels: Any, recompute: Any) -> None:
    model, tokens = tiny(), tokens_of(7 * 8)
    rate = torch.tensor([0.7, 1.1, 0.9], dtype=torch.float64, requires_grad=True)
    expected = outer_loss(model, tokens, reading, inner_lr=rate, recompute="none")
    actual = outer_loss(model, tokens, reading, inner_lr=rate, recompute=recompute, kernels=kernels)
    assert_same(model, expected, actual, rate)


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
