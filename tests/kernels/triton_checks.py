"""Checks of Triton kernels: in Triton's interpreter where there is no GPU (see the tests' `conftest.py`), on the GPU
with `pytest -m gpu`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
ON_DEVICE = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_DEVICE else "cpu")

#: Relative error allowed against float64.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}

#: A test with this runs twice: in the interpreter, and as a `gpu` test on the device.
both_ways = pytest.mark.parametrize(
    "where",
    [
        pytest.param("interpreter", marks=pytest.mark.skipif(ON_DEVICE, reason="a GPU is here: pytest -m gpu")),
        pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not ON_DEVICE, reason="needs a CUDA device")]),
    ],
)


def randn(*shape: int, dtype: torch.dtype) -> Tensor:
    """Fresh random numbers that `dtype` holds exactly."""
    return torch.randn(*shape, dtype=torch.float64).to(dtype).to(DEVICE)


def assert_agrees(
    definition: Callable[..., Tensor | tuple[Tensor, ...]],
    kernel: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: Sequence[Tensor],
    twice: bool = True,
) -> None:
    """Value, gradient and gradient of the gradient of `kernel` against `definition` in float64: relative errors."""
    dtype = inputs[0].dtype
    seed = torch.randint(1 << 30, ()).item()
    results = [_derivatives(f, inputs, kind, seed, twice) for f, kind in ((definition, torch.float64), (kernel, dtype))]
    for index, (expected, found) in enumerate(zip(*results, strict=True)):
        assert (expected is None) == (found is None)
        if expected is not None:
            assert found.isfinite().all()
            error = (found.double() - expected).norm() / expected.norm().clamp_min(1e-12)
            assert error < TOLERANCE[dtype], f"tensor {index} of {len(results[0])} is off by {error:.1e}"


def _derivatives(
    function: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: Sequence[Tensor],
    dtype: torch.dtype,
    seed: int,
    twice: bool,
) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(seed)

    def weighted(tensors: Sequence[Tensor]) -> Tensor:
        """A random linear function of all tensors, the same in every precision."""
        total = torch.zeros((), dtype=torch.float64, device=DEVICE)
        for t in tensors:
            factors = torch.randn(t.shape, generator=generator).to(torch.bfloat16).to(DEVICE)
            total = total + (t.double() * factors.double()).sum()
        return total

    leaves = [x.to(dtype).requires_grad_() for x in (i.detach().clone() for i in inputs)]
    results = function(*leaves)
    results = results if isinstance(results, tuple) else (results,)
    grads = torch.autograd.grad(weighted(results), leaves, create_graph=twice)
    second = torch.autograd.grad(weighted(grads), leaves, allow_unused=True) if twice else ()
    return [*(r.detach() for r in results), *grads, *second]
