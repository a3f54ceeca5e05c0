"""Linear head and cross-entropy on the device, twice differentiable, with the logits of one tile at a time.

The products go to cuBLAS, tile by tile of the vocabulary, small enough for a tile to stay in the L2 cache; the softmax
between them is one pass. The losses' gradient for the hidden states is made in the forward pass, while a tile's
exponentials are at hand: two products, and none again for them in the backward pass.

Twice: with Dl = (P - Y) * g (P = exp(logits - lse), Y the targets' one-hot rows, g the losses' gradients) the gradients
are Dl head and Dl^T x; given their cotangents a and B, Z = a head^T + x B^T and T = g P (Z - rowsum(P Z)):

    for x: T head + Dl B      for head: T^T x + Dl^T a      for g: rowsum(P Z) - Z at the target

Without B, rowsum(P Z) = a (P head)^T, and P head - Y head is what the forward pass made: no pass over the vocabulary.

A kernel's tile is [rows, columns] from vocabulary entry `first` on; a program holds one row of it in registers. Logits
and Z are float32 whatever the products' operands are: bfloat16 would round a logit of 20 by up to 0.06.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ttt_docs.kernels.triton_common import second_derivative
from ttt_docs.kernels.workspace import needs_grad, traced, wanted, wide

#: Rows done at once, and logits per tile: 32 MB in float32. COLUMNS bounds what one program holds in registers.
ROWS, TILE, COLUMNS = 2048, 1 << 23, 8192
WARPS = 8

_MIXED_PRODUCTS = "dtype" in torch.ops.aten.mm.overloads()  # torch 2.8 and later: 16-bit operands, float32 result


@triton.jit
def _row_of(logits, columns, WIDTH):
    """This program's row, where it begins in memory, the tile's columns, which exist, and the row's logits."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    inside = column < columns
    start = row * columns
    return row, start, column, inside, tl.load(logits + start + column, mask=inside, other=float("-inf"))


