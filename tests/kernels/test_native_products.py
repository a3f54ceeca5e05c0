"""Compiled products, SwiGLU, RMSNorm and loss against the definitions in float64, on fresh random bfloat16 inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from test_native_attention import largest_error, needs_native
from torch import Tensor

from ttt_docs.kernels.backends import CPU, NATIVE, NATIVE_TRAINING
from ttt_docs.kernels.cross_entropy.cpu import linear_cross_entropy_native
from ttt_docs.kernels.cross_entropy.definition import linear_cross_entropy_reference
from ttt_docs.kernels.native.calls import multiply
from ttt_docs.kernels.rms_norm.cpu import rms_norm_native
from ttt_docs.kernels.rms_norm.definition import rms_norm_reference
from ttt_docs.kernels.swiglu.cpu import swiglu_native
from ttt_docs.kernels.swiglu.definition import swiglu_reference

pytestmark = needs_native


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def bf16(*shape: int, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape) * scale).bfloat16()


def run(function: Callable[..., Tensor], inputs: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The result, and the gradient of every input."""
    leaves = [x.to(dtype).detach().requires_grad_() for x in inputs]
    out = function(*leaves)
    torch.manual_seed(5)
    grad = torch.randn(out.shape).bfloat16()
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]


@pytest.mark.parametrize("depth", [32, 768, 800, 1600])
@pytest.mark.parametrize("other_way", [(False, True), (False, False), (True, False)])
@pytest.mark.parametrize(("rows", "columns"), [(70, 96), (600, 32), (33, 640)])
def test_products(rows: int, columns: int, depth: int, other_way: tuple[bool, bool]) -> None:
    rows = rows // 32 * 32 if other_way[0] else rows
    a = bf16(depth, rows).t() if other_way[0] else bf16(rows, depth)
    b = bf16(columns, depth).t() if other_way[1] else bf16(depth, columns)
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        out = torch.empty(rows, columns, dtype=torch.bfloat16)
        multiply(a, b, out)
        results.append(out)
    assert torch.equal(*results)
    assert largest_error([out], [a.double() @ b.double()]) < 4e-3


def test_a_sum_over_any_number_of_tokens() -> None:
    for tokens in (1, 31, 45, 900):
        grad, x, out = bf16(tokens, 64), bf16(tokens, 96), torch.empty(64, 96, dtype=torch.bfloat16)
        multiply(grad.t(), x, out)
        assert largest_error([out], [grad.double().t() @ x.double()]) < 4e-3


@pytest.mark.parametrize("own_weights", [False, True])
@pytest.mark.parametrize("tokens", [64, 100])
def test_swiglu(own_weights: bool, tokens: int) -> None:
    own = (2,) if own_weights else ()
    inputs = [bf16(2, tokens, 64), bf16(*own, 2 * 96, 64, scale=0.2), bf16(*own, 64, 96, scale=0.2)]
    exact = run(swiglu_reference, inputs, torch.float64)
    if not own_weights:  # frozen: no gradient
        x, w13, w2 = inputs
        actual = run(lambda x: swiglu_native(x, w13, w2), [x], torch.bfloat16)
        exact = run(lambda x: swiglu_reference(x, w13.double(), w2.double()), [x], torch.float64)
    else:
        actual = run(swiglu_native, inputs, torch.bfloat16)
    assert largest_error(actual, exact) < 8e-3
    with torch.no_grad():
        assert torch.equal(swiglu_native(*inputs), actual[0])


@pytest.mark.parametrize("own_weights", [False, True])
@pytest.mark.parametrize("tokens", [1, 16])
def test_swiglu_of_few_tokens(own_weights: bool, tokens: int) -> None:
    own = (2,) if own_weights else ()
    inputs = [bf16(2, tokens, 64), bf16(*own, 2 * 160, 64, scale=0.2), bf16(*own, 64, 160, scale=0.2)]
    results = []
    with torch.no_grad():
        exact = swiglu_reference(*(x.double() for x in inputs))
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(swiglu_native(*inputs))
    assert torch.equal(*results) and largest_error(results[:1], [exact]) < 8e-3


@pytest.mark.parametrize("shape", [(2, 70, 64), (1, 64, 576), (2, 40, 3, 32)])
def test_rms_norm(shape: tuple[int, ...]) -> None:
    x, weight = bf16(*shape), bf16(shape[-1])
    exact = run(lambda x: rms_norm_reference(x, weight.double(), 1e-5), [x], torch.float64)
    actual = run(lambda x: rms_norm_native(x, weight, 1e-5), [x], torch.bfloat16)
    assert largest_error(actual, exact) < 4e-3


@pytest.mark.parametrize("rows", [16, 64, 90, 1100])
def test_loss(rows: int) -> None:
    x, head = bf16(rows, 64), bf16(5120, 64, scale=0.3)
    targets = torch.randint(0, 5120, (rows,))
    targets[3] = 7
    exact = run(lambda x: linear_cross_entropy_reference(x, head.double(), targets, 7), [x], torch.float64)
    actual = run(lambda x: linear_cross_entropy_native(x, head, targets, 7), [x], torch.bfloat16)
    assert actual[0][3] == 0 and largest_error(actual[:1], exact[:1]) < 1e-5
    assert largest_error(actual[1:], exact[1:]) < 5e-3


def test_loss_of_logits_beyond_the_range_of_exp() -> None:
    x, head, targets = bf16(64, 64, scale=30), bf16(512, 64), torch.randint(0, 512, (64,))
    exact = linear_cross_entropy_reference(x.double(), head.double(), targets)
    torch.testing.assert_close(
        linear_cross_entropy_native(x, head, targets).double(), exact, atol=2.0, rtol=1e-2
    )  # what bfloat16 logits of a thousand allow


@pytest.mark.parametrize(
    ("dtype", "dim", "tokens"), [(torch.float32, 64, 64), (torch.bfloat16, 24, 64), (torch.bfloat16, 64, 3)]
)
def test_what_they_were_not_made_for_takes_the_pytorch_path(dtype: torch.dtype, dim: int, tokens: int) -> None:
    x, weight = torch.randn(1, tokens, dim, dtype=dtype), torch.randn(dim, dtype=dtype)
    w13, w2 = (torch.randn(*shape, dtype=dtype) for shape in ((96, dim), (dim, 48)))
    head, targets = torch.randn(dim, dim, dtype=dtype), torch.randint(0, dim, (tokens,))
    q, k = torch.randn(2, 2, tokens, dim, dtype=dtype), torch.randn(2, 1, tokens, dim, dtype=dtype)
    for of in (
        lambda kernels: kernels.rms_norm(x, weight, 1e-5),
        lambda kernels: kernels.swiglu(x, w13, w2),
        lambda kernels: kernels.linear_cross_entropy(x[0], head, targets, None),
    ):
        assert torch.equal(of(NATIVE), of(CPU))
    assert CPU.jvp is not None and NATIVE_TRAINING.jvp is not None
    assert torch.equal(NATIVE_TRAINING.jvp.window_attention(q, k, k, 5), CPU.jvp.window_attention(q, k, k, 5))
