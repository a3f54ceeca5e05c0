"""The compiled inner step against the definition: same weights, and the same bits whatever the number of threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from test_native_attention import needs_native
from torch import Tensor

from ttt_docs.kernels.backends import NATIVE, REFERENCE
from ttt_docs.model.config import ReadingConfig
from ttt_docs.model.decoder import FastWeights, ProductWeights, product_weights
from ttt_docs.ttt.inner_loop import Step, fast_gradients, inner_step, product_step

pytestmark = needs_native

RULES = [
    ReadingConfig(inner_rule="normalized", inner_lr=0.1),
    ReadingConfig(inner_rule="balanced", inner_lr=0.1),
    ReadingConfig(inner_rule="sgd", inner_lr=0.1, inner_clip=1.0),
    ReadingConfig(inner_rule="sgd", inner_lr=0.1, inner_clip=0),
]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def weights(dim: int, hidden: int) -> tuple[list[FastWeights], list[ProductWeights]]:
    """Of two blocks and two documents, which share their weights in one matrix; one gradient is zero."""
    shapes = [(2, hidden, dim), (2, dim, hidden), (2, hidden, dim)]
    fast = [FastWeights(*(torch.randn(*s) for s in shapes)) for _ in range(2)]
    fast[0] = fast[0]._replace(w1=fast[0].w1[:1].expand(2, -1, -1))
    grads = [
        ProductWeights(torch.randn(2, 2 * hidden, dim).bfloat16(), torch.randn(2, dim, hidden).bfloat16())
        for _ in range(2)
    ]
    grads[1].w2[0] = 0
    return fast, grads


def matrices(made: tuple[Step, list[ProductWeights]]) -> list[Tensor]:
    step, products = made
    return [*(m for block in (*step.fast, *products) for m in block), step.grad_norm, step.clip]


@pytest.mark.parametrize("reading", RULES)
@pytest.mark.parametrize(("dim", "hidden"), [(64, 96), (288, 512), (12, 20)])
def test_like_the_definition(reading: ReadingConfig, dim: int, hidden: int) -> None:
    fast, grads = weights(dim, hidden)
    rates = torch.tensor([1.0, 0.5])
    own = [FastWeights(*(g.float() for g in block)) for block in fast_gradients([g for pair in grads for g in pair])]
    expected = inner_step(fast, own, reading, rates)
    for kernels in (NATIVE, REFERENCE):
        step, products = product_step(fast, grads, reading, rates, kernels)
        # PyTorch's own norms of large matrices are off by 5e-6.
        torch.testing.assert_close(step.grad_norm, expected.grad_norm, rtol=1e-5, atol=0)
        torch.testing.assert_close(step.clip, expected.clip, rtol=1e-5, atol=0)
        for block, wanted, copies in zip(step.fast, expected.fast, products, strict=True):
            torch.testing.assert_close(block, wanted, rtol=1e-6, atol=1e-6)
            assert all(map(torch.equal, copies, product_weights(block, torch.bfloat16)))


@pytest.mark.parametrize("reading", RULES)
def test_bits_do_not_depend_on_threads(reading: ReadingConfig) -> None:
    fast, grads = weights(288, 512)
    made = []
    for count in (1, 3):
        torch.set_num_threads(count)
        made.append(matrices(product_step(fast, grads, reading, None, NATIVE)))
    assert all(map(torch.equal, *made))


def test_copies_have_the_bits_of_a_later_cast() -> None:
    """Ties and subnormal numbers included: a memory that is loaded makes its copies anew."""
    bits = torch.randint(-(2**31), 2**31, (1, 512, 512), dtype=torch.int64).to(torch.int32)
    bits[0, 0], bits[0, 1] = (bits[0, 0] & -65536) | 0x8000, torch.arange(512) * 1000  # ties, subnormal
    weight = bits.view(torch.float32)
    weight = torch.where(weight.isfinite(), weight, 1.0)
    grad, product = torch.zeros(weight.shape, dtype=torch.bfloat16), torch.empty(weight.shape, dtype=torch.bfloat16)
    after = NATIVE.weight_step(weight, grad, torch.ones(1), product)
    assert torch.equal(after, weight) and torch.equal(product, weight.bfloat16())


def test_a_gradient_that_is_not_finite_shows_in_the_norm() -> None:
    grad = torch.zeros(3, 64, 64, dtype=torch.bfloat16)
    grad[1, 0, 0], grad[2, 1, 1] = float("nan"), float("inf")
    assert NATIVE.gradient_norm(grad).isfinite().tolist() == [True, False, False]
