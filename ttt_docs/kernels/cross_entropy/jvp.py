"""Next-token loss of a dual (see `swiglu/jvp.py`): its value and its derivative along the tangents.

With logits z, their tangents y and p = softmax(z): nll = log sum exp z - z[target], and its tangent is
q - y[target] with q = sum(p*y). For cotangents (a, b) of the two, the logits' gradient is a (p - onehot) + b p*(y - q)
and that of their tangents b (p - onehot). Both are made of sums over the vocabulary that one pass can take, so the
gradient for the hidden states costs no second look at the logits; a trained head does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ttt_docs.kernels.cross_entropy import cpu
from ttt_docs.kernels.workspace import narrow_product, wide, workspace


def _exponentials(dual: Tensor, part: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor]:
    """Of one tile, from dual [2 * rows, dim]: logits and their tangents [2 * rows, columns], exp(logits - shift)."""
    both = torch.mm(dual, part.t(), out=workspace("logits", (len(dual), len(part)), dual.dtype))
    logits = both[: len(dual) // 2]
    exponentials = workspace("exponentials", tuple(logits.shape), dual.dtype)
    return both, torch.exp(logits if shift is None else torch.sub(logits, shift, out=exponentials), out=exponentials)


def _sums(dual: Tensor, head: Tensor, target: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sums over the vocabulary for dual [2 * rows, dim] and target [rows, 1], in float32: of exp and of exp * tangent
    [rows, 1]; the target's logit and its tangent [2 * rows, 1]; of exp * head above exp * tangent * head, like dual."""
    rows, targets = len(target), torch.cat([target, target])
    sizes = (rows, 1), (rows, 1), (2 * rows, 1), dual.shape
    total, moved, score, mean = (dual.new_zeros(size, dtype=wide(dual.dtype)) for size in sizes)
    for first, part in cpu.head_tiles(head):
        both, exponentials = _exponentials(dual, part, shift)
        score = cpu.pick_targets(score, both, targets - first)
        total += cpu.row_sums(exponentials)
        moved += cpu.row_sums(both[rows:].mul_(exponentials))
        both[:rows] = exponentials
        mean += narrow_product(both, part)
    return total, moved, score, mean


class _LinearCrossEntropyJvp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dual: Tensor, head: Tensor, targets: Tensor, ignore: int | None) -> Tensor:  # type: ignore[override]
        values, tangents = dual.chunk(2)
        targets = targets[: len(values)]
        pieces = (x.split(cpu.ROWS) for x in (values, tangents, targets.unsqueeze(1)))
        losses, grads, kept = [], [], []
        for x, t, target in zip(*pieces, strict=True):
            both, shift = torch.cat([x, t]), None
            total, moved, scores, means = _sums(both, head, target, shift)
            if not cpu.in_range(total):
                shift = cpu.largest_logit(x, head)
                total, moved, scores, means = _sums(both, head, target, shift)
            score, score_t = scores.chunk(2)
            moved = moved / total
            start = 0 if shift is None else shift.to(score.dtype)
            losses.append(torch.cat([total.log() + start - score, moved - score_t], dim=1))
            mean, mean_t = means.div_(torch.cat([total, total])).chunk(2)
            first, second = mean - head[target.squeeze(1)], torch.addcmul(mean_t, mean, moved, value=-1)
            grads.append((first.to(dual.dtype), second.to(dual.dtype)))
            kept.append((total, moved, torch.zeros_like(x[:, :1]) if shift is None else shift))
        counted = None if ignore is None else targets != ignore
        nll = torch.cat(losses).t()
        rows = [torch.cat(x) for columns in (grads, kept) for x in zip(*columns, strict=True)]
        ctx.save_for_backward(dual, head, targets, counted, *rows)
        return (nll if counted is None else nll * counted).reshape(-1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:  # type: ignore[override]
        dual, head, targets, counted, first, second, *rows = ctx.saved_tensors
        cotangents = grad.view(2, -1, 1)
        if counted is not None:
            cotangents = cotangents * counted.unsqueeze(-1)
        narrow_a, narrow_b = cotangents.to(first.dtype)
        grad_dual = torch.cat([torch.addcmul(narrow_a * first, narrow_b, second), narrow_b * first])
        grad_head = _head_grad(dual, head, targets, cotangents, *rows) if ctx.needs_input_grad[1] else None
        return grad_dual, grad_head, None, None


def _head_grad(
    dual: Tensor, head: Tensor, targets: Tensor, cotangents: Tensor, total: Tensor, moved: Tensor, shift: Tensor
) -> Tensor:
    """The head's gradient [vocab, dim], each tile of logits made again."""
    grad = torch.zeros(head.shape, dtype=wide(head.dtype))
    (values, tangents), (a, b) = dual.chunk(2), cotangents
    of_value, of_tangent, moved = ((x / total).to(dual.dtype) for x in (a, b, moved * total))
    for start in range(0, len(values), cpu.ROWS):
        rows = slice(start, start + cpu.ROWS)
        piece = torch.cat([values[rows], tangents[rows]])
        for first, part in cpu.head_tiles(head):
            both, p = _exponentials(piece, part, shift[rows])
            of_logits = both[len(p) :].sub_(moved[rows]).mul_(of_tangent[rows]).add_(of_value[rows]).mul_(p)
            grad[first : first + cpu.COLUMNS] += torch.cat([of_logits, p * of_tangent[rows]]).t() @ piece
    grad.index_add_(0, targets, -(a * values + b * tangents).to(grad.dtype))
    return grad.to(head.dtype)


def linear_cross_entropy_jvp(dual: Tensor, head: Tensor, targets: Tensor, ignore: int | None = None) -> Tensor:
    """Losses of a dual [2 * rows, dim] for targets [rows] or [2 * rows] (the second half is not looked at): values in
    nats, then their tangents, float32 [2 * rows]; 0 where the target is `ignore`. Differentiable once."""
    return _LinearCrossEntropyJvp.apply(dual, head, targets, ignore)
