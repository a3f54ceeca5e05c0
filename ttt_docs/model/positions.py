"""Where a run of tokens stands in the document: RoPE angles, the ranges that attend together, and how each sees sinks.

Sinks (docs/method.md section 6) stand right before each query's window: a query at position p sees sink s once
p >= window + s, at the distance it has at p = window + sinks - 1 for ever after. So beyond that point the sink keys are
rotated once and the queries come unrotated. In the chunk where the window passes it, the queries are rotated instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ttt_docs.kernels.attention.definition import Sinks
from ttt_docs.kernels.heads.definition import Rotation, rotate
from ttt_docs.model.rope import rotation


@dataclass(frozen=True)
class SinkPositions:
    """How one range's queries see the sinks: either queries or sink keys are rotated."""

    query_rotation: Rotation | None
    key_rotation: Rotation | None
    hidden: Tensor | None  # bool [tokens, sinks]

    @property
    def settled(self) -> bool:
        """Whether all queries see all sinks, at their last distance."""
        return self.query_rotation is None

    def sinks(self, kv: tuple[Tensor, Tensor], q: Tensor) -> Sinks:
        """What attention takes: sinks' keys and values [batch, kv_heads, sinks, head_dim], as the cache holds them, for
        queries q [batch, heads, tokens, head_dim] that are rotated for them."""
        k, v = kv
        if self.key_rotation is not None:
            k = rotate(k.transpose(1, 2), self.key_rotation).transpose(1, 2)
        return Sinks(q, k, v, self.hidden)


@dataclass(frozen=True)
class Positions:
    """Where a run of tokens stands in the document."""

    rotation: Rotation
    ranges: tuple[tuple[int, int], ...]  # in order; tokens outside all ranges are padding
    sinks: tuple[SinkPositions | None, ...]  # one per range; None: they are out of sight

    @classmethod
    def of(
        cls,
        start: int,
        tokens: int,
        window: int | None,
        sinks: int,
        chunk: int | None,
        slots: slice | None,
        frequencies: Tensor,
        dtype: torch.dtype,
    ) -> Positions:
        """As `Decoder.positions`, with the model's RoPE frequencies and dtype."""
        device = frequencies.device
        positions = torch.arange(start, start + tokens, device=device)
        step = chunk or max(tokens, 1)
        ranges = [(i, min(i + step, tokens)) for i in range(0, tokens, step)]
        ranges = ranges[slots] if slots is not None else ranges

        @cache
        def settled(farthest: int) -> SinkPositions:
            back = torch.full((sinks,), -farthest, device=device)
            return SinkPositions(None, rotation(back, frequencies, dtype), None)

        def of_sinks(first: int, last: int) -> SinkPositions | None:
            if not sinks or window is None or start + last <= window:
                return None
            farthest = window + sinks - 1
            if start + first >= farthest:
                return settled(farthest)
            here = positions[first:last]
            hidden = (here - window)[:, None] < torch.arange(sinks, device=device)
            return SinkPositions(rotation(here.clamp(max=farthest), frequencies, dtype), None, hidden)

        return cls(rotation(positions, frequencies, dtype), tuple(ranges), tuple(of_sinks(a, b) for a, b in ranges))

    def within(self, first: int, last: int) -> Positions:
        """Tokens [first, last), which lie in one range, by themselves."""
        index = next(i for i, (a, b) in enumerate(self.ranges) if a <= first and last <= b)
        sink = self.sinks[index]
        if sink is not None and sink.query_rotation is not None and sink.hidden is not None:
            here = slice(first - self.ranges[index][0], last - self.ranges[index][0])
            cos, sin = sink.query_rotation
            sink = SinkPositions((cos[here], sin[here]), None, sink.hidden[here])
        return Positions((self.rotation[0][first:last], self.rotation[1][first:last]), ((0, last - first),), (sink,))

    def joined(self) -> Positions:
        """Fewer, longer ranges, where that changes no bit of Triton's attention. A row of queries has the same bits
        whatever whole tiles it is launched with, if all rows see no sinks or all see them at their last distance."""
        ranges, sinks = list(self.ranges[:1]), list(self.sinks[:1])
        for (first, last), sink in zip(self.ranges[1:], self.sinks[1:], strict=True):
            before = sinks[-1]
            if sink is before is None or (sink is not None and before is not None and sink.settled and before.settled):
                ranges[-1] = ranges[-1][0], last
            else:
                ranges.append((first, last))
                sinks.append(sink)
        return Positions(self.rotation, tuple(ranges), tuple(sinks))
