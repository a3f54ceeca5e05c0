"""RMSNorm, SwiGLU, linear cross-entropy and the inner step in Triton, against their definitions."""

import pytest
import torch
from torch import Tensor
from triton_checks import DEVICE, ON_DEVICE, assert_agrees, both_ways, randn

from ttt_docs.kernels.backends import REFERENCE
from ttt_docs.kernels.cross_entropy import triton as cross_entropy
from ttt_docs.kernels.cross_entropy.definition import linear_cross_entropy_reference
from ttt_docs.kernels.cross_entropy.triton import linear_cross_entropy_triton
from ttt_docs.kernels.inner_step import triton as sgd
from ttt_docs.kernels.inner_step.definition import Rule, step_direction_reference, updated
from ttt_docs.kernels.inner_step.layout import FastLayout, PrimeWeights, joined
from ttt_docs.kernels.rms_norm import triton as rms_norm
from ttt_docs.kernels.rms_norm.definition import rms_norm_reference
from ttt_docs.kernels.rms_norm.triton import add_rms_norm_triton, rms_norm_triton
from ttt_docs.kernels.swiglu.definition import swiglu_reference
from ttt_docs.kernels.swiglu.triton import swiglu_triton

F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16
dtypes = pytest.mark.parametrize(
    "dtype", [pytest.param(F64, marks=pytest.mark.skipif(ON_DEVICE, reason="")), F32, BF16]
)
#: Width of rows, hidden width, vocabulary.
DIM, HIDDEN, VOCAB = (2560, 5632, 20_001) if ON_DEVICE else (24, 20, 90)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    if not ON_DEVICE:
        monkeypatch.setattr(sgd, "CHUNK", 256)
        monkeypatch.setattr(sgd, "BLOCK", 64)
        for name in ("ROWS", "COLUMNS", "LINES"):
            monkeypatch.setattr(sgd, name, 16)
        monkeypatch.setattr(cross_entropy, "COLUMNS", 32)
        monkeypatch.setattr(cross_entropy, "ROWS", 8)


@both_ways
@dtypes
def test_rms_norm(where: str, dtype: torch.dtype) -> None:
    inputs = [randn(2, 5, DIM, dtype=dtype), randn(DIM, dtype=dtype)]
    assert_agrees(lambda x, w: rms_norm_reference(x, w, 1e-5), lambda x, w: rms_norm_triton(x, w, 1e-5), inputs)


@both_ways
def test_programs_that_do_several_groups_of_rows(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rms_norm, "PROGRAMS", 2)
    inputs = [randn(3, 100, DIM, dtype=F32), randn(DIM, dtype=F32)]
    assert rms_norm.times(5, for_weight=True) == 2 and rms_norm.times(5, for_weight=False) == 1
    assert_agrees(lambda x, w: rms_norm_reference(x, w, 1e-5), lambda x, w: rms_norm_triton(x, w, 1e-5), inputs)


@both_ways
def test_rms_norm_of_heads_inside_a_wider_matrix(where: str) -> None:
    inputs = [randn(2, 3, 6, 16, dtype=F32), randn(16, dtype=F32)]
    assert_agrees(
        lambda x, w: rms_norm_reference(x[:, :, 1:4], w, 1e-5),
        lambda x, w: rms_norm_triton(x[:, :, 1:4], w, 1e-5),
        inputs,
    )


