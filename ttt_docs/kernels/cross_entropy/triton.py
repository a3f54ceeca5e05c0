"""Linear head and cross-entropy on the device, twice differentiable, with the logits of one tile at a time.

The products go to cuBLAS, tile by tile of the vocabulary, small enough for a tile to stay in the L2 cache; the softmax
between them is one pass. The losses' gradient for the hidden states is made in the forward pass, while a tile's
exponentials are at hand: two products, and none again for them in the backward pass.

Twice: with Dl = (P - Y) * g (Y the targets' one-hot rows, g the losses' gradients) the gradients are Dl head and
Dl^T x; given their cotangents a and B, Z = a head^T + x B^T and T = g P (Z - rowsum(P Z)):

    for x: T head + Dl B      for head: T^T x + Dl^T a      for g: rowsum(P Z) - Z at the target

Without B, rowsum(P Z) = a (P head)^T, and P head - Y head is what the forward pass made: no pass over the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
from torch import Tensor

from ttt_docs.kernels.cross_entropy.triton_kernels import (
    exponentials,
    logit_gradients,
    second_gradients,
    second_sums,
)
from ttt_docs.kernels.triton_tiles import traced, wanted, wide

#: Rows done at once, and logits per tile: 32 MB in float32. COLUMNS bounds what one program holds in registers.
ROWS, TILE, COLUMNS = 2048, 1 << 23, 8192
WARPS = 8

_MIXED_PRODUCTS = "dtype" in torch.ops.aten.mm.overloads()  # torch 2.8 and later: 16-bit operands, float32 result


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32 (float64 for float64)."""
    if a.dtype == wide(a.dtype):
        return a @ b
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32) if _MIXED_PRODUCTS else (a @ b).float()
    return a.float() @ b.float()


