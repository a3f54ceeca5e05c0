"""What an inner step does to one matrix of every document (METHOD section 3), without gradient of its own."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ttt_docs.kernels.workspace import wide


class Balance(NamedTuple):
    """By what the rule `balanced` multiplies a gradient [batch, rows, columns]: each entry is divided by the root of
    its row's and its column's root mean square, so that no few rows or columns take the whole step."""

    rows: Tensor  # [batch, rows]
    columns: Tensor  # [batch, columns]

    @classmethod
    def of(cls, row_squares: Tensor, column_squares: Tensor) -> Balance:
        """From the mean squares of rows and columns. Zeros stay zeros, and 1 is a factor that can be differentiated."""
        return cls(*(torch.where(mean > 0, mean, 1.0).pow(-0.25) for mean in (row_squares, column_squares)))

    def __call__(self, grad: Tensor) -> Tensor:
        """The balanced gradient, in float32 or float64."""
        return grad.to(wide(grad.dtype)) * self.rows[:, :, None] * self.columns[:, None, :]


def balance_reference(grad: Tensor) -> Balance:
    """The definition, for a gradient [batch, rows, columns]. Differentiable any number of times."""
    squares = grad.to(wide(grad.dtype)).square()
    return Balance.of(squares.mean(dim=2), squares.mean(dim=1))


def gradient_norm_reference(grad: Tensor, balance: Balance | None = None) -> Tensor:
    """The definition: the norm [batch] of each document's (balanced) gradient [batch, rows, columns], in float32 or
    float64."""
    own = grad.to(wide(grad.dtype)) if balance is None else balance(grad)
    return torch.linalg.vector_norm(own, dim=(1, 2))


def weight_step_reference(
    weight: Tensor, grad: Tensor, size: Tensor, product: Tensor, balance: Balance | None = None
) -> Tensor:
    """The definition: weight - size * (balanced) grad in weight's dtype, and `product` the same in that one's.

    weight, grad, product [batch, rows, columns]; size [batch].
    """
    own = grad if balance is None else balance(grad)
    after = torch.addcmul(weight, own.to(weight.dtype), -size[:, None, None])
    product.copy_(after)
    return after
