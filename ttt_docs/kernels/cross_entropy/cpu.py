"""The loss of a linear head on a CPU, tile by tile of the vocabulary, with one exponential per logit.

Logits of language models stay far inside the range of exp, so they are not shifted at first: finding each row's largest
and subtracting it would cost as much as the exponentials. Rows whose sum shows otherwise are done again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ttt_docs.kernels.native.calls import call
from ttt_docs.kernels.workspace import narrow_product, traced, wanted, wide, workspace

#: Logits are made in tiles of this many rows and vocabulary entries: 16 MB in bfloat16, which caches still hold.
ROWS = 1024
COLUMNS = 8192
#: From this many rows on (the guard has 16), compiled products are faster than oneDNN's with exponentials after them.
LEAST_ROWS = 8


def head_tiles(head: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The head's parts [at most COLUMNS, dim] and the first entry of each."""
    return ((first, head[first : first + COLUMNS]) for first in range(0, len(head), COLUMNS))


def in_range(total: Tensor) -> bool:
    """Whether sums of exponentials that were not shifted can be trusted."""
    return bool(((total > 1e-30) & (total < 1e30)).all())


def row_sums(x: Tensor) -> Tensor:
    """Sums over the last axis in float32 [rows, 1]. Asking sum() for float32 converts all of a bfloat16 x first (30
    times slower), so pieces are summed in x's dtype, whose rounding averages out, and the pieces in float32."""
    pieces = math.gcd(x.shape[1], 256)
    return x.unflatten(1, (pieces, -1)).sum(-1).to(wide(x.dtype)).sum(-1, keepdim=True)


