"""Compact fast weights: their change from the initial value, as few rounded singular vectors.

Reading changes a matrix mostly in a few directions, so its change is kept as the largest terms of its singular value
decomposition, sum of scale * left * right. All matrices share one budget: a term costs the same in each, so those with
the largest singular values are taken, wherever they are. Terms that weigh much are rounded to 8 bits, the others to 4.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from itertools import accumulate
from math import inf

import torch
from torch import Tensor

#: A term is worth 8 bits where it is this many times as large as the smallest one kept: rounding to 4 bits then loses
#: as much of it as leaving another term out.
_WIDE = 6.0
#: Fractions of the largest entry that are tried as the range of a 4-bit rounding; what is outside is clipped.
_RANGES = (1.0, 0.85, 0.7, 0.6, 0.5, 0.4, 0.33)

Changes = dict[int, dict[str, "LowRank"]]


@dataclass(frozen=True)
class LowRank:
    """A matrix [rows, columns] as a sum of terms; vectors of the 4-bit terms hold two entries in a byte."""

    left8: Tensor  # int8 [terms, rows]
    right8: Tensor  # int8 [terms, columns]
    scale8: Tensor  # float32 [terms]
    left4: Tensor  # uint8 [terms, (rows + 1) // 2]
    right4: Tensor  # uint8 [terms, (columns + 1) // 2]
    scale4: Tensor  # float32 [terms]

    @property
    def nbytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors().values())

    @property
    def shape(self) -> tuple[int, int]:
        return self.left8.shape[1], self.right8.shape[1]

    def tensors(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether the parts, which may come from a file, make up a matrix of that shape."""
        if len(shape) != 2 or self.scale8.dim() != 1 or self.scale4.dim() != 1:
            return False
        (rows, columns), wide, narrow = shape, len(self.scale8), len(self.scale4)
        wanted = {
            "left8": ((wide, rows), torch.int8),
            "right8": ((wide, columns), torch.int8),
            "scale8": ((wide,), torch.float32),
            "left4": ((narrow, (rows + 1) // 2), torch.uint8),
            "right4": ((narrow, (columns + 1) // 2), torch.uint8),
            "scale4": ((narrow,), torch.float32),
        }
        return {name: (tuple(part.shape), part.dtype) for name, part in self.tensors().items()} == wanted

    def expand(self) -> Tensor:
        """float32 [rows, columns]"""
        rows, columns = self.left8.shape[1], self.right8.shape[1]
        left = torch.cat([self.left8.float(), _unpack(self.left4, rows)])
        right = torch.cat([self.right8.float(), _unpack(self.right4, columns)])
        return left.T @ (right * torch.cat([self.scale8, self.scale4])[:, None])


def term_bytes(rows: int, columns: int, bits: int) -> int:
    """Bytes of one term of a matrix [rows, columns]."""
    return sum(-(-size * bits // 8) for size in (rows, columns)) + 4


def compress(changes: Mapping[int, Mapping[str, Tensor]], max_bytes: int) -> Changes:
    """The changes [rows, columns] of the fast weights by block and name, in at most `max_bytes`."""
    parts = {
        (block, name): torch.linalg.svd(change, full_matrices=False)
        for block, weights in changes.items()
        for name, change in weights.items()
    }
    terms = sorted(
        (float(value), *change.shape)
        for block, weights in changes.items()
        for name, change in weights.items()
        for value in parts[block, name].S
        if value > 0
    )[::-1]
    smallest, wide = _limits(terms, max_bytes)
    found: Changes = {}
    for (block, name), (left, values, right) in parts.items():
        in_8, kept = int((values >= wide).sum()), int((values >= smallest).sum())
        found.setdefault(block, {})[name] = _round(left.T, values, right, in_8, kept)
    return found


def _limits(terms: list[tuple[float, int, int]], max_bytes: int) -> tuple[float, float]:
    """The singular values down to which terms are kept, and kept in 8 bits; `terms`: (value, rows, columns) in order.

    Terms with less than a thousandth of the largest value are rounding errors, or might as well be.
    """
    terms = [term for term in terms if term[0] > terms[0][0] / 1000]
    costs = {bits: [0, *accumulate(term_bytes(rows, columns, bits) for _, rows, columns in terms)] for bits in (4, 8)}

    def most(fits: Callable[[int], bool]) -> int:
        """The largest count of terms that fits; equal values stay or go together."""
        low, high = 0, len(terms)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(middle) else (low, middle - 1)
        while 0 < low < len(terms) and terms[low][0] == terms[low - 1][0]:
            low -= 1
        return low

    def cost(kept: int, wide: int) -> int:
        return costs[8][wide] + costs[4][kept] - costs[4][wide]

    def worth(kept: int) -> int:
        return bisect_right(terms, -_WIDE * terms[kept - 1][0], hi=kept, key=lambda term: -term[0])

    kept = most(lambda count: cost(count, worth(count)) <= max_bytes)
    wide = most(lambda count: count <= kept and cost(kept, count) <= max_bytes)  # what is left over goes into these
    return terms[kept - 1][0] if kept else inf, terms[wide - 1][0] if wide else inf


def _round(left: Tensor, values: Tensor, right: Tensor, wide: int, kept: int) -> LowRank:
    """left [terms, rows], right [terms, columns]: `wide` terms in 8 bits, those up to `kept` in 4."""
    left8, left_scale8 = _rounded(left[:wide], 127, (1.0,))
    right8, right_scale8 = _rounded(right[:wide], 127, (1.0,))
    left4, left_scale4 = _rounded(left[wide:kept], 7, _RANGES)
    right4, right_scale4 = _rounded(right[wide:kept], 7, _RANGES)
    return LowRank(
        left8=left8.to(torch.int8),
        right8=right8.to(torch.int8),
        scale8=values[:wide] * left_scale8 * right_scale8,
        left4=_pack(left4),
        right4=_pack(right4),
        scale4=values[wide:kept] * left_scale4 * right_scale4,
    )


def _rounded(vectors: Tensor, largest: int, ranges: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Integers [terms, size] from -largest to largest and the step [terms] of each vector, of the best range."""
    top = vectors.abs().amax(dim=1, keepdim=True)
    best, step, error = vectors, top, torch.full_like(top, float("inf"))
    for share in ranges:
        size = (top * share / largest).clamp_min(1e-30)
        whole = (vectors / size).round().clamp(-largest, largest)
        off = (whole * size - vectors).square().sum(dim=1, keepdim=True)
        better = off < error
        best, step, error = (
            torch.where(better, whole, best),
            torch.where(better, size, step),
            torch.where(better, off, error),
        )
    return best, step[:, 0]


def _pack(whole: Tensor) -> Tensor:
    """Integers -7..7 [terms, size] as uint8 [terms, (size + 1) // 2]: the first of two in the low half."""
    shifted = (whole + 8).to(torch.uint8)
    if shifted.shape[1] % 2:
        shifted = torch.nn.functional.pad(shifted, (0, 1), value=8)
    return shifted[:, 0::2] | (shifted[:, 1::2] << 4)


def _unpack(packed: Tensor, size: int) -> Tensor:
    """The reverse of `_pack`, float32 [terms, size]."""
    both = torch.stack([packed & 15, packed >> 4], dim=2)
    return both.flatten(1)[:, :size].float() - 8
