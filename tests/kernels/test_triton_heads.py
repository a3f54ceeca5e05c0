"""QK norm and RoPE of all heads in Triton, against their definition."""

import pytest
import torch
from torch import Tensor
from triton_checks import DEVICE, ON_DEVICE, assert_agrees, both_ways, randn

from ttt_docs.kernels.heads.definition import Heads, HeadSplit, Rotation, split_heads_reference
from ttt_docs.kernels.heads.triton import heads_triton

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16


def angles(tokens: int, dim: int, dtype: torch.dtype) -> Rotation:
    angle = torch.rand(tokens, dim // 2, dtype=torch.float64, device=DEVICE) * 6
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([cos, cos], -1).to(dtype), torch.cat([-sin, sin], -1).to(dtype)


def split_for(tokens: int, dim: int, kv_heads: int, sinks: str, dtype: torch.dtype) -> HeadSplit:
    sink_rotation = angles(tokens, dim, dtype) if sinks == "rotated" else None
    return HeadSplit(kv_heads, angles(tokens, dim, dtype), bool(sinks), sink_rotation, eps=1e-5)


def in_dtype(split: HeadSplit, dtype: torch.dtype) -> HeadSplit:
    def cast(turn: Rotation) -> Rotation:
        return turn[0].to(dtype), turn[1].to(dtype)

    return split._replace(
        rotation=cast(split.rotation), sink_rotation=split.sink_rotation and cast(split.sink_rotation)
    )


def both(split: HeadSplit) -> tuple[object, object]:
    """Definition and kernel as functions of qkv and the norms' weights."""

    def of(function: object, qkv: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        made = function(qkv, *(weights or (None, None)), in_dtype(split, qkv.dtype))  # type: ignore[operator]
        return tuple(x + x.square() / 4 for x in made if x is not None)  # turning alone has no second derivative

    return (lambda *i: of(split_heads_reference, *i)), (lambda *i: of(heads_triton, *i))


@both_ways
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(
    ("batch", "tokens", "heads", "kv_heads", "dim", "sinks", "dtype"),
    [
        (1, 40, 3, 3, 16, "", F64),
        (2, 19, 4, 2, 24, "straight", F32),
        (2, 33, 3, 1, 40, "rotated", F32),
        (1, 17, 2, 1, 64, "rotated", BF16),
        (3, 1, 2, 2, 8, "", F16),
    ],
)
def test_against_the_definition(
    where: str, batch: int, tokens: int, heads: int, kv_heads: int, dim: int, sinks: str, dtype: torch.dtype,
    normed: bool,
) -> None:  # fmt: skip
    inputs = [randn(batch, tokens, heads + 2 * kv_heads, dim, dtype=dtype)]
    if normed:
        inputs += [randn(dim, dtype=dtype), randn(dim, dtype=dtype)]
    assert_agrees(*both(split_for(tokens, dim, kv_heads, sinks, dtype)), inputs)


@pytest.mark.gpu
@pytest.mark.skipif(not ON_DEVICE, reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "sinks", "normed"),
    [(16, 16, 96, "", True), (32, 32, 80, "", True), (9, 3, 64, "straight", False), (8, 4, 256, "rotated", True)],
)
def test_sizes_of_models(heads: int, kv_heads: int, dim: int, sinks: str, normed: bool, dtype: torch.dtype) -> None:
    test_against_the_definition("cuda", 2, 1000, heads, kv_heads, dim, sinks, dtype, normed)


@both_ways
def test_gradgradcheck(where: str) -> None:
    if where == "cuda":
        pytest.skip("float64 is for the interpreter")
    inputs = tuple(randn(*s, dtype=F64).requires_grad_() for s in ((1, 3, 4, 8), (8,), (8,)))
    _, kernel = both(split_for(3, 8, 1, "rotated", F64))
    assert torch.autograd.gradcheck(kernel, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(kernel, inputs, fast_mode=True)


@both_ways
@pytest.mark.parametrize("function", [split_heads_reference, heads_triton])
def test_keys_and_values_are_written_where_they_belong(where: str, function: object) -> None:
    qkv = randn(2, 5, 4, 16, dtype=F32).requires_grad_()
    buffer = torch.full((2, 2, 1, 9, 16), 7.0, device=DEVICE)
    slots = buffer[0, :, :, 3:8], buffer[1, :, :, 3:8]
    split = HeadSplit(1, angles(5, 16, F32), slots=slots)
    made: Heads = function(qkv, None, None, split)  # type: ignore[operator]
    expected = split_heads_reference(qkv, None, None, split._replace(slots=None))
    torch.testing.assert_close(buffer[0, :, :, 3:8], expected.k.detach())
    torch.testing.assert_close(buffer[1, :, :, 3:8], expected.v.detach())
    assert (buffer[:, :, :, :3] == 7).all() and (buffer[:, :, :, 8:] == 7).all()
    assert not buffer.requires_grad

    def gradient(of: Heads) -> Tensor:
        return torch.autograd.grad((of.q.square() + of.k * of.v).sum(), qkv)[0]

    torch.testing.assert_close(gradient(made), gradient(expected))


@both_ways
def test_the_norms_gradients_are_made_only_if_asked_for(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ttt_docs.kernels.heads import triton as heads

    asked = []
    genuine = heads._HeadsBackward.apply
    monkeypatch.setattr(heads._HeadsBackward, "apply", lambda *a: asked.append(a[-1]) or genuine(*a))
    qkv, q_norm, k_norm = (randn(*s, dtype=F32).requires_grad_() for s in ((1, 3, 4, 8), (8,), (8,)))
    made = heads_triton(qkv, q_norm, k_norm, split_for(3, 8, 1, "", F32))
    total = (made.q.sum() + made.k.square().sum()) * 1
    torch.autograd.grad(total, [qkv], retain_graph=True)
    torch.autograd.grad(total, [qkv, q_norm])
    assert asked == [False, True]
