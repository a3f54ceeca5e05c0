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
from ttt_docs.kernels.rms_norm import triton as rms_norm
from ttt_docs.kernels.rms_norm.definition import rms_norm_reference
from ttt_docs.kernels.rms_norm.triton import add_rms_norm_triton, rms_norm_triton
from ttt_docs.kernels.swiglu.definition import swiglu_reference
from ttt_docs.kernels.swiglu.triton import swiglu_triton
from ttt_docs.model.config import ReadingConfig
from ttt_docs.model.decoder import FastWeights, product_weights
from ttt_docs.ttt.inner_loop import fast_gradients, inner_step

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


@both_ways
@pytest.mark.parametrize("rule", ["sgd", "normalized", "balanced"])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_inner_step(where: str, rule: str, dtype: torch.dtype) -> None:
    hidden, dim = (700, 300) if ON_DEVICE else (20, 12)
    reading = ReadingConfig(inner_rule=rule, inner_lr=0.3, inner_clip=1.5)
    shapes = [(2, hidden, dim), (2, dim, hidden), (2, hidden, dim)]
    fast = [FastWeights(*(randn(*s, dtype=F32) for s in shapes)) for _ in range(2)]
    fast[0] = fast[0]._replace(w1=fast[0].w1[:1].expand(2, -1, -1))  # the initial weights, shared by a batch
    grads = [(randn(2, 2 * hidden, dim, dtype=dtype), randn(2, dim, hidden, dtype=dtype)) for _ in range(2)]
    grads[1] = (grads[1][0], grads[1][1] * 0)
    wide = [FastWeights(a[:, :hidden].float(), b.float(), a[:, hidden:].float()) for a, b in grads]
    wide[0].w1[1, 3], wide[0].w2[0, :, 2] = 0, 0  # a row and a column of zeros
    grads[0][0][1, 3], grads[0][1][0, :, 2] = 0, 0
    rates = None if dtype == F32 else torch.linspace(0.5, 1.5, 6, device=DEVICE)
    expected = inner_step(fast, wide, reading, None if rates is None else rates.view(2, 3))
    found = sgd.inner_step_triton(fast, grads, dtype, rule, 0.3, 1.5, rates)
    torch.testing.assert_close(found.grad_norm, expected.grad_norm)
    torch.testing.assert_close(found.clip, expected.clip)
    for mine, theirs, products in zip(found.fast, expected.fast, found.products, strict=True):
        for w, wanted in zip(mine, theirs, strict=True):
            torch.testing.assert_close(w, wanted, rtol=1e-6, atol=1e-6)
        for p, wanted in zip(products, product_weights(FastWeights(*mine), dtype), strict=True):
            torch.testing.assert_close(p, wanted, rtol=2**-7, atol=0)  # the interpreter cuts where devices round


@both_ways
def test_inner_step_taken_back_for_some_documents(where: str) -> None:
    shapes = [(3, 20, 12), (3, 12, 20), (3, 20, 12)]
    fast = [FastWeights(*(randn(*s, dtype=F32) for s in shapes))]
    grads = [(randn(3, 40, 12, dtype=F32), randn(3, 12, 20, dtype=F32))]
    grads[0][0][2, 0, 0] = float("nan")
    step = sgd.inner_step_triton(fast, grads, F32, "sgd", 1.0, 1.0)
    sgd.undo_step(step, torch.tensor([True, False, True], device=DEVICE))
    for w, before in zip(step.fast[0], fast[0], strict=True):
        assert not torch.equal(w[0], before[0])
        assert torch.equal(w[1], before[1])  # refused
        assert torch.equal(w[2], before[2])  # not finite
    w13, w2 = step.products[0]
    assert torch.equal(w13, torch.cat([step.fast[0][0], step.fast[0][2]], 1)) and torch.equal(w2, step.fast[0][1])
    assert step.grad_norm[2].isnan()


@both_ways
@pytest.mark.parametrize(("rule", "clip"), [("sgd", 0.5), ("sgd", 1e6), ("sgd", 0.0), ("normalized", 1.0)])
@pytest.mark.parametrize("dtype", [F64, F32])
def test_what_an_inner_step_hands_back(where: str, rule: str, clip: float, dtype: torch.dtype) -> None:
    if where == "cuda" and dtype == F64:
        pytest.skip("float64 is for the interpreter")
    hidden, dim = (700, 300) if ON_DEVICE else (20, 12)
    reading = ReadingConfig(inner_rule=rule, inner_lr=0.3, inner_clip=clip)
    shapes = [(2, hidden, dim), (2, dim, hidden), (2, hidden, dim)]
    fast, asked = ([FastWeights(*(randn(*s, dtype=dtype) for s in shapes)) for _ in range(2)] for _ in range(2))
    grads = [(randn(2, 2 * hidden, dim, dtype=dtype), randn(2, dim, hidden, dtype=dtype)) for _ in range(2)]
    grads[1][1].zero_()  # a matrix that has no norm to divide by
    rates = torch.linspace(0.5, 1.5, 6, dtype=dtype, device=DEVICE)
    leaves = [g.clone().requires_grad_() for block in grads for g in block]
    own_rates = rates.clone().requires_grad_()
    after = inner_step(fast, fast_gradients(leaves), reading, own_rates.view(2, 3)).fast
    *expected, of_rates = torch.autograd.grad(
        [w for block in after for w in block], [*leaves, own_rates], [w for block in asked for w in block]
    )
    found, found_rates = sgd.step_direction_triton(asked, grads, rule, 0.3, clip, rates)
    tolerance = 1e-10 if dtype == F64 else 1e-5
    torch.testing.assert_close(found_rates, of_rates, rtol=tolerance, atol=tolerance)
    for mine, theirs in zip([v for pair in found for v in pair], expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)
