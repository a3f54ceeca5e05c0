"""Sums of gradients that come in parts, one part for each piece of a sequence."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ttt_docs.kernels.workspace import wide


class Sums:
    """One sum for each of `tensors`, kept in float32 (float64 for float64) however narrow the tensor is."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.dtypes = [tensor.dtype for tensor in tensors]
        self.totals: list[Tensor | None] = [None] * len(tensors)

    def add(self, parts: Sequence[Tensor | None], factor: float = 1.0) -> None:
        """Adds `factor` times each part; None adds nothing."""
        for i, part in enumerate(parts):
            if part is None:
                continue
            total = self.totals[i]
            if total is None:
                self.totals[i] = part.to(wide(part.dtype), copy=True).mul_(factor)
            else:
                total.add_(part, alpha=factor)

    def result(self, factor: Tensor | None = None) -> list[Tensor | None]:
        """The sums, times `factor`, in the dtypes of the tensors; None where nothing was added."""
        return [
            None if total is None else (total if factor is None else total * factor).to(dtype)
            for total, dtype in zip(self.totals, self.dtypes, strict=True)
        ]
