"""SwiGLU with its element-wise work inside the compiled products, in bfloat16 on CPUs with AMX or AVX-512."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ttt_docs.kernels.native.calls import LEAST_ROWS, call, multiply
from ttt_docs.kernels.swiglu.cpu import swiglu_cpu
from ttt_docs.kernels.workspace import wanted, workspace

#: Up to this many rows (the guard's, a few tokens scored) a product is as fast as memory hands out its weights.
FEW_ROWS = 16


def _apart(x: Tensor, columns: int) -> Tensor:
    """An empty [batch, tokens, columns] whose rows lie a cache line further apart than they need to: at distances of
    (nearly) powers of two, rows would drive each other out of the caches."""
    return x.new_empty(*x.shape[:2], columns + 32)[..., :columns]


def _activate(x: Tensor, w13: Tensor, both: Tensor | None) -> Tensor:
    """silu(w1 x) * (w3 x) for x [batch, tokens, dim]; `both` [batch, tokens, 2 * hidden] gets w1 x beside w3 x."""
    (_, tokens, dim), hidden = x.shape, w13.shape[-2] // 2
    activated = _apart(x, hidden)
    for i, own in enumerate(w13):
        kept = (None, 0) if both is None else (both[i], both.stride(1))
        weights = own[:hidden], own[hidden:]
        call("swiglu_forward", tokens, hidden, dim, x[i], *weights, *kept, activated[i], activated.stride(1))
    return activated


def _times(x: Tensor, weight: Tensor) -> Tensor:
    """x [batch, tokens, in] @ weight [batch, in, out]"""
    out = x.new_empty(*x.shape[:2], weight.shape[-1])
    for row, own, to in zip(x, weight, out, strict=True):
        multiply(row, own, to)
    return out


def _weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """The sum over tokens of grad^T x, for each sequence by itself."""
    out = x.new_empty(x.shape[0], grad.shape[-1], x.shape[-1])
    for g, row, to in zip(grad, x, out, strict=True):
        multiply(g.t(), row, to)
    return out


def _few(x: Tensor, w13: Tensor, w2: Tensor) -> Tensor:
    """SwiGLU without gradient for x [batch, at most `FEW_ROWS`, dim]."""
    rows, hidden = x.shape[1], w2.shape[-1]
    out, both = torch.empty_like(x), x.new_empty(rows, 2 * hidden)
    for row, own13, own2, to in zip(x, w13, w2, out, strict=True):
        call("multiply_few", rows, 2 * hidden, x.shape[-1], row, own13, both)
        activated = F.silu(both[:, :hidden]).mul_(both[:, hidden:])
        call("multiply_few", rows, x.shape[-1], hidden, activated, own2, to)
    return out


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w13: Tensor, w2: Tensor) -> Tensor:  # type: ignore[override]
        both = _apart(x, w13.shape[-2])
        activated = _activate(x, w13, both)
        ctx.save_for_backward(x, w13, w2, both, activated if ctx.needs_input_grad[2] else None)
        return _times(activated, w2.mT)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # type: ignore[override]
        x, w13, w2, both, activated = ctx.saved_tensors
        (batch, tokens, dim), hidden = x.shape, w2.shape[-1]
        grad = grad.contiguous()
        grad_both = workspace("gradient of gate and up", (batch, tokens, both.stride(1)), x.dtype)[..., : 2 * hidden]
        for i, own in enumerate(w2):
            call("swiglu_backward", tokens, hidden, dim, grad[i], own, both[i], grad_both[i], both.stride(1))
        grad_w2 = _weight_gradient(grad, activated) if wanted(ctx, 2) else None
        grad_w13 = _weight_gradient(grad_both, x) if wanted(ctx, 1) else None
        grad_x = _times(grad_both, w13) if ctx.needs_input_grad[0] else None
        return grad_x, grad_w13, grad_w2


def _dense(weight: Tensor) -> Tensor:
    """The weights without gaps inside a sequence's own. Between sequences there may be some: fast weights are views."""
    last = weight[0] if weight.dim() == 3 else weight
    return weight if last.is_contiguous() else weight.contiguous()


def swiglu_native(x: Tensor, w13: Tensor, w2: Tensor) -> Tensor:
    """As `swiglu_cpu`, which still does what the compiled products were not made for."""
    few = x.shape[1] <= FEW_ROWS and not torch.is_grad_enabled()
    fits = x.shape[-1] % 32 == w2.shape[-1] % 32 == 0 and (few or x.shape[1] >= LEAST_ROWS)
    if x.dtype != torch.bfloat16 or not fits:
        return swiglu_cpu(x, w13, w2)
    x = x.contiguous()
    w13, w2 = (_dense(w).expand(len(x), -1, -1) for w in (w13, w2))  # one per sequence, perhaps the same
    if few:
        return _few(x, w13, w2)
    if not torch.is_grad_enabled():
        return _times(_activate(x, w13, None), w2.mT)
    return _SwiGLU.apply(x, w13, w2)
