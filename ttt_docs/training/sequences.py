"""Shards to training sequences, in an order that is a function of the seed."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ttt_docs.training.shards import Shards


class Sequences:
    """Every whole sequence of every document: `length` tokens and the one after them, the last target.

    A sequence lies inside one document; the next one begins with the last one's final target. What is left at a
    document's end, shorter than a sequence, is not used.
    """

    def __init__(self, shards: Shards, length: int) -> None:
        self.length = length
        self._tokens = [
            shards.tokens_of(shard) if len(lengths) else None for shard, lengths in enumerate(shards.lengths)
        ]
        rows = []
        for shard, lengths in enumerate(shards.lengths):
            counts = (lengths - 1) // length
            starts = np.cumsum(lengths) - lengths
            place = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            rows.append(np.stack([np.full(len(place), shard), np.repeat(starts, counts) + place * length, place], 1))
        #: [sequences, 3]: shard, first token, which sequence of its document
        self._rows = np.concatenate(rows) if rows else np.zeros((0, 3), dtype=np.int64)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> np.ndarray:
        """Tokens int64 [length + 1]."""
        shard, start, _ = self._rows[index]
        tokens = self._tokens[shard]
        assert tokens is not None
        return tokens[start : start + self.length + 1].astype(np.int64)

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Tokens int64 [indices, length + 1]."""
        return np.stack([self[int(index)] for index in indices])

    def batch(self, step: int, size: int, seed: int) -> np.ndarray:
        """Indices of the sequences of a step. Each epoch visits every sequence once, in an order of its own."""
        wanted = np.arange(step * size, (step + 1) * size)
        epochs, places = np.divmod(wanted, len(self))
        return np.array([_order(len(self), seed, int(e))[p] for e, p in zip(epochs, places, strict=True)])

    def spread(self, count: int) -> np.ndarray:
        """Indices of `count` sequences for validation: the first of every document, then the second ones, ..."""
        return np.argsort(self._rows[:, 2], kind="stable")[:count]


@lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(count)
