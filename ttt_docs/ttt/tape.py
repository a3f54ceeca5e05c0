"""Keys and values of a whole sequence, of the blocks whose attention comes after the first prime MLP."""

from __future__ import annotations

import torch
from torch import Tensor

from ttt_docs.model.cache import LayerCache
from ttt_docs.model.config import ReadingConfig


class ChunkCache(LayerCache):
    """What one chunk sees of the chunks before it, and afterwards its own keys and values in `newest`.

    `past` and `sinks` hold keys and values [batch, kv_heads, cached, head_dim]; where they ask for gradient, so do the
    keys that `extend` returns, else all of those are constants (see `Kernels`).
    """

    def __init__(self, window: int, past: tuple[Tensor, Tensor], sinks: tuple[Tensor, Tensor]) -> None:
        super().__init__(window, differentiable=True)
        self.past = past
        self.sink_k, self.sink_v = sinks

    def extend(self, k: Tensor, v: Tensor, commit: bool = True) -> tuple[Tensor, Tensor]:
        self.newest = k, v
        if not self.past[0].requires_grad:
            k, v = k.detach(), v.detach()
        return torch.cat([self.past[0], k], dim=2), torch.cat([self.past[1], v], dim=2)


class Tape:
    """Keys and values, or the gradients for them, of all tokens: [batch, kv_heads, tokens, head_dim] for each block."""

    def __init__(self, reading: ReadingConfig, blocks: range, zeros: Tensor) -> None:
        self.reading, self.blocks = reading, blocks
        self.of = {i: (zeros.clone(), zeros.clone()) for i in blocks}

    def chunk(self, start: int) -> list[Tensor]:
        """Views of the chunk at `start`: k, v of the first block, k, v of the second, ..."""
        return [x[:, :, start : start + self.reading.chunk] for i in self.blocks for x in self.of[i]]

    def past(self, start: int) -> list[Tensor]:
        """Views of what the chunk at `start` sees of the chunks before: window k, v and sinks' k, v of each block."""
        window, sinks = slice(max(0, start - self.reading.window + 1), start), slice(self.reading.sinks)
        return [x[:, :, part] for i in self.blocks for part in (window, sinks) for x in self.of[i]]
