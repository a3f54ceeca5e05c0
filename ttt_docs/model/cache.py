"""What attention remembers of one block: the window's keys and values, and the sinks'."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class LayerCache:
    """Keys (rotated) and values of the last `window - 1` tokens, and of the first `sinks` tokens for ever.

    `window=None` keeps everything. While reading, new keys are written into one buffer that is compacted when it is
    full; a `differentiable` cache concatenates instead, so that gradient reaches the keys of earlier chunks (training).
    """

    def __init__(self, window: int | None, sinks: int = 0, differentiable: bool = False) -> None:
        self.window, self.sinks, self.differentiable = window, sinks, differentiable
        self.sink_kv: tuple[Tensor, Tensor] | None = None  # [batch, kv_heads, sinks so far, head_dim] each
        self._k: Tensor | None = None  # [batch, kv_heads, capacity, head_dim]
        self._v: Tensor | None = None
        self._end = 0

    def extend(self, k: Tensor, v: Tensor, commit: bool = True) -> tuple[Tensor, Tensor]:
        """Appends k, v [batch, kv_heads, new, head_dim] to a differentiable cache and returns everything the new tokens
        may see, theirs last. With `commit=False` the new tokens are seen once and then forgotten."""
        if commit:
            self._keep_sinks(k, v)
        if self._k is not None and self._v is not None:
            k, v = torch.cat([self._k, k], 2), torch.cat([self._v, v], 2)
        if commit:
            keep = k.shape[2] if self.window is None else min(k.shape[2], self.window - 1)
            self._k, self._v, self._end = k[:, :, k.shape[2] - keep :], v[:, :, v.shape[2] - keep :], keep
        return k, v

    def room(self, like: Tensor, kv_heads: int, new: int) -> tuple[Tensor, Tensor]:
        """Where the keys and values of `new` tokens belong in a reading cache, [batch, kv_heads, new, head_dim]; `like`
        [batch, ..., head_dim]. `grow` follows when they are there."""
        self._reserve(like, kv_heads, new)
        assert self._k is not None and self._v is not None
        slots = slice(self._end, self._end + new)
        return self._k[:, :, slots], self._v[:, :, slots]

    def grow(self, new: int, commit: bool = True) -> tuple[Tensor, Tensor]:
        """As `extend`, for keys and values that were written into `room`."""
        assert self._k is not None and self._v is not None
        end = self._end + new
        start = 0 if self.window is None else max(0, self._end - self.window + 1)
        if commit:
            self._keep_sinks(self._k[:, :, self._end : end], self._v[:, :, self._end : end])
            self._end = end
        return self._k[:, :, start:end], self._v[:, :, start:end]

    def _keep_sinks(self, k: Tensor, v: Tensor) -> None:
        if not self.sinks or (self.sink_kv is not None and self.sink_kv[0].shape[2] == self.sinks):
            return
        if self.sink_kv is not None:
            k, v = torch.cat([self.sink_kv[0], k], 2), torch.cat([self.sink_kv[1], v], 2)
        k, v = k[:, :, : self.sinks], v[:, :, : self.sinks]
        self.sink_kv = (k, v) if self.differentiable else (k.detach().clone(), v.detach().clone())

    def _reserve(self, like: Tensor, kv_heads: int, new: int) -> None:
        """Makes room for `new` tokens after the last one kept."""
        if self._k is not None and self._end + new <= self._k.shape[2]:
            return
        kept = self.kept()
        held = 0 if kept is None else kept[0].shape[2]
        capacity = held + max(2 * new, held if self.window is None else self.window)
        if kept is not None and self._k is not None and capacity <= self._k.shape[2]:
            assert self._v is not None
            for buffer, tail in ((self._k, kept[0]), (self._v, kept[1])):
                buffer[:, :, :held] = tail.clone()
        else:
            shape = (like.shape[0], kv_heads, capacity, like.shape[-1])
            k, v = like.new_empty(shape), like.new_empty(shape)
            if kept is not None:
                k[:, :, :held], v[:, :, :held] = kept
            self._k, self._v = k.detach(), v.detach()
        self._end = held

    def detach(self) -> None:
        """From here on, what is kept are constants."""
        if self._k is not None and self._v is not None:
            self._k, self._v = self._k.detach(), self._v.detach()
        if self.sink_kv is not None:
            self.sink_kv = self.sink_kv[0].detach(), self.sink_kv[1].detach()

    def kept(self, more: int = 0) -> tuple[Tensor, Tensor] | None:
        """Keys and values [batch, kv_heads, cached, head_dim] that later tokens can see (views); None if empty.

        With `more`, also so many before them. They are there as long as that many tokens were put in by one call."""
        if self._k is None or self._v is None or self._end == 0:
            return None
        start = 0 if self.window is None else max(0, self._end - self.window + 1 - more)
        return self._k[:, :, start : self._end], self._v[:, :, start : self._end]

    @contextmanager
    def rewound(self, tokens: int) -> Iterator[None]:
        """Forgets the last `tokens` tokens inside the `with`; what is written over them is undone at its end."""
        assert self._k is not None and self._v is not None
        end, tail = self._end, slice(self._end - tokens, self._end)
        k, v = self._k[:, :, tail].clone(), self._v[:, :, tail].clone()
        self._end -= tokens
        try:
            yield
        finally:
            self._k[:, :, tail], self._v[:, :, tail], self._end = k, v, end

    def copy(self, count: int = 1) -> LayerCache:
        """An independent cache with the same content, `count` times along the batch."""
        other = LayerCache(self.window, self.sinks, self.differentiable)
        kept = self.kept()
        if kept is not None:
            k, v = (part.repeat(count, 1, 1, 1) for part in kept)
            other._k, other._v, other._end = k, v, k.shape[2]
        other.sink_kv = self.sink_kv
        if count > 1 and self.sink_kv is not None:
            k, v = (part.repeat(count, 1, 1, 1) for part in self.sink_kv)
            other.sink_kv = k, v
        return other

    @property
    def filled(self) -> int:
        """Where in its buffer the cache ends; may be set only by who knows what the buffer holds."""
        return self._end

    @filled.setter
    def filled(self, end: int) -> None:
        self._end = end

    def allocate(self, shape: tuple[int, ...], like: Tensor) -> None:
        """An empty buffer [batch, kv_heads, capacity, head_dim] of the dtype and device of `like`."""
        self._k, self._v, self._end = like.new_empty(shape), like.new_empty(shape), 0

    def hold(self, other: LayerCache) -> None:
        """Becomes a copy of `other`, in the buffers it has if they are large enough."""
        kept = other.kept()
        self._end = 0
        if kept is not None:
            held = kept[0].shape[2]
            if self._k is None or self._v is None or self._k.shape[2] < held:
                self.allocate(tuple(kept[0].shape), kept[0])
            assert self._k is not None and self._v is not None
            self._k[:, :, :held], self._v[:, :, :held] = kept
            self._end = held
        if self.sink_kv is not None and other.sink_kv is not None:
            for mine, theirs in zip(self.sink_kv, other.sink_kv, strict=True):
                mine.copy_(theirs)
        else:
            self.sink_kv = None if other.sink_kv is None else (other.sink_kv[0].clone(), other.sink_kv[1].clone())

    def export(self) -> tuple[Tensor, Tensor]:
        """Sinks, then window, as one pair [batch, kv_heads, sinks + cached, head_dim] (copies); not before reading."""
        kept = self.kept()
        assert kept is not None
        k, v = kept
        if self.sink_kv is not None:
            k, v = torch.cat([self.sink_kv[0], k], 2), torch.cat([self.sink_kv[1], v], 2)
        return k.clone(), v.clone()

    def restore(self, k: Tensor, v: Tensor, position: int) -> None:
        """The inverse of `export` after `position` tokens; without tokens in k, v the cache stays empty."""
        if k.shape[2] == 0:
            return
        sinks = min(self.sinks, position)  # fewer than there will be where not that much was read
        if sinks:
            self.sink_kv = k[:, :, :sinks].clone(), v[:, :, :sinks].clone()
        self._k, self._v = k[:, :, sinks:].clone(), v[:, :, sinks:].clone()
        self._end = self._k.shape[2]
