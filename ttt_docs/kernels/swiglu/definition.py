"""SwiGLU MLP, w2( silu(w1 x) * (w3 x) ), with weights shared by the batch or of each sequence's own.

x     [batch, tokens, dim]
w13   [2 * hidden, dim] or [batch, 2 * hidden, dim]   (w1 above w3: one product)
w2    [dim, hidden]     or [batch, dim, hidden]
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def batched_linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [batch, tokens, in] times weight [out, in] or, each sequence its own, [batch, out, in]."""
    if weight.dim() == 2:
        return F.linear(x, weight)
    if weight.shape[0] == 1:  # one product, not a batched one: oneDNN and cuBLAS are faster at it
        return F.linear(x, weight[0])
    if x.device.type == "cpu" and x.shape[1] >= 128:  # one document at a time already fills two cores
        return torch.stack([F.linear(row, own) for row, own in zip(x, weight, strict=True)])
    return torch.bmm(x, weight.transpose(1, 2))


def swiglu_reference(x: Tensor, w13: Tensor, w2: Tensor) -> Tensor:
    """The definition, differentiable any number of times."""
    gate, up = batched_linear(x, w13).chunk(2, dim=-1)
    return batched_linear(F.silu(gate) * up, w2)
