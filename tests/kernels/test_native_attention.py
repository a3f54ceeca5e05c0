"""The compiled kernels against the definitions in float64, on fresh random bfloat16 inputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from ttt_docs.kernels.attention.cpu import window_attention_cpu, window_attention_native
from ttt_docs.kernels.attention.definition import Sinks, window_attention_reference
from ttt_docs.kernels.native.build import native_library

needs_native = pytest.mark.skipif(native_library().loaded is None, reason=native_library().reason)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Inputs:
    """Random bfloat16 inputs, queries lying in memory as the projections leave them."""

    def __init__(self, heads: tuple[int, int], cached: int, new: int, head_dim: int, sinks: int = 0, batch: int = 2):
        def rows(count: int, tokens: int) -> Tensor:
            return torch.randn(batch, tokens, count, head_dim).bfloat16().transpose(1, 2)

        self.q, self.sink_q, self.grad = rows(heads[0], new), rows(heads[0], new), rows(heads[0], new)
        self.k, self.v = rows(heads[1], cached + new), rows(heads[1], cached + new).contiguous()
        self.cached = cached
        self.sink_k, self.sink_v = rows(heads[1], sinks), rows(heads[1], sinks)
        self.hidden = torch.rand(new, sinks) > 0.5 if sinks else None

    def run(self, attention: Any, window: int | None, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
        """Output and the gradients of queries, newest keys, newest values and the sinks' queries."""
        q, k, v, sink_q = (x.to(dtype).detach() for x in (self.q, self.k, self.v, self.sink_q))
        leaves = [x.requires_grad_() for x in (q, k[:, :, self.cached :].detach(), v[:, :, self.cached :].detach())]
        sinks = None
        if self.hidden is not None:
            leaves.append(sink_q.requires_grad_())
            sinks = Sinks(sink_q, self.sink_k.to(dtype), self.sink_v.to(dtype), self.hidden)
        if attention is window_attention_reference:
            k, v = (torch.cat([x[:, :, : self.cached], y], 2) for x, y in ((k, leaves[1]), (v, leaves[2])))
            out = attention(q, k, v, window, sinks)
        else:
            out = attention(q, k, v, window, sinks, newest=(leaves[1], leaves[2]))
        return [out.detach(), *torch.autograd.grad(out, leaves, self.grad.to(dtype))]


def largest_error(actual: list[Tensor], expected: list[Tensor]) -> float:
    """Relative, in the 2-norm, of the worst of the tensors; one of (next to) zeros counts as of deviation 0.1."""
    pairs = zip(actual, expected, strict=True)
    return max(((a.double() - e).norm() / e.norm().clamp_min(0.1 * e.numel() ** 0.5)).item() for a, e in pairs)


@needs_native
@pytest.mark.parametrize("heads", [(9, 3), (2, 2), (4, 1)])
@pytest.mark.parametrize(
    ("cached", "new", "window"),
    [(0, 9, None), (0, 40, 16), (31, 33, 48), (96, 64, 96), (200, 100, 130), (300, 32, 301), (64, 70, 3)],
)
@pytest.mark.parametrize("sinks", [0, 4])
def test_values_and_gradients(heads: tuple[int, int], cached: int, new: int, window: int | None, sinks: int) -> None:
    inputs = Inputs(heads, cached, new, 64, sinks)
    exact = inputs.run(window_attention_reference, window, torch.float64)
    assert largest_error(inputs.run(window_attention_native, window), exact) < 8e-3


@needs_native
@pytest.mark.parametrize("head_dim", [32, 96, 128])
def test_other_head_dims(head_dim: int) -> None:
    inputs = Inputs((4, 2), 150, 50, head_dim, sinks=3)
    exact = inputs.run(window_attention_reference, 100, torch.float64)
    assert largest_error(inputs.run(window_attention_native, 100), exact) < 8e-3


@needs_native
@pytest.mark.parametrize("factor", [30.0, -30.0])
def test_scores_beyond_the_range_of_exp(factor: float) -> None:
    """Scores of some hundreds, all positive or all negative: only a shift by each row's largest can hold them."""
    inputs = Inputs((2, 1), 60, 40, 64, sinks=2)
    along = torch.randn(64)
    for keys in (inputs.k, inputs.sink_k):
        keys.copy_(along + 0.1 * torch.randn_like(keys.float()))
    for queries in (inputs.q, inputs.sink_q):
        queries.copy_(factor * along + torch.randn_like(queries.float()))
    actual = inputs.run(window_attention_native, 50)
    exact = inputs.run(window_attention_reference, 50, torch.float64)
    assert largest_error(actual[:1], exact[:1]) < 8e-3
    assert all(gradient.isfinite().all() for gradient in actual)


@needs_native
def test_threads_and_company_do_not_change_a_bit() -> None:
    """However many threads there are, and whether a document is read alone or beside another."""
    inputs = Inputs((6, 2), 100, 300, 64, sinks=4)
    torch.set_num_threads(1)
    one = inputs.run(window_attention_native, 128)
    for threads in (2, 3, 8):
        torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(one, inputs.run(window_attention_native, 128), strict=True))
    for name in ("q", "k", "v", "sink_q", "sink_k", "sink_v", "grad"):
        setattr(inputs, name, getattr(inputs, name)[1:])
    assert all(torch.equal(a[1:], b) for a, b in zip(one, inputs.run(window_attention_native, 128), strict=True))


@needs_native
def test_it_leaves_the_tiles_to_other_products_as_they_were() -> None:
    """oneDNN configures the same registers for itself: its products before and after must be the same."""
    a, b = torch.randn(64, 96).bfloat16(), torch.randn(96, 80).bfloat16()
    before = a @ b
    Inputs((2, 1), 0, 40, 64).run(window_attention_native, None)
    assert torch.equal(a @ b, before)


def test_what_it_was_not_made_for_takes_the_pytorch_path() -> None:
    for inputs, dtype in ((Inputs((2, 1), 8, 24, 64), torch.float32), (Inputs((2, 1), 8, 24, 8), torch.bfloat16)):
        expected = inputs.run(window_attention_cpu, 16, dtype)
        assert all(
            torch.equal(a, b) for a, b in zip(expected, inputs.run(window_attention_native, 16, dtype), strict=True)
        )