@both_ways
@pytest.mark.parametrize("post", [False, True])
def test_residual_and_its_norms(where: str, post: bool) -> None:
    inputs = [*(randn(2, 5, DIM, dtype=F32) for _ in range(2)), *(randn(DIM, dtype=F32) for _ in range(1 + post))]

    def of(function: object, x: Tensor, delta: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        return function(x, delta, weights[0] if post else None, weights[-1], 1e-5)  # type: ignore[operator]

    assert_agrees(lambda *i: of(REFERENCE.residual_norm, *i), lambda *i: of(add_rms_norm_triton, *i), inputs)


@both_ways
@dtypes
@pytest.mark.parametrize("batch", [None, 1, 3])
def test_swiglu(where: str, dtype: torch.dtype, batch: int | None) -> None:
    own = () if batch is None else (batch,)
    scale = DIM**-0.5
    w13, w2 = randn(*own, 2 * HIDDEN, DIM, dtype=dtype), randn(*own, DIM, HIDDEN, dtype=dtype)
    assert_agrees(swiglu_reference, swiglu_triton, [randn(batch or 2, 7, DIM, dtype=dtype), w13 * scale, w2 * scale])


@both_ways
@pytest.mark.parametrize(("dtype", "ignore"), [(F32, None), (F32, 3), (BF16, 3)])
def test_linear_cross_entropy(where: str, dtype: torch.dtype, ignore: int | None) -> None:
    x, head = randn(13, DIM, dtype=dtype), randn(VOCAB, DIM, dtype=dtype) * DIM**-0.5
    targets = torch.randint(0, VOCAB, (13,), device=DEVICE)
    targets[2] = 3
    assert_agrees(
        lambda x, head: linear_cross_entropy_reference(x, head, targets, ignore),
        lambda x, head: linear_cross_entropy_triton(x, head, targets, ignore),
        [x, head],
    )
    # A frozen head: its gradient for the hidden states is made in the forward pass.
    assert_agrees(
        lambda x: linear_cross_entropy_reference(x, head.to(x.dtype), targets, ignore),
        lambda x: linear_cross_entropy_triton(x, head, targets, ignore),
        [x],
        twice=False,
    )


@both_ways
def test_linear_cross_entropy_survives_large_logits(where: str) -> None:
    head = torch.tensor([[300.0], [-300.0], [299.0]], device=DEVICE)
    x, targets = torch.ones(3, 1, device=DEVICE, requires_grad=True), torch.tensor([0, 1, 2], device=DEVICE)
    nll = linear_cross_entropy_triton(x, head, targets)
    torch.testing.assert_close(nll, linear_cross_entropy_reference(x, head, targets))
    assert torch.autograd.grad(nll.sum(), x)[0].isfinite().all()


@both_ways
def test_gradgradcheck(where: str) -> None:
    if where == "cuda":
        pytest.skip("float64 is for the interpreter")
    targets = torch.tensor([1, 5, 0])
    checks = [
        (lambda x, w: rms_norm_triton(x, w, 1e-5), [randn(3, 8, dtype=F64), randn(8, dtype=F64)]),
        (swiglu_triton, [randn(2, 3, 4, dtype=F64), randn(2, 10, 4, dtype=F64), randn(2, 4, 5, dtype=F64)]),
        (
            lambda x, head: cross_entropy_in_float64(x, head, targets),
            [randn(3, 4, dtype=F64), randn(9, 4, dtype=F64)],
        ),
    ]
    for function, inputs in checks:
        leaves = tuple(x.requires_grad_() for x in inputs)
        assert torch.autograd.gradcheck(function, leaves, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


def cross_entropy_in_float64(x: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    return linear_cross_entropy_triton(x, head, targets)


@both_ways
def test_gradients_that_nobody_asks_for_are_not_made(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    genuine = cross_entropy._LinearCrossEntropyBackward.apply
    monkeypatch.setattr(
        cross_entropy._LinearCrossEntropyBackward, "apply", lambda *a: made.append(a[-2:]) or genuine(*a)
    )
    x, head = (randn(n, 8, dtype=F32).requires_grad_() for n in (3, 40))
    nll = linear_cross_entropy_triton(x * 1, head, torch.tensor([1, 2, 3], device=DEVICE)).sum()
    (only,) = torch.autograd.grad(nll, [x], retain_graph=True, create_graph=True)
    both = torch.autograd.grad(nll, [x, head])
    assert made == [(True, False), (True, True)]
    torch.testing.assert_close(only, both[0])


def sizes() -> tuple[int, int]:
    """Hidden width and dim."""
    return (700, 300) if ON_DEVICE else (20, 12)


def gradients(batch: int, dtype: torch.dtype, blocks: int = 2) -> list[PrimeWeights]:
    hidden, dim = sizes()
    shapes = (batch, 2 * hidden, dim), (batch, dim, hidden)
    return [PrimeWeights(*(randn(*shape, dtype=dtype) for shape in shapes)) for _ in range(blocks)]


@both_ways
@pytest.mark.parametrize("rule", ["sgd", "normalized", "balanced"])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_inner_step(where: str, rule: str, dtype: torch.dtype) -> None:
    grads, own = gradients(2, dtype), Rule(rule, 0.3, 1.5)
    layout = FastLayout.of(grads)
    fast = randn(1, layout.size, dtype=F32).expand(2, -1)  # the initial weights, shared by a batch
    grads[1].w2.zero_()
    grads[0].w13[1, 3], grads[0].w2[0, :, 2] = 0, 0  # a row and a column of zeros
    rates = None if dtype == F32 else torch.linspace(0.5, 1.5, 6, device=DEVICE)
    after, grad_norm, clip = updated(fast, joined(grads).float(), layout, own, rates)
    found = sgd.inner_step_triton(fast, grads, own, rates, dtype)
    torch.testing.assert_close(found.grad_norm, grad_norm)
    torch.testing.assert_close(found.clip, clip)
    torch.testing.assert_close(found.fast, after, rtol=1e-6, atol=1e-6)
    # The interpreter cuts where devices round.
    torch.testing.assert_close(found.products, found.fast.to(dtype), rtol=2**-7, atol=0)


@both_ways
def test_inner_step_taken_back_for_some_documents(where: str) -> None:
    grads = gradients(3, F32, blocks=1)
    fast = randn(3, FastLayout.of(grads).size, dtype=F32)
    grads[0].w13[2, 0, 0] = float("nan")
    step = sgd.inner_step_triton(fast, grads, Rule(), None, F32)
    step = sgd.undo_step_triton(step, torch.tensor([True, False, True], device=DEVICE))
    assert (step.fast[0] != fast[0]).any()
    assert torch.equal(step.fast[1], fast[1])  # refused
    assert torch.equal(step.fast[2], fast[2])  # not finite
    assert torch.equal(step.products, step.fast) and step.grad_norm[2].isnan()


@both_ways
@pytest.mark.parametrize(("rule", "clip"), [("sgd", 0.5), ("sgd", 1e6), ("sgd", 0.0), ("normalized", 1.0)])
@pytest.mark.parametrize("dtype", [F64, F32])
def test_what_an_inner_step_hands_back(where: str, rule: str, clip: float, dtype: torch.dtype) -> None:
    if where == "cuda" and dtype == F64:
        pytest.skip("float64 is for the interpreter")
    grads = gradients(2, dtype)
    asked = randn(2, FastLayout.of(grads).size, dtype=dtype)
    grads[1].w2.zero_()  # a matrix that has no norm to divide by
    rates = torch.linspace(0.5, 1.5, 6, dtype=dtype, device=DEVICE)
    expected = step_direction_reference(asked, grads, Rule(rule, 0.3, clip), rates)
    found = sgd.step_direction_triton(asked, grads, Rule(rule, 0.3, clip), rates)
    tolerance = 1e-10 if dtype == F64 else 1e-5
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