def pick_targets(score: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    """`score` [rows, 1] with the targets' logits, where the targets [rows, 1] are columns of this tile's logits."""
    inside = (targets >= 0) & (targets < logits.shape[1])
    return torch.where(inside, logits.gather(1, targets.clamp(0, logits.shape[1] - 1)).to(score.dtype), score)


def largest_logit(x: Tensor, head: Tensor) -> Tensor:
    """[rows, 1]"""
    return torch.stack([(x @ part.t()).amax(dim=1, keepdim=True) for _, part in head_tiles(head)]).amax(dim=0)


def _sums(
    x: Tensor, head: Tensor, target: Tensor, shift: Tensor | None, with_mean: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """One pass over the vocabulary for x [rows, dim], target [rows, 1], all in float32: the sum of exp(logit - shift)
    [rows, 1], the target's logit [rows, 1], and `with_mean` the sum of exp(logit - shift) * head [rows, dim]."""
    rows, dim = x.shape
    total, score, mean = (x.new_zeros(rows, n, dtype=wide(x.dtype)) for n in (1, 1, dim if with_mean else 0))
    for first, part in head_tiles(head):
        logits = torch.mm(x, part.t(), out=workspace("logits", (rows, len(part)), x.dtype))
        score = pick_targets(score, logits, target - first)
        exponentials = (logits if shift is None else logits.sub_(shift)).exp_()
        total += row_sums(exponentials)
        if with_mean:
            mean += narrow_product(exponentials, part)
    return total, score, mean if with_mean else None


def score(x: Tensor, head: Tensor, targets: Tensor, with_grad: bool) -> tuple[Tensor, Tensor | None]:
    """Losses [rows] and, if asked for, their gradient with respect to x [rows, dim]."""
    losses, grads = [], []
    for piece, target in zip(x.split(ROWS), targets.unsqueeze(1).split(ROWS), strict=True):
        shift = None
        total, own, mean = _sums(piece, head, target, shift, with_grad)
        if not in_range(total):
            shift = largest_logit(piece, head)
            total, own, mean = _sums(piece, head, target, shift, with_grad)
        losses.append((total.log() + (0 if shift is None else shift.to(total.dtype)) - own).squeeze(1))
        if mean is not None:
            grads.append(mean.div_(total).sub_(head[target.squeeze(1)]).to(x.dtype))
    return torch.cat(losses), torch.cat(grads) if with_grad else None


Score = Callable[[Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor | None]]


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradient for x is made in the forward pass, while a tile's exponentials are at hand; a trained head's costs a
    second look at the logits."""

    @staticmethod
    def forward(ctx: Any, score: Score, x: Tensor, head: Tensor, targets: Tensor, ignore: int | None) -> Tensor:  # type: ignore[override]
        counted = None if ignore is None else targets != ignore
        nll, grad = score(x, head, targets, True)
        of_head = (x, head, targets, nll) if ctx.needs_input_grad[2] else ()
        ctx.save_for_backward(grad, counted, *of_head)
        return nll if counted is None else nll * counted

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_nll: Tensor) -> tuple[None, Tensor, Tensor | None, None, None]:  # type: ignore[override]
        grad, counted, *of_head = ctx.saved_tensors
        if counted is not None:
            grad_nll = grad_nll * counted
        grad_head = _head_gradient(grad_nll, *of_head) if wanted(ctx, 1) else None
        return None, grad * grad_nll.to(grad.dtype).unsqueeze(1), grad_head, None, None


def _head_gradient(grad_nll: Tensor, x: Tensor, head: Tensor, targets: Tensor, nll: Tensor) -> Tensor:
    """The head's gradient [vocab, dim] for losses nll [rows]: the sum over rows of (softmax - onehot) x."""
    grad = torch.zeros(head.shape, dtype=wide(head.dtype))
    scores = torch.linalg.vecdot(x.to(grad.dtype), head[targets].to(grad.dtype))
    lse, weight = (nll + scores).unsqueeze(1), grad_nll.unsqueeze(1)
    for start in range(0, len(x), ROWS):
        rows = slice(start, start + ROWS)
        for first, part in head_tiles(head):
            logits = torch.mm(x[rows], part.t(), out=workspace("logits", (len(x[rows]), len(part)), x.dtype))
            p = logits.to(grad.dtype).sub_(lse[rows]).exp_().mul_(weight[rows]).to(x.dtype)
            grad[first : first + COLUMNS] += p.t() @ x[rows]
    return grad.index_add_(0, targets, -weight * x.to(grad.dtype)).to(head.dtype)


def run(score: Score, x: Tensor, head: Tensor, targets: Tensor, ignore: int | None) -> Tensor:
    """The loss by this `score`, differentiable once for x and the head."""
    if torch.is_grad_enabled() and (x.requires_grad or head.requires_grad):
        return _LinearCrossEntropy.apply(score, x, traced(head), targets, ignore)
    nll, _ = score(x.detach(), head, targets, False)
    return nll if ignore is None else nll * (targets != ignore)


def linear_cross_entropy_cpu(x: Tensor, head: Tensor, targets: Tensor, ignore: int | None = None) -> Tensor:
    """The CPU path, differentiable once. A head whose gradient is not asked for costs nothing."""
    return run(score, x, head, targets, ignore)


def _native_score(x: Tensor, head: Tensor, targets: Tensor, with_grad: bool) -> tuple[Tensor, Tensor | None]:
    """As `score`, which does again what has a logit out of exp's range. Exponentials are made inside the products."""
    x, head, targets = x.contiguous(), head.contiguous(), targets.contiguous()
    losses, grads = [], []
    for piece, target in zip(x.split(ROWS), targets.split(ROWS), strict=True):
        rows, dim = piece.shape
        total, own = (x.new_empty(rows, dtype=torch.float32) for _ in range(2))
        mean = x.new_empty(rows, dim, dtype=torch.float32) if with_grad else None
        call("cross_entropy", rows, head.shape[0], dim, piece, head, target, total, own, mean)
        if not in_range(total):
            return score(x, head, targets, with_grad)
        losses.append(total.log() - own)
        if mean is not None:
            grads.append(mean.div_(total.unsqueeze(1)).sub_(head[target]).to(x.dtype))
    return torch.cat(losses), torch.cat(grads) if with_grad else None


def linear_cross_entropy_native(x: Tensor, head: Tensor, targets: Tensor, ignore: int | None = None) -> Tensor:
    """The same with compiled products, for bfloat16 and sizes that are multiples of 32."""
    fits = x.dtype == torch.bfloat16 and x.shape[0] >= LEAST_ROWS and not any(size % 32 for size in head.shape)
    return run(_native_score if fits else score, x, head, targets, ignore)
