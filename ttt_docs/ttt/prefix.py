"""The prefix blocks, ahead of the suffix: they do not depend on the fast weights, so many chunks run in one call."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ttt_docs.model.cache import LayerCache
from ttt_docs.model.decoder import Decoder
from ttt_docs.ttt.inner_loop import InnerLoop


class Prefix:
    """Hidden states of a piece's chunks after the prefix blocks.

    Chunks run in groups of `size`, counted from the document's start. On a GPU they run on a stream of their own, one
    group ahead of what is asked for.
    """

    def __init__(
        self,
        loop: InnerLoop,
        caches: Sequence[LayerCache],
        tokens: Tensor,
        start: int,
        size: int,
        known: dict[int, Tensor] | None = None,
    ) -> None:
        """tokens [batch, n * chunk] begin with chunk `start`. `known` has groups' hidden states by the position they
        begin at: what is there does not run again, and what runs is put there."""
        self.loop, self.caches, self.tokens, self.start, self.size = loop, caches, tokens, start, size
        self.known = known
        self.chunk = loop.reading.chunk
        self.stop = start + tokens.shape[1] // self.chunk
        self.groups: dict[int, tuple[Tensor, Any]] = {}
        self.stream = _stream(tokens.device) if tokens.is_cuda else None
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream())

    def hidden(self, index: int) -> Tensor:
        """[batch, chunk, dim] of chunk `index` of the document."""
        group = index // self.size
        for here in (group, group + 1):
            if here not in self.groups and here * self.size < self.stop:
                self._launch(here)
        hidden, done = self.groups[group]
        if done is not None:
            done.wait()
            hidden.record_stream(torch.cuda.current_stream())
        self.groups = {g: v for g, v in self.groups.items() if g >= group}
        slot = index - group * self.size
        return hidden[:, slot * self.chunk : (slot + 1) * self.chunk]

    def finish(self) -> None:
        """What follows on the current stream, which reads the prefix blocks' caches too, comes after all of this."""
        if self.stream is not None:
            torch.cuda.current_stream().wait_stream(self.stream)

    def _launch(self, group: int) -> None:
        first, last = max(group * self.size, self.start), min((group + 1) * self.size, self.stop)
        if self.known is not None and first * self.chunk in self.known:
            self.groups[group] = self.known[first * self.chunk], None
            return
        tokens = self.tokens[:, (first - self.start) * self.chunk : (last - self.start) * self.chunk]
        context: Any = nullcontext() if self.stream is None else torch.cuda.stream(self.stream)
        with context:
            hidden = run_group(self.loop, self.caches, tokens, first, self.size)
            done = self.stream.record_event() if self.stream is not None else None
        self.groups[group] = hidden, done
        if self.known is not None:
            self.known[first * self.chunk] = hidden


@torch.no_grad()
def run_group(loop: InnerLoop, caches: Sequence[LayerCache], tokens: Tensor, first: int, size: int) -> Tensor:
    """Hidden states [batch, size * chunk, dim] of a whole group, of which `tokens` begin at chunk `first`.

    The group is padded: a product's last bits depend on its shape, and reading on must not depend on where it stopped.
    """
    model, reading, chunk = loop.model, loop.reading, loop.reading.chunk
    slot, count = first % size, tokens.shape[1] // chunk
    frame = tokens.new_zeros(tokens.shape[0], size * chunk)
    frame[:, slot * chunk : (slot + count) * chunk] = tokens
    start = (first - slot) * chunk
    positions = model.positions(start, size * chunk, reading.window, reading.sinks, chunk, slice(slot, slot + count))
    if loop.kernels.name == "triton" and chunk % _tile_rows(model) == 0:
        positions = positions.joined()
    return model.run(model.hidden(frame), range(model.config.prefix_blocks), positions, caches, None, loop.kernels)


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all readings: the allocator keeps memory, and cuBLAS a workspace, for every stream that was ever used."""
    return torch.cuda.Stream(device)


def _tile_rows(model: Decoder) -> int:
    from ttt_docs.kernels.attention.triton_tiles import tiles_for

    return tiles_for("forward_rows", model.dtype, model.config.head_dim, model.embed.weight.device).rows