@triton.jit
def exponentials(
    logits, targets, top, total, score, shrink, out, first, columns, WITH_OUT: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """Online softmax over tiles: out = exp(logit - top) with the largest logit so far; `shrink` is what sums over
    earlier tiles have to be multiplied with; `score` the target's logit, once its tile has come."""
    row, start, column, inside, x = _row_of(logits, columns, WIDTH)
    before = tl.load(top + row)
    now = tl.maximum(before, tl.max(x, 0))
    e = tl.exp(x - now)
    factor = tl.exp(before - now)
    tl.store(total + row, tl.load(total + row) * factor + tl.sum(e, 0))
    tl.store(top + row, now)
    tl.store(shrink + row, factor)
    target = tl.load(targets + row) - first
    if (target >= 0) & (target < columns):
        tl.store(score + row, tl.sum(tl.where(column == target, x, 0.0), 0))
    if WITH_OUT:
        tl.store(out + start + column, e, mask=inside)


@triton.jit
def second_sums(logits, z, targets, lse, mean_z, target_z, first, columns, WIDTH: tl.constexpr):
    """mean_z = sum over the vocabulary of P * Z, tile by tile, and Z at the target."""
    row, start, column, inside, x = _row_of(logits, columns, WIDTH)
    value = tl.load(z + start + column, mask=inside, other=0.0)
    p = tl.exp(x - tl.load(lse + row))
    tl.store(mean_z + row, tl.load(mean_z + row) + tl.sum(p * value, 0))
    target = tl.load(targets + row) - first
    if (target >= 0) & (target < columns):
        tl.store(target_z + row, tl.sum(tl.where(column == target, value, 0.0), 0))


@triton.jit
def logit_gradients(
    logits, targets, lse, grad, direct, z, mean_z, out, first, columns, WITH_Z: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """direct = (P - one-hot of the target) * gradient of the row's loss; WITH_Z, out = gradient * P * (Z - mean_z)."""
    row, start, column, inside, x = _row_of(logits, columns, WIDTH)
    p = tl.exp(x - tl.load(lse + row))
    hit = column == tl.load(targets + row) - first
    g = tl.load(grad + row)
    if WITH_Z:
        value = tl.load(z + start + column, mask=inside, other=0.0)
        tl.store(out + start + column, g * p * (value - tl.load(mean_z + row)), mask=inside)
    tl.store(direct + start + column, (p - tl.where(hit, 1.0, 0.0)) * g, mask=inside)


def _launch(kernel: Any, logits: Tensor, *others: Any, **options: bool) -> None:
    rows, columns = logits.shape
    kernel[(rows,)](logits, *others, columns, WIDTH=triton.next_power_of_2(columns), num_warps=WARPS, **options)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32 (float64 for float64)."""
    if a.dtype == wide(a.dtype):
        return a @ b
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32) if _MIXED_PRODUCTS else (a @ b).float()
    return a.float() @ b.float()


def _tiles(head: Tensor, rows: int) -> Iterator[tuple[int, slice, Tensor]]:
    """(first entry, all entries, their rows of the head) for every tile of the vocabulary."""
    columns = min(COLUMNS, max(1024, triton.next_power_of_2(TILE // max(rows, 1))))
    for first in range(0, head.shape[0], columns):
        entries = slice(first, first + columns)
        yield first, entries, head[entries]


def _pieces(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """ROWS rows of each, as the kernels want them: contiguous (the gradient of a sum is one number, expanded)."""
    return list(zip(*(t.contiguous().split(ROWS) for t in tensors), strict=True))


def _score(x: Tensor, head: Tensor, targets: Tensor, with_grad: bool) -> tuple[Tensor, ...]:
    """Log-sum-exps [rows], losses [rows] and, if asked for, the losses' gradients for x [rows, dim], in float32."""
    rows, dtype = x.shape[0], wide(x.dtype)
    top = x.new_full((rows,), float("-inf"), dtype=dtype)
    total, score, shrink = (x.new_zeros(rows, dtype=dtype) for _ in range(3))
    mean = torch.zeros_like(x, dtype=dtype) if with_grad else None
    for first, _, part in _tiles(head, rows):
        logits = _product(x, part.t())
        e = torch.empty_like(logits, dtype=x.dtype) if with_grad else None
        _launch(exponentials, logits, targets, top, total, score, shrink, e, first, WITH_OUT=with_grad)
        if mean is not None and e is not None:
            torch.addcmul(_product(e, part), mean, shrink.unsqueeze(1), out=mean)
    lse = top + total.log()
    nll = lse - score
    return (lse, nll) if mean is None else (lse, nll, mean.div_(total.unsqueeze(1)).sub_(head[targets]))


def _scores(x: Tensor, head: Tensor, targets: Tensor, with_grad: bool) -> tuple[Tensor, ...]:
    results = [_score(piece, head, target, with_grad) for piece, target in _pieces(x, targets)]
    return tuple(torch.cat(parts) for parts in zip(*results, strict=True))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, head: Tensor, targets: Tensor, ignore: int | None) -> Tensor:  # type: ignore[override]
        counted = None if ignore is None else targets != ignore
        lse, nll, *slope = _scores(x, head, targets, with_grad=ctx.needs_input_grad[0])
        ctx.save_for_backward(x, head, targets, counted, lse, *slope)
        return nll if counted is None else nll * counted

    @staticmethod
    def backward(ctx: Any, grad_nll: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, head, targets, counted, lse, *slope = ctx.saved_tensors
        if counted is not None:
            grad_nll = grad_nll * counted
        constants = targets, lse, slope[0] if slope else None, wanted(ctx, 0), wanted(ctx, 1)
        return *_LinearCrossEntropyBackward.apply(x, head, grad_nll, *constants), None, None


class _LinearCrossEntropyBackward(torch.autograd.Function):
    """Gradients for x and head, those that are asked for; `slope`, the losses' gradient for x, is a constant here."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, head: Tensor, grad_nll: Tensor, targets: Tensor, lse: Tensor, slope: Tensor | None,
        for_x: bool, for_head: bool,
    ) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
        ctx.save_for_backward(x, head, grad_nll, targets, lse, slope)
        ctx.set_materialize_grads(False)
        grad_x = (slope * grad_nll.unsqueeze(1)).to(x.dtype) if for_x and slope is not None else None
        if not for_head:
            return grad_x, None
        grad_head = torch.empty_like(head)
        pieces = _pieces(x, grad_nll, targets, lse)
        for first, entries, part in _tiles(head, len(pieces[0][0])):
            of_part = _TileGradient(grad_head[entries], len(pieces))
            for own_x, grad, target, total in pieces:
                logits = _product(own_x, part.t())
                of_logits = torch.empty_like(logits, dtype=x.dtype)
                constants = target, total, grad, of_logits, None, None, None
                _launch(logit_gradients, logits, *constants, first, WITH_Z=False)
                of_part.add(of_logits, own_x)
        return grad_x, grad_head

    @staticmethod
    @second_derivative
    def backward(ctx: Any, a: Tensor | None, b: Tensor | None) -> tuple[Tensor | None, ...]:
        x, head, grad_nll, targets, lse, slope = ctx.saved_tensors
        cotangent = torch.zeros_like(x) if a is None else a
        next_head = torch.empty_like(head) if ctx.needs_input_grad[1] else None
        pieces = _pieces(x, cotangent, grad_nll, targets, lse)
        tiles = list(_tiles(head, len(pieces[0][0])))

        def logits_and_z(x: Tensor, a: Tensor, entries: slice, part: Tensor) -> tuple[Tensor, Tensor]:
            logits, z = _product(x, part.t()), _product(a, part.t())
            return logits, z if b is None else z.add_(_product(x, b[entries].t()))

        if b is None and slope is not None:
            wide_a = cotangent.to(slope.dtype)
            next_grad = (wide_a * slope).sum(1)
            means = (next_grad + (wide_a * head[targets]).sum(1)).split(ROWS)
        else:
            sums = [(torch.zeros_like(total), torch.zeros_like(total)) for *_, total in pieces]
            for first, entries, part in tiles:
                for (own_x, own_a, _, target, total), own_sums in zip(pieces, sums, strict=True):
                    _launch(second_sums, *logits_and_z(own_x, own_a, entries, part), target, total, *own_sums, first)
            means = tuple(mean_z for mean_z, _ in sums)
            next_grad = torch.cat([mean_z - target_z for mean_z, target_z in sums])
        next_x = [torch.zeros_like(own_x, dtype=wide(x.dtype)) for own_x, *_ in pieces]
        beside = [torch.cat([own_x, own_a]) for own_x, own_a, *_ in pieces]
        for first, entries, part in tiles:
            of_part = None if next_head is None else _TileGradient(next_head[entries], len(pieces))
            for piece, mean_z, of_x, both in zip(pieces, means, next_x, beside, strict=True):
                own_x, own_a, grad, target, total = piece
                logits, z = logits_and_z(own_x, own_a, entries, part)
                ways = logits.new_empty(2, *logits.shape, dtype=x.dtype)  # through the logits, and direct
                constants = target, total, grad, ways[1], z, mean_z, ways[0]
                _launch(logit_gradients, logits, *constants, first, WITH_Z=True)
                of_x += _product(ways[0], part)
                if b is not None:
                    of_x += _product(ways[1], b[entries])
                if of_part is not None:
                    of_part.add(ways.flatten(0, 1), both)
        return torch.cat([part.to(x.dtype) for part in next_x]), next_head, next_grad.to(grad_nll.dtype)


class _TileGradient:
    """The gradient of a tile of the head: the sum of a^T b over pieces of rows. The head is large, so `tile` is written
    once: by the product itself if there is one piece, else by the sum after the last."""

    def __init__(self, tile: Tensor, pieces: int) -> None:
        self.tile, self.pieces, self.left = tile, pieces, pieces
        self.total: Tensor | None = None

    def add(self, a: Tensor, b: Tensor) -> None:
        self.left -= 1
        if self.pieces == 1:
            torch.mm(a.t(), b, out=self.tile)
            return
        product = _product(a.t(), b)
        self.total = product if self.total is None else self.total.add_(product)
        if self.left == 0:
            self.tile.copy_(self.total)


def linear_cross_entropy_triton(x: Tensor, head: Tensor, targets: Tensor, ignore: int | None = None) -> Tensor:
    """As `linear_cross_entropy_reference`, differentiable twice with respect to x [rows, dim] and head [vocab, dim]."""
    if needs_grad(x, head):
        return _LinearCrossEntropy.apply(traced(x), traced(head), targets, ignore)
    nll = _scores(x, head, targets, with_grad=False)[1]
    return nll if ignore is None else nll * (targets != ignore)
