"""Next-token loss of a pair: its value and its derivative along the tangents, tile by tile of the vocabulary.

With logits z, their tangents y and p = softmax(z): nll = log sum exp z - z[target], and its tangent is
q - y[target] with q = sum(p*y). For cotangents (a, b) of the two, the logits' gradient is a (p - onehot) + b p*(y - q)
and that of their tangents b (p - onehot). Both are made of sums over the vocabulary that one pass can take, so the
gradient for the hidden states costs no second look at the logits; a trained head does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ttt_docs.kernels.cross_entropy.definition import COLUMNS, ROWS, _largest_logit, _row_sums
from ttt_docs.kernels.swiglu.definition import narrow_product
from ttt_docs.kernels.workspace import wide, workspace


def _exponentials(pair: Tensor, part: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Of one tile, from rows pair [2 * rows, dim]: logits and tangents as they are for now, exp(logits - shift)."""
    logits, tangents = torch.mm(pair, part.t(), out=workspace("logits", (len(pair), len(part)), pair.dtype)).chunk(2)
    exponentials = workspace("exponentials", tuple(logits.shape), pair.dtype)
    torch.exp(logits if shift is None else torch.sub(logits, shift, out=exponentials), out=exponentials)
    return logits, tangents, exponentials


class _Sums:
    """Sums over the vocabulary for rows pair [2 * rows, dim]; [rows, 1] and [rows, dim], in float32."""

    def __init__(self, pair: Tensor, head: Tensor, target: Tensor, shift: Tensor | None) -> None:
        rows, dim = len(pair) // 2, pair.shape[1]
        self.total, self.moved = (pair.new_zeros(rows, 1, dtype=wide(pair.dtype)) for _ in range(2))
        self.score = pair.new_zeros(2 * rows, 1, dtype=wide(pair.dtype))
        self.mean = pair.new_zeros(2 * rows, dim, dtype=wide(pair.dtype))  # of exp * head, then of exp * tangent * head
        for first in range(0, len(head), COLUMNS):
            part = head[first : first + COLUMNS]
            logits, tangents, exponentials = _exponentials(pair, part, shift)
            local = target - first
            inside, place = (local >= 0) & (local < len(part)), local.clamp(0, len(part) - 1)
            scores = torch.cat([logits.gather(1, place), tangents.gather(1, place)]).to(self.score.dtype)
            self.score = torch.where(torch.cat([inside, inside]), scores, self.score)
            self.total += _row_sums(exponentials)
            self.moved += _row_sums(tangents.mul_(exponentials))
            logits.copy_(exponentials)
            both = workspace("logits", (2 * rows, len(part)), pair.dtype)
            self.mean += narrow_product(both, part)


class _PairLinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pair: Tensor, head: Tensor, targets: Tensor, ignore: int | None) -> Tensor:  # type: ignore[override]
        values, tangents = pair.chunk(2)
        targets = targets[: len(values)]
        losses, firsts, seconds, totals, shifts, moves = [], [], [], [], [], []
        for x, t, target in zip(
            values.split(ROWS), tangents.split(ROWS), targets.unsqueeze(1).split(ROWS), strict=True
        ):
            both, shift = torch.cat([x, t]), None
            sums = _Sums(both, head, target, shift)
            if not bool(((sums.total > 1e-30) & (sums.total < 1e30)).all()):
                shift = _largest_logit(x, head)
                sums = _Sums(both, head, target, shift)
            score, score_t = sums.score.chunk(2)
            moved = sums.moved / sums.total
            start = 0 if shift is None else shift.to(score.dtype)
            losses.append(torch.cat([sums.total.log() + start - score, moved - score_t], dim=1))
            mean, mean_t = sums.mean.div_(torch.cat([sums.total, sums.total])).chunk(2)
            seconds.append(torch.addcmul(mean_t, mean, moved, value=-1).to(pair.dtype))
            firsts.append((mean - head[target.squeeze(1)]).to(pair.dtype))
            totals.append(sums.total)
            moves.append(moved)
            shifts.append(torch.zeros_like(x[:, :1]) if shift is None else shift)
        counted = None if ignore is None else targets != ignore
        nll = torch.cat(losses).t()
        if counted is not None:
            nll = nll * counted
        rows = [torch.cat(x) for x in (totals, moves, shifts)]
        ctx.save_for_backward(pair, head, targets, counted, torch.cat(firsts), torch.cat(seconds), *rows)
        return nll.reshape(-1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:  # type: ignore[override]
        pair, head, targets, counted, first, second, *rows = ctx.saved_tensors
        cotangents = grad.view(2, -1, 1)
        if counted is not None:
            cotangents = cotangents * counted.unsqueeze(-1)
        a, b = cotangents
        narrow_a, narrow_b = a.to(first.dtype), b.to(first.dtype)
        grad_pair = torch.cat([torch.addcmul(narrow_a * first, narrow_b, second), narrow_b * first])
        grad_head = None
        if ctx.needs_input_grad[1]:
            grad_head = _head_grad(pair, head, targets, a, b, *rows)
        return grad_pair, grad_head, None, None


def _head_grad(
    pair: Tensor,
    head: Tensor,
    targets: Tensor,
    a: Tensor,
    b: Tensor,
    total: Tensor,
    moved: Tensor,
    shift: Tensor,
) -> Tensor:
    """The head's gradient [vocab, dim], each tile of logits made again."""
    grad = torch.zeros(head.shape, dtype=wide(head.dtype))
    values, tangents = pair.chunk(2)
    of_value, of_tangent, moved = ((x / total).to(pair.dtype) for x in (a, b, moved * total))
    for start in range(0, len(values), ROWS):
        rows = slice(start, start + ROWS)
        both = torch.cat([values[rows], tangents[rows]])
        for first in range(0, len(head), COLUMNS):
            _, slopes, p = _exponentials(both, head[first : first + COLUMNS], shift[rows])
            of_logits = slopes.sub_(moved[rows]).mul_(of_tangent[rows]).add_(of_value[rows]).mul_(p)
            grad[first : first + COLUMNS] += torch.cat([of_logits, p * of_tangent[rows]]).t() @ both
    grad.index_add_(0, targets, -(a * values + b * tangents).to(grad.dtype))
    return grad.to(head.dtype)


def pair_linear_cross_entropy(pair: Tensor, head: Tensor, targets: Tensor, ignore: int | None = None) -> Tensor:
    """Losses of a pair [2 * rows, dim] for targets [rows] or [2 * rows] (the second half is not looked at): values in
    nats, then their tangents, float32 [2 * rows]; 0 where the target is `ignore`. Differentiable once."""
    return _PairLinearCrossEntropy.apply(pair, head, targets, ignore)
