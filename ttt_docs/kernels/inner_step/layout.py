"""Where each fast weight stands: one tensor [batch, n] holds the prime MLPs of all suffix blocks.

A block's part is w13 (w1 above w3, one product), then w2. Gradients, steps, norms and products all use this layout.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

#: A block's matrices, in the order of learned rates and of a memory's file.
NAMES = ("w1", "w2", "w3")


class PrimeWeights(NamedTuple):
    """The prime MLP of one block, or the gradient for it, as `Kernels.swiglu` takes it."""

    w13: Tensor  # [batch, 2 * hidden, dim]
    w2: Tensor  # [batch, dim, hidden]

    @property
    def matrices(self) -> tuple[Tensor, Tensor, Tensor]:
        """w1 [batch, hidden, dim], w2 [batch, dim, hidden], w3 [batch, hidden, dim] (views)."""
        w1, w3 = self.w13.chunk(2, dim=-2)
        return w1, self.w2, w3


@dataclass(frozen=True)
class FastLayout:
    """The layout of `blocks` prime MLPs of one shape."""

    blocks: int
    hidden: int
    dim: int

    @classmethod
    def of(cls, grads: Sequence[PrimeWeights]) -> FastLayout:
        """The layout of the weights that these gradients are for."""
        _, dim, hidden = grads[0].w2.shape
        return cls(len(grads), hidden, dim)

    @property
    def matrix(self) -> int:
        """Numbers in one matrix. w1, w2 and w3 have the same."""
        return self.hidden * self.dim

    @property
    def size(self) -> int:
        """Numbers of one document."""
        return 3 * self.blocks * self.matrix

    def views(self, flat: Tensor) -> list[PrimeWeights]:
        """flat [batch, size] as the weights of each block."""
        views = []
        for block in flat.unflatten(1, (self.blocks, -1)).unbind(1):
            w13, w2 = block.split([2 * self.matrix, self.matrix], dim=1)
            views.append(
                PrimeWeights(w13.unflatten(1, (2 * self.hidden, self.dim)), w2.unflatten(1, (self.dim, self.hidden)))
            )
        return views

    def matrices(self, flat: Tensor) -> list[Tensor]:
        """w1, w2, w3 of each block in turn (views)."""
        return [matrix for block in self.views(flat) for matrix in block.matrices]

    def join(self, matrices: Iterable[Tensor]) -> Tensor:
        """The inverse of `matrices`: one tensor [batch, size] (a copy)."""
        every = list(matrices)
        w1, w2, w3 = every[0::3], every[1::3], every[2::3]
        blocks = zip(w1, w3, w2, strict=True)
        return torch.cat([matrix.flatten(1) for block in blocks for matrix in block], dim=1)

    def per_matrix(self, values: Tensor) -> Tensor:
        """values [3 * blocks, batch], for w1, w2, w3 of each block: [batch, 3 * blocks, 1] in the layout's order."""
        return values.unflatten(0, (self.blocks, 3))[:, [0, 2, 1]].flatten(0, 1).t().unsqueeze(-1)


def joined(grads: Sequence[PrimeWeights]) -> Tensor:
    """The gradients of all blocks as one tensor [batch, size] (a copy)."""
    return torch.cat([part.flatten(1) for block in grads for part in block], dim=1)
