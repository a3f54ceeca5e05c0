"""What an inner step does to one matrix of every document (METHOD section 3), without gradient of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from ttt_docs.kernels.workspace import wide


def gradient_norm_reference(grad: Tensor) -> Tensor:
    """The definition: the norm [batch] of each document's gradient [batch, rows, columns], in float32 or float64."""
    return torch.linalg.vector_norm(grad.to(wide(grad.dtype)), dim=(1, 2))


def weight_step_reference(weight: Tensor, grad: Tensor, size: Tensor, product: Tensor) -> Tensor:
    """The definition: weight - size * grad in weight's dtype, written to `product`, too, in that one's dtype.

    weight, grad, product [batch, rows, columns]; size [batch].
    """
    after = torch.addcmul(weight, grad.to(weight.dtype), -size[:, None, None])
    product.copy_(after)
    return after
