"""The inner step in compiled passes over memory: bfloat16 gradients and products, float32 weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ttt_docs.kernels.inner_step.definition import (
    Balance,
    Rule,
    Step,
    global_norm,
    inner_step_reference,
    step_sizes,
)
from ttt_docs.kernels.inner_step.layout import FastLayout, PrimeWeights
from ttt_docs.kernels.native.calls import call

#: Numbers of a gradient that are summed by one thread; the order of a sum depends on nothing else.
PIECE = 1 << 15
#: Rows whose squares are summed, column by column, by one thread.
ROWS = 64


def inner_step_native(
    fast: Tensor,
    grads: Sequence[PrimeWeights],
    rule: Rule,
    rates: Tensor | None,
    dtype: torch.dtype,
    into: tuple[Tensor, Tensor] | None = None,
    table: Tensor | None = None,
) -> Step:
    """As `inner_step_reference`, which still does what the compiled one was not made for."""
    layout = FastLayout.of(grads)
    by_rows = rule.name == "balanced"
    whole = layout.dim % 32 == layout.hidden % 32 == 0 if by_rows else layout.matrix % 32 == 0
    kinds = fast.dtype, dtype, grads[0].w13.dtype, fast[0].is_contiguous()
    if not whole or kinds != (torch.float32, torch.bfloat16, torch.bfloat16, True):
        return inner_step_reference(fast, grads, rule, rates, dtype, into)
    gradients = [matrix for block in grads for matrix in block.matrices]
    norms = torch.stack([_norm(g) for g in gradients])
    grad_norm = global_norm(norms)
    balances: list[Balance | None] = [None] * len(gradients)
    if by_rows:
        balances = [_balance(g) for g in gradients]
        norms = torch.stack([_norm(g, balance) for g, balance in zip(gradients, balances, strict=True)])
    clip, sizes = step_sizes(grad_norm, norms, rule, rates)
    after, products = into or (fast.new_empty(fast.shape), fast.new_empty(fast.shape, dtype=dtype))
    matrices = zip(*map(layout.matrices, (fast, after, products)), strict=True)
    for g, own, balance, size in zip(gradients, matrices, balances, sizes.tolist(), strict=True):
        for i, (weight, to, product) in enumerate(zip(*own, strict=True)):
            if balance is None:
                call("weight_step", layout.matrix, weight, g[i], -size[i], to, product)
            else:
                factors = balance.rows[i], balance.columns[i]
                call("balanced_step", *weight.shape, weight, g[i], *factors, -size[i], to, product)
    return Step(after, products, grad_norm, clip, fast)


def _balance(grad: Tensor) -> Balance:
    """As in `definition.balanced`, of a gradient [batch, rows, columns]."""
    batch, rows, columns = grad.shape
    by_row = torch.empty(batch, rows)
    by_column = torch.empty(batch, -(-rows // ROWS), columns)
    for own, of_rows, of_columns in zip(grad, by_row, by_column, strict=True):
        call("squares_by_row_and_column", rows, columns, ROWS, own, of_rows, of_columns)
    return Balance.of(by_row / columns, by_column.sum(dim=1) / rows)


def _norm(grad: Tensor, balance: Balance | None = None) -> Tensor:
    """Norm [batch] of the (balanced) gradient [batch, rows, columns]."""
    batch, rows, columns = grad.shape
    if balance is None:
        count = rows * columns
        sums = torch.empty(batch, -(-count // PIECE))
        for own, to in zip(grad, sums, strict=True):
            call("squares", count, PIECE, own, to)
    else:
        sums = torch.empty(batch, rows)
        for own, r, c, to in zip(grad, *balance, sums, strict=True):
            call("balanced_squares", rows, columns, own, r, c, to)
    return sums.double().sum(dim=1).sqrt().float()
