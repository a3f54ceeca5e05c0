"""The loss of a linear head with its exponentials inside the compiled products, in bfloat16."""

from __future__ import annotations

import torch
from torch import Tensor

from ttt_docs.kernels.cross_entropy import cpu
from ttt_docs.kernels.native.calls import call

#: From here on faster than oneDNN's product and exponentials after it: the guard's 16 rows are.
LEAST_ROWS = 8
#: Rows at a time: their weights for a part of the vocabulary take 8 MB.
ROWS = 1024


def _score(x: Tensor, head: Tensor, targets: Tensor, with_grad: bool) -> tuple[Tensor, Tensor | None]:
    """As `cpu.score`, which does again what has a logit out of exp's range."""
    x, head, targets = x.contiguous(), head.contiguous(), targets.contiguous()
    losses, grads = [], []
    for piece, target in zip(x.split(ROWS), targets.split(ROWS), strict=True):
        rows, dim = piece.shape
        total, score = x.new_empty(rows, dtype=torch.float32), x.new_empty(rows, dtype=torch.float32)
        mean = x.new_empty(rows, dim, dtype=torch.float32) if with_grad else None
        call("cross_entropy", rows, head.shape[0], dim, piece, head, target, total, score, mean)
        if not cpu.in_range(total):
            return cpu.score(x, head, targets, with_grad)
        losses.append(total.log() - score)
        if mean is not None:
            grads.append(mean.div_(total.unsqueeze(1)).sub_(head[target]).to(x.dtype))
    return torch.cat(losses), torch.cat(grads) if with_grad else None


def linear_cross_entropy_native(x: Tensor, head: Tensor, targets: Tensor, ignore: int | None = None) -> Tensor:
    """As `linear_cross_entropy_cpu`, which still does what the compiled products were not made for."""
    fits = x.dtype == torch.bfloat16 and x.shape[0] >= LEAST_ROWS and not any(size % 32 for size in head.shape)
    return cpu.run(_score if fits else cpu.score, x, head, targets, ignore)
