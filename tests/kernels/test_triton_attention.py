"""Window attention in Triton against its definition: value, gradient, gradient of the gradient."""

import pytest
import torch
from torch import Tensor
from triton_checks import DEVICE, ON_DEVICE, assert_agrees, both_ways, randn

from ttt_docs.kernels.attention import triton_tiles as attention
from ttt_docs.kernels.attention.definition import Sinks, window_attention_reference
from ttt_docs.kernels.attention.triton import window_attention_triton
from ttt_docs.kernels.attention.triton_tiles import Tiles, parts
from ttt_docs.kernels.dispatch import MAX_FLOAT32_HEAD_DIM

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter: several tiles of a small problem."""
    torch.manual_seed(torch.seed() % 2**32)
    if not ON_DEVICE:
        small = {kernel: {256: Tiles(16, 16, 4, 1)} for kernel in attention.TILES}
        monkeypatch.setattr(attention, "TILES", small)
        monkeypatch.setattr(attention, "WIDE_TILES", small)


def heads_of(tokens: int, heads: int, head_dim: int, dtype: torch.dtype, batch: int = 1) -> Tensor:
    """[batch, heads, tokens, head_dim] as projections make it: a view of something wider."""
    return randn(batch, tokens, heads + 1, head_dim, dtype=dtype).transpose(1, 2)[:, :heads]


@both_ways
@pytest.mark.parametrize(
    ("cached", "new", "window", "heads", "head_dim", "dtype"),
    [
        (9, 19, 13, (2, 1), 16, F64),
        (0, 18, None, (2, 2), 24, F32),
        (5, 17, 3, (3, 1), 8, F32),
        (12, 20, 16, (2, 1), 16, BF16),
        (0, 17, 9, (1, 1), 40, F16),
    ],
)
def test_against_the_definition(
    where: str, cached: int, new: int, window: int | None, heads: tuple[int, int], head_dim: int, dtype: torch.dtype
) -> None:
    q = heads_of(new, heads[0], head_dim, dtype)
    k, v = (heads_of(cached + new, heads[1], head_dim, dtype) for _ in range(2))
    assert_agrees(
        lambda q, k, v: window_attention_reference(q, k, v, window),
        lambda q, k, v: window_attention_triton(q, k, v, window),
        [q, k, v],
    )


@pytest.mark.gpu
@pytest.mark.skipif(not ON_DEVICE, reason="needs a CUDA device")
@pytest.mark.parametrize("head_dim", [16, 32, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("dtype", [BF16, F16, F32])
@pytest.mark.parametrize(
    ("cached", "new", "window", "heads"),
    [(0, 1000, None, (2, 2)), (700, 513, 777, (4, 2)), (8191, 1024, 8192, (3, 1)), (40, 1, 24, (2, 1))],
)
def test_sizes_of_models(
    cached: int, new: int, window: int | None, heads: tuple[int, int], head_dim: int, dtype: torch.dtype
) -> None:
    if dtype == F32 and head_dim > MAX_FLOAT32_HEAD_DIM:
        pytest.skip("not taken")
    test_against_the_definition("cuda", cached, new, window, heads, head_dim, dtype)


@both_ways
@pytest.mark.parametrize(("dtype", "hidden"), [(F64, False), (F32, True), (BF16, True)])
def test_reading_with_sinks_gives_gradient_to_the_newest_keys(where: str, dtype: torch.dtype, hidden: bool) -> None:
    cached, new, window, head_dim = 20, 18, 21, 16
    q, sink_q = (heads_of(new, 2, head_dim, dtype) for _ in range(2))
    past_k, past_v = (heads_of(cached, 1, head_dim, dtype) for _ in range(2))
    new_k, new_v = (heads_of(new, 1, head_dim, dtype) for _ in range(2))
    sink_k, sink_v = (heads_of(3, 1, head_dim, dtype) for _ in range(2))
    mask = (torch.rand(new, 3) > 0.5).to(DEVICE) if hidden else None

    def expected(q: Tensor, k: Tensor, v: Tensor, sink_q: Tensor) -> Tensor:
        sinks = Sinks(sink_q, sink_k.to(q), sink_v.to(q), mask)
        k, v = torch.cat([past_k.to(q), k], 2), torch.cat([past_v.to(q), v], 2)
        return window_attention_reference(q, k, v, window, sinks)

    def found(q: Tensor, k: Tensor, v: Tensor, sink_q: Tensor) -> Tensor:
        sinks = Sinks(sink_q, sink_k, sink_v, mask)
        all_k, all_v = torch.cat([past_k, k.detach()], 2), torch.cat([past_v, v.detach()], 2)
        return window_attention_triton(q, all_k, all_v, window, sinks, (k, v))

    assert_agrees(expected, found, [q, new_k, new_v, sink_q], twice=False)
    if not hidden:
        assert_agrees(expected, found, [q, new_k, new_v, sink_q])
    inputs = [q, new_k, new_v, sink_q]
    with torch.no_grad():
        torch.testing.assert_close(found(*inputs), expected(*inputs), atol=2e-2 if dtype == BF16 else 1e-5, rtol=1e-2)


@both_ways
def test_training_gives_gradient_to_sinks_and_cached_keys(where: str) -> None:
    q, sink_q = (heads_of(17, 2, 16, F32) for _ in range(2))
    k, v = (heads_of(30, 1, 16, F32) for _ in range(2))
    sink_k, sink_v = (heads_of(2, 1, 16, F32) for _ in range(2))

    def of(function: object, *inputs: Tensor) -> Tensor:
        q, k, v, sink_q, sink_k, sink_v = inputs
        return function(q, k, v, 15, Sinks(sink_q, sink_k, sink_v, None))  # type: ignore[operator]

    assert_agrees(
        lambda *inputs: of(window_attention_reference, *inputs),
        lambda *inputs: of(window_attention_triton, *inputs),
        [q, k, v, sink_q, sink_k, sink_v],
    )


@both_ways
def test_gradgradcheck(where: str) -> None:
    if where == "cuda":
        pytest.skip("float64 is for the interpreter")
    q = heads_of(17, 1, 16, F64).detach().requires_grad_()
    k, v = (heads_of(20, 1, 16, F64).detach().requires_grad_() for _ in range(2))

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return window_attention_triton(q, k, v, 7)

    assert torch.autograd.gradcheck(attend, (q, k, v), fast_mode=True)
    assert torch.autograd.gradgradcheck(attend, (q, k, v), fast_mode=True)


@both_ways
def test_results_are_the_same_every_time(where: str) -> None:
    q, k, v = (heads_of(20, 1, 16, BF16).detach().requires_grad_() for _ in range(3))
    runs = []
    for _ in range(2):
        out = window_attention_triton(q, k, v, 12)
        runs.append([out, *torch.autograd.grad(out.float().square().sum(), (q, k, v))])
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)


@both_ways
def test_rows_have_the_same_bits_whichever_they_are_launched_with(where: str) -> None:
    """Reading on must not depend on where it stopped: one launch for three chunks, or one for each."""
    chunk, window = (256, 400) if ON_DEVICE else (16, 24)
    q = heads_of(3 * chunk, 1, 16, BF16)
    k, v = (heads_of(3 * chunk, 1, 16, BF16) for _ in range(2))
    whole = window_attention_triton(q, k, v, window)
    for i in range(3):
        first, last = i * chunk, (i + 1) * chunk
        seen = slice(max(0, first - window + 1), last)
        part = window_attention_triton(q[:, :, first:last], k[:, :, seen], v[:, :, seen], window)
        assert torch.equal(part, whole[:, :, first:last])


def test_head_dimensions_are_cut_into_powers_of_two() -> None:
    cut = {8: (16, 0), 16: (16, 0), 24: (16, 16), 48: (32, 16), 64: (64, 0), 80: (64, 16), 96: (64, 32), 112: (128, 0)}
    assert {d: parts(d) for d in cut} == cut
    assert parts(160) == (128, 32) and parts(256) == (256, 0)
