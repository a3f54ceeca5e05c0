"""The CPU kernels against the plain functions that define them: values and gradients, on fresh random inputs."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from ttt_docs.kernels import cross_entropy, rms_norm, swiglu
from ttt_docs.kernels.attention import cpu as attention
from ttt_docs.kernels.attention.cpu import window_attention_cpu, window_attention_native
from ttt_docs.kernels.attention.definition import Sinks, window_attention_reference
from ttt_docs.kernels.backends import CPU, NATIVE, Kernels
from ttt_docs.kernels.cross_entropy.cpu import linear_cross_entropy_cpu
from ttt_docs.kernels.cross_entropy.definition import linear_cross_entropy_reference
from ttt_docs.kernels.native.build import native_library
from ttt_docs.kernels.rms_norm.cpu import rms_norm_cpu
from ttt_docs.kernels.rms_norm.definition import rms_norm_reference
from ttt_docs.kernels.swiglu.cpu import swiglu_cpu
from ttt_docs.kernels.swiglu.definition import swiglu_reference

NATIVE_HERE = native_library().loaded is not None


def assert_same(
    expected: Callable[..., Tensor], actual: Callable[..., Tensor], inputs: Sequence[Tensor], tolerance: float = 2e-5
) -> None:
    """Same result, same gradient for every input, and the same result where no gradient is wanted."""
    results, gradients = [], []
    for function in (expected, actual):
        leaves = [x.clone().requires_grad_() for x in inputs]
        result = function(*leaves)
        torch.manual_seed(7)
        gradients.append(torch.autograd.grad((result.float() * torch.randn(result.shape)).sum(), leaves))
        results.append(result)
    torch.testing.assert_close(results[1], results[0], atol=tolerance, rtol=tolerance)
    for got, wanted in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(got, wanted, atol=tolerance, rtol=tolerance)
    with torch.no_grad():
        torch.testing.assert_close(actual(*inputs), results[0].detach(), atol=tolerance, rtol=tolerance)


def test_rms_norm() -> None:
    weight = torch.randn(24)
    assert_same(
        lambda x: rms_norm_reference(x, weight, 1e-5), lambda x: rms_norm_cpu(x, weight, 1e-5), [torch.randn(2, 5, 24)]
    )


@pytest.mark.parametrize("batch", [1, 3])
def test_swiglu_with_weights_per_sequence(batch: int) -> None:
    inputs = [torch.randn(batch, 7, 16), torch.randn(batch, 40, 16), torch.randn(batch, 16, 20)]
    assert_same(swiglu_reference, swiglu_cpu, inputs)


def test_swiglu_with_shared_weights_gives_gradient_to_x_only() -> None:
    w13, w2 = torch.randn(40, 16), torch.randn(16, 20)
    assert_same(lambda x: swiglu_reference(x, w13, w2), lambda x: swiglu_cpu(x, w13, w2), [torch.randn(2, 7, 16)])


@pytest.mark.parametrize("ignore", [None, 3])
@pytest.mark.parametrize("vocab", [50, 512])
def test_linear_cross_entropy_over_several_tiles(vocab: int, ignore: int | None) -> None:
    head, targets = torch.randn(vocab, 12), torch.randint(0, 5, (300,))
    assert_same(
        lambda x: linear_cross_entropy_reference(x, head, targets, ignore),
        lambda x: linear_cross_entropy_cpu(x, head, targets, ignore),
        [torch.randn(300, 12)],
    )


def test_linear_cross_entropy_survives_logits_beyond_the_range_of_exp() -> None:
    head = torch.tensor([[300.0], [-300.0], [299.0]])
    nll = linear_cross_entropy_cpu(torch.ones(3, 1), head, torch.tensor([0, 1, 2]))
    expected = linear_cross_entropy_reference(torch.ones(3, 1), head, torch.tensor([0, 1, 2]))
    torch.testing.assert_close(nll, expected)


@pytest.mark.parametrize(("cached", "new", "window"), [(0, 9, None), (0, 9, 4), (23, 16, 24), (40, 16, 24), (5, 1, 3)])
@pytest.mark.parametrize("heads", [(6, 2), (3, 3)])
@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.parametrize("tile", [5, 256])
def test_window_attention(
    cached: int,
    new: int,
    window: int | None,
    heads: tuple[int, int],
    with_sinks: bool,
    tile: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "TILE", tile)
    monkeypatch.setattr(attention, "BACKWARD_TILE", tile)
    query_heads, kv_heads = heads
    q = torch.randn(2, query_heads, new, 8)
    past_k, past_v = torch.randn(2, kv_heads, cached, 8), torch.randn(2, kv_heads, cached, 8)
    new_k, new_v = torch.randn(2, kv_heads, new, 8), torch.randn(2, kv_heads, new, 8)
    sink_q, sink_k, sink_v = torch.randn_like(q), torch.randn(2, kv_heads, 4, 8), torch.randn(2, kv_heads, 4, 8)
    hidden = torch.rand(new, 4) > 0.5

    def of(sink_q: Tensor) -> Sinks | None:
        return Sinks(sink_q, sink_k, sink_v, hidden) if with_sinks else None

    def expected(q: Tensor, k: Tensor, v: Tensor, sink_q: Tensor) -> Tensor:
        all_k, all_v = torch.cat([past_k, k], 2), torch.cat([past_v, v], 2)
        return window_attention_reference(q, all_k, all_v, window, of(sink_q)) + 0 * sink_q

    def actual(q: Tensor, k: Tensor, v: Tensor, sink_q: Tensor) -> Tensor:
        all_k, all_v = torch.cat([past_k, k], 2).detach(), torch.cat([past_v, v], 2).detach()
        return window_attention_cpu(q, all_k, all_v, window, of(sink_q), newest=(k, v)) + 0 * sink_q

    assert_same(expected, actual, [q, new_k, new_v, sink_q])


def test_bfloat16_attention_is_close_to_float32() -> None:
    q, k, v = torch.randn(1, 4, 64, 32), torch.randn(1, 2, 160, 32), torch.randn(1, 2, 160, 32)

    def both(dtype: torch.dtype) -> list[Tensor]:
        leaves = [x.to(dtype).requires_grad_() for x in (q, k[:, :, -64:], v[:, :, -64:])]
        out = window_attention_cpu(leaves[0], k.to(dtype), v.to(dtype), 96, None, newest=(leaves[1], leaves[2]))
        torch.manual_seed(1)
        return [out, *torch.autograd.grad((out.float() * torch.randn(out.shape)).sum(), leaves)]

    for half, full in zip(both(torch.bfloat16), both(torch.float32), strict=True):
        assert (half.float() - full).norm() / full.norm() < 1e-2


def test_the_definitions_are_differentiable_twice() -> None:
    q, k, v = (torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    assert torch.autograd.gradgradcheck(lambda q, k, v: window_attention_reference(q, k, v, 3), (q, k, v))


def test_slow_weights_get_their_gradient_where_they_ask_for_it() -> None:
    targets = torch.randint(0, 50, (30,))
    assert_same(
        lambda x, w: rms_norm_reference(x, w, 1e-5),
        lambda x, w: rms_norm_cpu(x, w, 1e-5),
        [torch.randn(2, 5, 24), torch.randn(24)],
    )
    assert_same(swiglu_reference, swiglu_cpu, [torch.randn(2, 7, 16), torch.randn(40, 16), torch.randn(16, 20)])
    assert_same(
        lambda x, head: linear_cross_entropy_reference(x, head, targets, 3),
        lambda x, head: linear_cross_entropy_cpu(x, head, targets, 3),
        [torch.randn(30, 12), torch.randn(50, 12)],
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cached", [0, 40])
@pytest.mark.parametrize("with_sinks", [False, True])
def test_training_attention_gives_gradient_to_all_keys_and_sinks(
    dtype: torch.dtype, cached: int, with_sinks: bool
) -> None:
    q = torch.randn(2, 6, 64, 32)
    k, v = torch.randn(2, 2, cached + 64, 32), torch.randn(2, 2, cached + 64, 32)
    inputs = [q, k, v, torch.randn_like(q), torch.randn(2, 2, 4, 32), torch.randn(2, 2, 4, 32)]
    hidden = torch.rand(64, 4) > 0.5
    results = []
    training = window_attention_native if NATIVE_HERE else window_attention_cpu
    for wanted, kernel in ((torch.float32, window_attention_reference), (dtype, training)):
        leaves = [x.to(dtype).to(wanted).requires_grad_() for x in inputs]
        sinks = Sinks(*leaves[3:], hidden) if with_sinks else None
        newest = {} if kernel is window_attention_reference else {"newest": (leaves[1], leaves[2])}
        out = kernel(leaves[0], leaves[1], leaves[2], 24, sinks, **newest)
        torch.manual_seed(2)
        grads = torch.autograd.grad((out.float() * torch.randn(out.shape)).sum(), leaves[: 6 if with_sinks else 3])
        results.append([out, *grads])
    for expected, got in zip(*results, strict=True):
        assert (got.float() - expected).norm() / expected.norm() < (1e-5 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("kernels", [CPU, NATIVE], ids=lambda k: k.name)
@pytest.mark.parametrize("only", ["v", "sink_q", "sink_k", "sink_v"])
def test_attention_where_only_one_input_learns(kernels: Kernels, only: str) -> None:
    if kernels is NATIVE and not NATIVE_HERE:
        pytest.skip("no compiled kernels")
    shapes = {"q": (4, 40), "k": (2, 60), "v": (2, 60), "sink_q": (4, 40), "sink_k": (2, 3), "sink_v": (2, 3)}
    inputs = {name: torch.randn(1, *size, 32).bfloat16() for name, size in shapes.items()}
    grads = []
    for dtype, attend in ((torch.float64, window_attention_reference), (torch.bfloat16, kernels.window_attention)):
        own = {name: x.to(dtype) for name, x in inputs.items()}
        leaf = own[only].requires_grad_()
        q, k, v, *of_sinks = own.values()
        out = attend(q, k, v, 24, Sinks(*of_sinks, None))
        grads.append(torch.autograd.grad(out.float().square().sum(), leaf)[0].double())
    assert (grads[1] - grads[0]).norm() / grads[0].norm() < 2e-2


@pytest.mark.parametrize("kernels", [CPU, NATIVE], ids=lambda k: k.name)
def test_slow_weights_cost_nothing_where_the_inner_step_does_not_ask_for_them(
    kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `trains: all` all parameters require gradient; a chunk's inner step asks for the fast weights' alone."""
    if kernels is NATIVE and not NATIVE_HERE:
        pytest.skip("no compiled kernels")
    made: list[str] = []

    def counted(name: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *arguments: made.append(name) or function(*arguments)  # type: ignore[func-returns-value]

    gradients = (
        (rms_norm.cpu, "weight_gradient"),
        (swiglu.cpu, "weight_gradient"),
        (cross_entropy.cpu, "_head_gradient"),
    )
    for module, function in gradients:
        monkeypatch.setattr(module, function, counted(module.__name__, getattr(module, function)))
    shapes = (64,), (128, 64), (64, 64), (96, 64)
    norm, w13, w2, head = slow = [(torch.randn(s) / 8).bfloat16().requires_grad_() for s in shapes]
    fast = [(torch.randn(1, *s) / 8).bfloat16().requires_grad_() for s in shapes[1:3]]
    x, targets = torch.randn(1, 64, 64).bfloat16(), torch.randint(0, 96, (64,))

    def loss() -> Tensor:
        y = kernels.swiglu(kernels.rms_norm(x, norm, 1e-5), *fast)
        y = kernels.swiglu(kernels.rms_norm(y, norm, 1e-5), w13, w2)
        return kernels.linear_cross_entropy(kernels.rms_norm(y, norm, 1e-5)[0], head, targets).sum()

    inner = torch.autograd.grad(loss(), fast)
    assert len(made) == 2 and all("swiglu" in name for name in made)  # w13 and w2 of the fast weights
    everything = torch.autograd.grad(loss(), [*fast, *slow])
    for own, again in zip(inner, everything, strict=False):
        assert torch.equal(own, again)
    assert all(g.isfinite().all() and g.any() for g in everything)
    assert {name.split(".")[2] for name in made} == {"rms_norm", "swiglu", "cross_entropy"}
