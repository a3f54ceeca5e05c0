"""What the Triton kernels share: types that sums are kept in, and autograd around the launches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.constexpr_function
def sums_of(dtype):  # type: ignore[no-untyped-def]
    """The type for sums over `dtype`: float32, and float64 for float64 (in the interpreter only)."""
    return tl.float64 if dtype == tl.float64 else tl.float32


@triton.jit
def widened(x):
    """x in the type for sums."""
    return x.to(sums_of(x.dtype))


@triton.jit
def load(pointers, inside):
    """Numbers in the type for sums, zeros outside."""
    return widened(tl.load(pointers, mask=inside, other=0.0))


def accumulator(dtype: torch.dtype) -> tl.dtype:
    """As `sums_of`, for a dtype of torch."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def second_derivative(backward: Callable[..., tuple[Tensor | None, ...]]) -> Callable[..., tuple[Tensor | None, ...]]:
    """Wraps the `backward` of a Function that computes a gradient itself. `backward` makes the gradients of the first
    inputs; the others get None. Without any cotangent nothing is computed. There is no third derivative."""

    @torch.autograd.function.once_differentiable
    def run(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        grads = () if all(x is None for x in cotangents) else backward(ctx, *cotangents)
        return *grads, *(None,) * (len(ctx.needs_input_grad) - len(grads))

    return run
