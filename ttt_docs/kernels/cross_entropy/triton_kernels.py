"""What stands between the products of the loss, for a tile of logits [rows, columns] from vocabulary entry `first` on.

One program per row, the row's whole tile in registers. L is the log-sum-exp of all logits of a row, P = exp(logit - L).
Logits and Z are float32 whatever the products' operands are: bfloat16 would round a logit of 20 by up to 0.06.
"""

import triton
import triton.language as tl


@triton.jit
def exponentials(
    logits, targets, top, total, score, shrink, out, first, columns,
    WITH_OUT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Online softmax over tiles: out = exp(logit - top) with the largest logit so far; `shrink` is what sums over
    earlier tiles have to be multiplied with; `score` the target's logit, once its tile has come."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    inside = column < columns
    x = tl.load(logits + row * columns + column, mask=inside, other=float("-inf"))
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
        tl.store(out + row * columns + column, e.to(out.dtype.element_ty), mask=inside)


@triton.jit
def logit_gradients(logits, targets, log_total, grad, out, first, columns, WIDTH: tl.constexpr):
    """out = (P - one-hot of the target) * gradient of the row's loss."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    inside = column < columns
    x = tl.load(logits + row * columns + column, mask=inside, other=float("-inf"))
    p = tl.exp(x - tl.load(log_total + row))
    hit = column == tl.load(targets + row) - first
    result = (p - tl.where(hit, 1.0, 0.0)) * tl.load(grad + row)
    tl.store(out + row * columns + column, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def second_sums(logits, z, targets, log_total, mean_z, target_z, first, columns, WIDTH: tl.constexpr):
    """mean_z = sum over the vocabulary of P * Z, tile by tile, and Z at the target."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    inside = column < columns
    x = tl.load(logits + row * columns + column, mask=inside, other=float("-inf"))
    value = tl.load(z + row * columns + column, mask=inside, other=0.0)
    p = tl.exp(x - tl.load(log_total + row))
    tl.store(mean_z + row, tl.load(mean_z + row) + tl.sum(p * value, 0))
    target = tl.load(targets + row) - first
    if (target >= 0) & (target < columns):
        tl.store(target_z + row, tl.sum(tl.where(column == target, value, 0.0), 0))


@triton.jit
def second_gradients(
    logits, z, targets, log_total, mean_z, grad, out, direct, first, columns, WIDTH: tl.constexpr
):  # fmt: skip
    """out = grad * P * (Z - mean_z), the gradient of the logits, and `direct` as in `logit_gradients`."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    inside = column < columns
    x = tl.load(logits + row * columns + column, mask=inside, other=float("-inf"))
    value = tl.load(z + row * columns + column, mask=inside, other=0.0)
    p = tl.exp(x - tl.load(log_total + row))
    hit = column == tl.load(targets + row) - first
    g = tl.load(grad + row)
    result = g * p * (value - tl.load(mean_z + row))
    tl.store(out + row * columns + column, result.to(out.dtype.element_ty), mask=inside)
    tl.store(direct + row * columns + column, ((p - tl.where(hit, 1.0, 0.0)) * g).to(out.dtype.element_ty), mask=inside)
