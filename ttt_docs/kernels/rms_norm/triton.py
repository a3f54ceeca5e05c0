"""RMSNorm on the device, twice differentiable, and a residual with the norms around it in one pass."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ttt_docs.kernels.rms_norm.triton_kernels import add_norm_forward, norm_backward, norm_forward, norm_second
from ttt_docs.kernels.triton_tiles import accumulator, traced, wanted, wide


class _Rows(NamedTuple):
    """How the rows of a tensor [..., dim] lie in memory."""

    tensor: Tensor
    rows: int
    groups: int
    stride: int
    group_stride: int


def _rows_of(x: Tensor) -> _Rows:
    dim = x.shape[-1]
    rows = x.numel() // dim
    if x.dim() == 4 and x.stride(-1) == 1 and x.stride(0) == x.shape[1] * x.stride(1):  # heads of a wider matrix
        return _Rows(x, rows, x.shape[2], x.stride(1), x.stride(2))
    return _Rows(x.contiguous(), rows, 1, dim, 0)


#: Programs that keep a device busy. Where there would be more, each does several groups of rows one after the other,
#: and fewer shares of the weight's gradient go through memory.
PROGRAMS = 1024


def times(programs: int, for_weight: bool) -> int:
    """Groups of rows that a program does."""
    return max(1, programs // PROGRAMS) if for_weight else 1


def _meta(dim: int, dtype: torch.dtype, operands: int) -> dict[str, Any]:
    """Rows per program such that a thread holds at most some 16 elements of each of few operands, fewer of many."""
    width = triton.next_power_of_2(dim)
    warps = 4 if width <= 2048 else 8 if width <= 4096 else 16
    rows = max(1, (warps * 32 * (16 if operands <= 3 else 8)) // width)
    return {"DIM": dim, "WIDTH": width, "ROWS": rows, "ACC": accumulator(dtype), "num_warps": warps}


def _forward(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    lay = _rows_of(x)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    meta = _meta(x.shape[-1], x.dtype, 2)
    norm_forward[(triton.cdiv(lay.rows, meta["ROWS"]),)](
        lay.tensor, weight, y, lay.rows, lay.stride, lay.group_stride, EPS=eps, GROUPS=lay.groups, **meta
    )
    return y


def _backward(
    x: Tensor, weight: Tensor, grad: Tensor, addend: Tensor | None, eps: float, for_weight: bool
) -> tuple[Tensor, Tensor | None]:
    lay, dim = _rows_of(x), x.shape[-1]
    meta = _meta(dim, x.dtype, 3)
    meta["TIMES"] = times(triton.cdiv(lay.rows, meta["ROWS"]), for_weight)
    programs = triton.cdiv(lay.rows, meta["ROWS"] * meta["TIMES"])
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    shares = x.new_empty(programs, dim, dtype=wide(x.dtype)) if for_weight else None
    norm_backward[(programs,)](
        lay.tensor, weight, grad.contiguous(), None if addend is None else addend.contiguous(), grad_x, shares,
        lay.rows, lay.stride, lay.group_stride,
        ADD=addend is not None, FOR_WEIGHT=for_weight, EPS=eps, GROUPS=lay.groups, **meta,
    )  # fmt: skip
    return grad_x, None if shares is None else shares.sum(0).to(weight.dtype)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return _forward(x, weight, eps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        grad_x, grad_weight = _RMSNormBackward.apply(x, weight, grad, None, ctx.eps, wanted(ctx, 1))
        return grad_x, grad_weight, None


class _RMSNormBackward(torch.autograd.Function):
    """(x, weight, grad, addend) -> gradient for x, with `addend` added, and for the weight (None unless asked)."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, grad: Tensor, addend: Tensor | None, eps: float, for_weight: bool
    ) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(x, weight, grad)
        ctx.eps = eps
        ctx.set_materialize_grads(False)
        return _backward(x, weight, grad, addend, eps, for_weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, a: Tensor | None, e: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, grad = ctx.saved_tensors
        if a is None and e is None:
            return None, None, None, None, None, None
        addend_grad = a if ctx.needs_input_grad[3] else None
        cotangent = torch.zeros(x.shape, dtype=x.dtype, device=x.device) if a is None else a.contiguous()
        lay, dim = _rows_of(x), x.shape[-1]
        for_weight = ctx.needs_input_grad[1]
        meta = _meta(dim, x.dtype, 6)
        meta["TIMES"] = times(triton.cdiv(lay.rows, meta["ROWS"]), for_weight)
        programs = triton.cdiv(lay.rows, meta["ROWS"] * meta["TIMES"])
        grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        grad_grad = torch.empty_like(grad_x)
        shares = x.new_empty(programs, dim, dtype=wide(x.dtype)) if for_weight else None
        norm_second[(programs,)](
            lay.tensor, weight, grad.contiguous(), cotangent, e, grad_x, grad_grad, shares,
            lay.rows, lay.stride, lay.group_stride,
            WITH_E=e is not None, FOR_WEIGHT=for_weight, EPS=ctx.eps, GROUPS=lay.groups, **meta,
        )  # fmt: skip
        grad_weight = None if shares is None else shares.sum(0).to(weight.dtype)
        return grad_x, grad_weight, grad_grad, addend_grad, None, None


def rms_norm_triton(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As `rms_norm_reference`, differentiable twice with respect to x [..., dim] and weight [dim]."""
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _RMSNorm.apply(traced(x), traced(weight), eps)
    return _forward(x, weight, eps)


def _add_forward(
    x: Tensor, delta: Tensor, post_weight: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    x, delta = x.contiguous(), delta.contiguous()
    total, y = torch.empty_like(x), torch.empty_like(x)
    meta = _meta(x.shape[-1], x.dtype, 4)
    rows = x.numel() // x.shape[-1]
    add_norm_forward[(triton.cdiv(rows, meta["ROWS"]),)](
        x, delta, post_weight, weight, total, y, rows, POST=post_weight is not None, EPS=eps, **meta
    )
    return total, y


class _AddRMSNorm(torch.autograd.Function):
    """The gradient of the sum and of its norm meet in one launch; the post-norm's follows in a second."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, delta: Tensor, post_weight: Tensor | None, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        total, y = _add_forward(x, delta, post_weight, weight, eps)
        ctx.save_for_backward(delta if post_weight is not None else None, post_weight, weight, total)
        ctx.eps = eps
        return total, y

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, grad_y: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        delta, post_weight, weight, total = ctx.saved_tensors
        needs = ctx.needs_input_grad
        grad_x, grad_weight = _RMSNormBackward.apply(total, weight, grad_y, grad_total, ctx.eps, needs[3])
        if post_weight is None:
            return grad_x, grad_x, None, grad_weight, None
        grad_delta, grad_post = _RMSNormBackward.apply(delta, post_weight, grad_x, None, ctx.eps, needs[2])
        return grad_x, grad_delta, grad_post, grad_weight, None


def add_rms_norm_triton(
    x: Tensor, delta: Tensor, post_weight: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """As `Kernels.residual_norm`: x + delta (normed with `post_weight` first, if given) and the norm of that sum."""
    inputs = (x, delta, post_weight, weight)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
        return _AddRMSNorm.apply(x, delta, post_weight, weight, eps)
    return _add_forward(x, delta, post_weight, weight, eps)
