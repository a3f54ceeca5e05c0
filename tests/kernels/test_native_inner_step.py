"""The compiled inner step against the definition: same weights, and the same bits whatever the number of threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from test_native_attention import needs_native
from torch import Tensor

from ttt_docs.kernels.backends import NATIVE, REFERENCE
from ttt_docs.kernels.inner_step.definition import Rule, updated
from ttt_docs.kernels.inner_step.layout import FastLayout, PrimeWeights, joined

pytestmark = needs_native

RULES = [Rule("normalized", 0.1), Rule("balanced", 0.1), Rule("sgd", 0.1, 1.0), Rule("sgd", 0.1, 0)]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def weights(dim: int, hidden: int) -> tuple[Tensor, list[PrimeWeights]]:
    """Of two blocks and two documents, which share their weights; one gradient is zero."""
    fast = torch.randn(1, FastLayout(2, hidden, dim).size).expand(2, -1)
    grads = [
        PrimeWeights(torch.randn(2, 2 * hidden, dim).bfloat16(), torch.randn(2, dim, hidden).bfloat16())
        for _ in range(2)
    ]
    grads[1].w2[0] = 0
    return fast, grads


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("dim", "hidden"), [(64, 96), (288, 512), (12, 20)])
def test_like_the_definition(rule: Rule, dim: int, hidden: int) -> None:
    fast, grads = weights(dim, hidden)
    rates = torch.tensor([1.0, 0.5]).repeat_interleave(3)
    after, grad_norm, clip = updated(fast, joined(grads).float(), FastLayout.of(grads), rule, rates)
    for kernels in (NATIVE, REFERENCE):
        step = kernels.inner_step(fast, grads, rule, rates, torch.bfloat16)
        # PyTorch's own norms of large matrices are off by 5e-6.
        torch.testing.assert_close(step.grad_norm, grad_norm, rtol=1e-5, atol=0)
        torch.testing.assert_close(step.clip, clip, rtol=1e-5, atol=0)
        torch.testing.assert_close(step.fast, after, rtol=1e-6, atol=1e-6)
        assert torch.equal(step.products, step.fast.bfloat16())


@pytest.mark.parametrize("rule", RULES)
def test_bits_do_not_depend_on_threads(rule: Rule) -> None:
    fast, grads = weights(288, 512)
    made = []
    for count in (1, 3):
        torch.set_num_threads(count)
        made.append(NATIVE.inner_step(fast, grads, rule, None, torch.bfloat16))
    assert all(torch.equal(a, b) for a, b in zip(*(step[:4] for step in made), strict=True))


def test_copies_have_the_bits_of_a_later_cast() -> None:
    """Ties and subnormal numbers included: a memory that is loaded makes its copies anew."""
    layout = FastLayout(blocks=1, hidden=512, dim=512)
    bits = torch.randint(-(2**31), 2**31, (1, layout.size), dtype=torch.int64).to(torch.int32)
    bits[0, :512] = (bits[0, :512] & -65536) | 0x8000  # ties
    bits[0, 512:1024] = torch.arange(512) * 1000  # subnormal
    weight = bits.view(torch.float32)
    weight = torch.where(weight.isfinite(), weight, 1.0)
    grads = layout.views(torch.zeros(1, layout.size, dtype=torch.bfloat16))
    step = NATIVE.inner_step(weight, grads, Rule(), None, torch.bfloat16)
    assert torch.equal(step.fast, weight) and torch.equal(step.products, weight.bfloat16())


@pytest.mark.parametrize("rule", RULES)
def test_a_gradient_that_is_not_finite_shows_in_the_norm(rule: Rule) -> None:
    grad = torch.zeros(3, 3 * 64 * 64, dtype=torch.bfloat16)
    grad[1, 0], grad[2, 100] = float("nan"), float("inf")
    step = NATIVE.inner_step(torch.zeros(grad.shape), FastLayout(1, 64, 64).views(grad), rule, None, torch.bfloat16)
    assert step.grad_norm.isfinite().tolist() == [True, False, False]