def _tiles(head: Tensor, rows: int) -> Iterator[tuple[int, Tensor]]:
    """(first entry, its rows of the head) for every tile of the vocabulary."""
    columns = min(COLUMNS, max(1024, triton.next_power_of_2(TILE // max(rows, 1))))
    for first in range(0, head.shape[0], columns):
        yield first, head[first : first + columns]


def _meta(part: Tensor) -> dict[str, Any]:
    return {"WIDTH": triton.next_power_of_2(part.shape[0]), "num_warps": WARPS}


def _score(x: Tensor, head: Tensor, targets: Tensor, with_grad: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Log-sum-exps [rows], losses [rows] and, if asked for, the losses' gradients for x [rows, dim], in float32."""
    rows, dtype = x.shape[0], wide(x.dtype)
    top = x.new_full((rows,), float("-inf"), dtype=dtype)
    total, score, shrink = (x.new_zeros(rows, dtype=dtype) for _ in range(3))
    mean = torch.zeros_like(x, dtype=dtype) if with_grad else None
    for first, part in _tiles(head, rows):
        logits = _product(x, part.t())
        e = torch.empty_like(logits, dtype=x.dtype) if with_grad else None
        exponentials[(rows,)](
            logits, targets, top, total, score, shrink, e, first, part.shape[0], WITH_OUT=with_grad, **_meta(part)
        )
        if mean is not None and e is not None:
            torch.addcmul(_product(e, part), mean, shrink.unsqueeze(1), out=mean)
    log_total = top + total.log()
    if mean is not None:
        mean = mean.div_(total.unsqueeze(1)).sub_(head[targets])
    return log_total, log_total - score, mean


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """As the kernels want them: contiguous (the gradient of a sum is one number, expanded)."""
    return zip(*(t.contiguous().split(ROWS) for t in tensors), strict=True)


def _scores(x: Tensor, head: Tensor, targets: Tensor, with_grad: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    results = [_score(piece, head, target, with_grad) for piece, target in _pieces(x, targets)]
    log_total, nll, grads = zip(*results, strict=True)
    return torch.cat(log_total), torch.cat(nll), torch.cat(grads) if with_grad else None


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, head: Tensor, targets: Tensor, ignore: int | None) -> Tensor:  # type: ignore[override]
        counted = None if ignore is None else targets != ignore
        log_total, nll, slope = _scores(x, head, targets, with_grad=ctx.needs_input_grad[0])
        ctx.save_for_backward(x, head, targets, counted, log_total, slope)
        return nll if counted is None else nll * counted

    @staticmethod
    def backward(ctx: Any, grad_nll: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, head, targets, counted, log_total, slope = ctx.saved_tensors
        if counted is not None:
            grad_nll = grad_nll * counted
        asked = wanted(ctx, 0), wanted(ctx, 1)
        grads = _LinearCrossEntropyBackward.apply(x, head, grad_nll, targets, log_total, slope, *asked)
        return (*grads, None, None)


class _LinearCrossEntropyBackward(torch.autograd.Function):
    """Gradients for x and head, those that are asked for; `slope`, the losses' gradient for x, is a constant here."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, head: Tensor, grad_nll: Tensor, targets: Tensor, log_total: Tensor, slope: Tensor | None,
        for_x: bool, for_head: bool,
    ) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
        ctx.save_for_backward(x, head, grad_nll, targets, log_total, slope)
        ctx.set_materialize_grads(False)
        grad_x = (slope * grad_nll.unsqueeze(1)).to(x.dtype) if for_x and slope is not None else None
        if not for_head:
            return grad_x, None
        grad_head = torch.empty_like(head)
        pieces = list(_pieces(x, grad_nll, targets, log_total))
        for first, part in _tiles(head, len(pieces[0][0])):
            of_part = _TileGradient(grad_head, first, part, len(pieces))
            for own_x, grad, target, total in pieces:
                logits = _product(own_x, part.t())
                of_logits = torch.empty_like(logits, dtype=x.dtype)
                logit_gradients[(own_x.shape[0],)](
                    logits, target, total, grad, of_logits, first, part.shape[0], **_meta(part)
                )
                of_part.add(of_logits, own_x)
            of_part.write()
        return grad_x, grad_head

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, a: Tensor | None, b: Tensor | None) -> tuple[Any, ...]:  # type: ignore[override]
        x, head, grad_nll, targets, log_total, slope = ctx.saved_tensors
        if a is None and b is None:
            return (None,) * 8
        cotangent = torch.zeros_like(x) if a is None else a
        next_head = torch.empty_like(head) if ctx.needs_input_grad[1] else None
        pieces = list(_pieces(x, cotangent, grad_nll, targets, log_total))

        def z_of(x: Tensor, a: Tensor, first: int, part: Tensor) -> Tensor:
            z = _product(a, part.t())
            return z if b is None else z.add_(_product(x, b[first : first + part.shape[0]].t()))

        if b is None and slope is not None:
            wide_a = cotangent.to(slope.dtype)
            next_grad = (wide_a * slope).sum(1)
            means = (next_grad + (wide_a * head[targets]).sum(1)).split(ROWS)
        else:
            sums = [(torch.zeros_like(total), torch.zeros_like(total)) for *_, total in pieces]
            for first, part in _tiles(head, len(pieces[0][0])):
                for (own_x, own_a, _, target, total), (mean_z, target_z) in zip(pieces, sums, strict=True):
                    logits, z = _product(own_x, part.t()), z_of(own_x, own_a, first, part)
                    second_sums[(len(own_x),)](
                        logits, z, target, total, mean_z, target_z, first, part.shape[0], **_meta(part)
                    )
            means = [mean_z for mean_z, _ in sums]
            next_grad = torch.cat([mean_z - target_z for mean_z, target_z in sums])
        next_x = [torch.zeros_like(own_x, dtype=wide(x.dtype)) for own_x, *_ in pieces]
        beside = [torch.cat([own_x, own_a]) for own_x, own_a, *_ in pieces]
        for first, part in _tiles(head, len(pieces[0][0])):
            of_part = _TileGradient(next_head, first, part, len(pieces))
            for (own_x, own_a, grad, target, total), mean_z, of_x, both in zip(
                pieces, means, next_x, beside, strict=True
            ):
                logits, z = _product(own_x, part.t()), z_of(own_x, own_a, first, part)
                ways = logits.new_empty(2, *logits.shape, dtype=x.dtype)  # through the logits, and direct
                second_gradients[(len(own_x),)](
                    logits, z, target, total, mean_z, grad, *ways, first, part.shape[0], **_meta(part)
                )
                of_x += _product(ways[0], part)
                if b is not None:
                    of_x += _product(ways[1], b[first : first + part.shape[0]])
                of_part.add(ways.flatten(0, 1), both)
            of_part.write()
        of_x = torch.cat([part.to(x.dtype) for part in next_x])
        return of_x, next_head, next_grad.to(grad_nll.dtype), None, None, None, None, None


class _TileGradient:
    """The gradient of a tile of the head, `part` from entry `first` on: the sum of a^T b over pieces of rows. The head
    is large: with one piece the product itself writes to its place in `grad`, with several only their sum does."""

    def __init__(self, grad: Tensor | None, first: int, part: Tensor, pieces: int) -> None:
        self.place = None if grad is None else grad[first : first + part.shape[0]]
        self.pieces = pieces
        self.total: Tensor | None = None

    def add(self, a: Tensor, b: Tensor) -> None:
        if self.place is None:
            return
        if self.pieces == 1:
            torch.mm(a.t(), b, out=self.place)
        elif self.total is None:
            self.total = _product(a.t(), b)
        else:
            self.total += _product(a.t(), b)

    def write(self) -> None:
        if self.place is not None and self.total is not None:
            self.place.copy_(self.total)


def linear_cross_entropy_triton(x: Tensor, head: Tensor, targets: Tensor, ignore: int | None = None) -> Tensor:
    """As `linear_cross_entropy_reference`, differentiable twice with respect to x [rows, dim] and head [vocab, dim]."""
    if torch.is_grad_enabled() and (x.requires_grad or head.requires_grad):
        return _LinearCrossEntropy.apply(traced(x), traced(head), targets, ignore)
    nll = _scores(x, head, targets, with_grad=False)[1]
    return nll if ignore is None else nll * (targets != ignore)
