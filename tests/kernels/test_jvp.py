"""Kernels on duals (values and tangents) in float64: both, and the gradient of both, against the plain definitions
differentiated along a direction by autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from ttt_docs.kernels.attention import jvp as attention_jvp
from ttt_docs.kernels.attention.definition import Sinks, window_attention_reference
from ttt_docs.kernels.attention.jvp import window_attention_jvp
from ttt_docs.kernels.backends import JvpKernels
from ttt_docs.kernels.cross_entropy import cpu as cross_entropy
from ttt_docs.kernels.cross_entropy.definition import linear_cross_entropy_reference
from ttt_docs.kernels.cross_entropy.jvp import linear_cross_entropy_jvp
from ttt_docs.kernels.rms_norm.definition import rms_norm_reference
from ttt_docs.kernels.rms_norm.jvp import rms_norm_jvp
from ttt_docs.kernels.swiglu.definition import batched_linear, swiglu_reference
from ttt_docs.kernels.swiglu.jvp import swiglu_jvp


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def assert_dual(
    definition: Callable[..., Tensor],
    dual: Callable[..., Tensor],
    values: Sequence[Tensor],
    tangents: Sequence[Tensor],
    shared: Sequence[Tensor] = (),
    given: Sequence[int] = (),
) -> None:
    """`values` and their `tangents` go in as duals, `shared` as they are; tangents in `given` need no gradient."""
    v, t, s = ([x.clone().requires_grad_() for x in xs] for xs in (values, tangents, shared))
    out = torch.autograd.functional.jvp(lambda *v: definition(*v, *s), tuple(v), tuple(t), create_graph=True)
    duals = [torch.cat(both).requires_grad_() for both in zip(values, tangents, strict=True)]
    fresh = [x.clone().requires_grad_() for x in shared]
    got = dual(*duals, *fresh)
    expected = torch.cat(out)
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)
    weights = torch.randn_like(expected)
    grads = torch.autograd.grad((expected * weights).sum(), [*v, *t, *s], materialize_grads=True)
    of_duals = torch.autograd.grad((got * weights).sum(), [*duals, *fresh], materialize_grads=True)
    for i in range(len(v)):
        value, tangent = of_duals[i].chunk(2)
        torch.testing.assert_close(value, grads[i], atol=1e-10, rtol=1e-10)
        if i not in given:
            torch.testing.assert_close(tangent, grads[len(v) + i], atol=1e-10, rtol=1e-10)
    for mine, theirs in zip(of_duals[len(v) :], grads[2 * len(v) :], strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=1e-10)


def test_rms_norm() -> None:
    for shape in ((4, 5, 8), (2, 5, 3, 8)):
        assert_dual(
            lambda x, w: rms_norm_reference(x, w, 1e-5),
            lambda x, w: rms_norm_jvp(x, w, 1e-5),
            [random(*shape)], [random(*shape)], [random(8)],
        )  # fmt: skip


def test_linear_keeps_the_bias_out_of_the_tangent() -> None:
    x, t = random(2, 5, 8), random(2, 5, 8)
    assert_dual(lambda x, w, b: batched_linear(x, w) + b, JvpKernels.linear, [x], [t], [random(6, 8), random(6)])


def test_swiglu_with_shared_weights() -> None:
    assert_dual(
        swiglu_reference, swiglu_jvp, [random(2, 5, 8)], [random(2, 5, 8)], [random(12, 8), random(8, 6)]
    )  # fmt: skip


def test_swiglu_with_weights_of_each_sequences_own() -> None:
    shapes = ((2, 5, 8), (2, 12, 8), (2, 8, 6))
    assert_dual(swiglu_reference, swiglu_jvp, [random(*s) for s in shapes], [random(*s) for s in shapes], given=(1, 2))


@pytest.mark.parametrize("ignore", [None, 3])
@pytest.mark.parametrize("scale", [1.0, 300.0], ids=["usual", "beyond exp"])
def test_linear_cross_entropy_over_several_tiles(
    scale: float, ignore: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(3)  # of logits in the thousands, float64 does not hold every gradient to 1e-10
    monkeypatch.setattr(cross_entropy, "ROWS", 16)
    monkeypatch.setattr(cross_entropy, "COLUMNS", 20)
    targets = torch.randint(0, 50, (40,))
    assert_dual(
        lambda x, head: linear_cross_entropy_reference(x * scale, head, targets, ignore),
        lambda x, head: linear_cross_entropy_jvp(x * scale, head, targets, ignore),
        [random(40, 6)], [random(40, 6)], [random(50, 6)],
    )  # fmt: skip


@pytest.mark.parametrize(("cached", "new", "window"), [(0, 9, None), (0, 9, 4), (23, 16, 24), (40, 16, 24)])
@pytest.mark.parametrize("heads", [(6, 2), (3, 3)])
@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.parametrize("tile", [5, 256])
def test_window_attention(
    cached: int, new: int, window: int | None, heads: tuple[int, int], with_sinks: bool, tile: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(attention_jvp, "TILE", tile)
    query_heads, kv_heads = heads
    q, k, v = random(2, query_heads, new, 8), random(2, kv_heads, cached + new, 8), random(2, kv_heads, cached + new, 8)
    of_sinks = [random(2, query_heads, new, 8), random(2, kv_heads, 4, 8), random(2, kv_heads, 4, 8)]
    values = [q, k, v, *(of_sinks if with_sinks else ())]
    tangents = [torch.randn_like(x) for x in values]
    for x in tangents[1:3]:
        x[:, :, :cached] = 0  # cached keys do not move
    for x in tangents[4:]:
        x.zero_()
    hidden = torch.rand(new, 4) > 0.5

    def attention(kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def of(q: Tensor, k: Tensor, v: Tensor, *sinks: Tensor) -> Tensor:
            return kernel(q, k, v, window, Sinks(*sinks, hidden) if sinks else None)

        return of

    # What moves is given for the cached keys and the sinks: their tangents' gradient is not made.
    assert_dual(
        attention(window_attention_reference),
        attention(window_attention_jvp),
        values,
        tangents,
        given=(4, 5) if cached == 0 else (1, 2, 4, 5),
    )
