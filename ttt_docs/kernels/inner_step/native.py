"""The inner step in compiled passes over memory: bfloat16 gradients and products, float32 weights."""

from __future__ import annotations

import torch
from torch import Tensor

from ttt_docs.kernels.inner_step.definition import (
    Balance,
    balance_reference,
    gradient_norm_reference,
    weight_step_reference,
)
from ttt_docs.kernels.native.calls import call

#: Numbers of a gradient that are summed by one thread; the order of a sum depends on nothing else.
PIECE = 1 << 15
#: Rows whose squares are summed, column by column, by one thread.
ROWS = 64


def _fits(grad: Tensor) -> bool:
    return grad.dtype == torch.bfloat16 and grad[0].numel() % 32 == 0 and grad[0].is_contiguous()


def _fits_by_rows(grad: Tensor) -> bool:
    return _fits(grad) and grad.shape[2] % 32 == 0


def balance_native(grad: Tensor) -> Balance:
    """As `balance_reference`, which still does what the compiled one was not made for."""
    if not _fits_by_rows(grad):
        return balance_reference(grad)
    batch, rows, columns = grad.shape
    by_row = torch.empty(batch, rows)
    by_column = torch.empty(batch, -(-rows // ROWS), columns)
    for own, of_rows, of_columns in zip(grad, by_row, by_column, strict=True):
        call("squares_by_row_and_column", rows, columns, ROWS, own, of_rows, of_columns)
    return Balance.of(by_row / columns, by_column.sum(dim=1) / rows)


def gradient_norm_native(grad: Tensor, balance: Balance | None = None) -> Tensor:
    """As `gradient_norm_reference`, which still does what the compiled one was not made for."""
    if not (_fits(grad) if balance is None else _fits_by_rows(grad)):
        return gradient_norm_reference(grad, balance)
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


def weight_step_native(
    weight: Tensor, grad: Tensor, size: Tensor, product: Tensor, balance: Balance | None = None
) -> Tensor:
    """As `weight_step_reference`, which still does what the compiled one was not made for."""
    kinds = weight.dtype, product.dtype
    fits = _fits(grad) if balance is None else _fits_by_rows(grad)
    if not fits or kinds != (torch.float32, torch.bfloat16) or not weight[0].is_contiguous():
        return weight_step_reference(weight, grad, size, product, balance)
    after = torch.empty_like(weight, memory_format=torch.contiguous_format)
    for i, s in enumerate(size.tolist()):
        if balance is None:
            call("weight_step", weight[i].numel(), weight[i], grad[i], -s, after[i], product[i])
        else:
            scales = balance.rows[i], balance.columns[i]
            call("balanced_step", *weight.shape[1:], weight[i], grad[i], *scales, -s, after[i], product[i])
    return after
