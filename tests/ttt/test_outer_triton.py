"""The outer loop with the kernels that training on a GPU takes, in Triton's interpreter."""

import pytest
import torch
from test_outer import READING, assert_same, gradients, several_tiles, tiny, tokens_of  # noqa: F401  (a fixture)

pytest.importorskip("triton")

from ttt_docs.kernels.attention import triton_tiles as attention
from ttt_docs.kernels.backends import Kernels
from ttt_docs.kernels.cross_entropy import triton as cross_entropy
from ttt_docs.kernels.dispatch import training_kernels_for
from ttt_docs.ttt.outer_loop import outer_loss


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Kernels:
    if torch.cuda.is_available():
        pytest.skip("float64 is for the interpreter")
    monkeypatch.delenv("TTT_DOCS_KERNELS", raising=False)
    small = {kernel: {256: attention.Tiles(16, 16, 4, 1)} for kernel in attention.TILES}
    monkeypatch.setattr(attention, "WIDE_TILES", small)
    monkeypatch.setattr(cross_entropy, "COLUMNS", 64)
    kernels = training_kernels_for(torch.device("cuda"))
    assert kernels.name == "triton" and kernels.jvp is None  # differentiated twice
    return kernels


@pytest.mark.parametrize("rule", ["normalized", "balanced", "sgd"])
@pytest.mark.parametrize("per_matrix", [False, True])
def test_steps_hand_back_what_the_definition_does(kernels: Kernels, rule: str, per_matrix: bool) -> None:
    """Every rule, learned rates for blocks or matrices, a clip that binds."""
    model, tokens = tiny(blocks=1, suffix_blocks=1), tokens_of(24, batch=2)
    reading = READING.model_copy(update={"inner_rule": rule, "inner_clip": 0.5})
    rates = torch.full((1, 3) if per_matrix else (1,), 0.8, dtype=torch.float64, requires_grad=True)
    expected = outer_loss(model, tokens, reading, inner_lr=rates, recompute="none")
    recompute = "logarithmic" if per_matrix else "chunks"
    found = outer_loss(model, tokens, reading, inner_lr=rates, kernels=kernels, recompute=recompute)
    assert_same(model, expected, found, rates)


def test_gradients_through_updates_are_those_of_the_definition(kernels: Kernels) -> None:
    model, tokens = tiny(blocks=2, suffix_blocks=2), tokens_of(24, batch=1)
    expected = outer_loss(model, tokens, READING, recompute="none")
    assert_same(model, expected, outer_loss(model, tokens, READING, kernels=kernels))

    wanted = gradients(model, outer_loss(model, tokens, READING, recompute="none"))
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        narrow = tiny(blocks=2, suffix_blocks=2).to(dtype)
        found = outer_loss(narrow, tokens, READING, kernels=kernels)
        assert found.loss.item() == pytest.approx(expected.loss.item(), rel=tolerance)
        for name, grad in gradients(narrow, found).items():
            off = (grad.double() - wanted[name]).norm() / wanted[name].norm().clamp_min(1e-6)
            assert off < 10 * tolerance, f"{name} in {dtype} is off by {off:.1e}"
