"""Next-token loss of a linear head over a large vocabulary, without holding all logits.

x        [rows, dim]     hidden states after the final norm
head     [vocab, dim]
targets  [rows]          int64; `ignore` (one id, or None) marks targets that do not count
returns  [rows] float32  -log p(target) in nats, 0 where ignored
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def linear_cross_entropy_reference(x: Tensor, head: Tensor, targets: Tensor, ignore: int | None = None) -> Tensor:
    """The definition (float32 log-softmax), differentiable any number of times; holds all logits."""
    logits = F.linear(x, head)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    ignore_index = -100 if ignore is None else ignore
    return F.cross_entropy(logits, targets, reduction="none", ignore_index=ignore_index)
