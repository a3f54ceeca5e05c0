"""The memory: what reading leaves behind."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from ttt_docs.kernels.inner_step.layout import NAMES as FAST_NAMES
from ttt_docs.model.config import ReadingConfig
from ttt_docs.text.spans import Span, label_at
from ttt_docs.weights.lowrank import Changes

#: Bytes of a compact memory's file unless told otherwise.
COMPACT_BYTES = 12_000_000
#: The fast weights of one block: `w1`, `w3` float32 [mlp, dim] and `w2` float32 [dim, mlp].
BlockWeights = dict[str, Tensor]


class Compacts(Protocol):
    """What makes compact memories: a `TTTReader`."""

    def compact(self, memory: Memory, max_bytes: int) -> Memory: ...


@dataclass(frozen=True)
class ReadDocument:
    """One document that went into a memory; `start`..`end` are its characters in the memory's text."""

    name: str
    start: int
    end: int
    sha256: str | None = None  # of the whole text in UTF-8; None while its end is unknown
    complete: bool = True  # False: reading stopped before the document's end
    spans: tuple[Span, ...] = ()
    first_token: int = 0  # index of its first token in the memory's tokens
    metadata: dict[str, str] = field(default_factory=dict, hash=False)  # title, author, ... where known


@dataclass(frozen=True)
class Memory:
    """Fast weights, attention window and position after reading `position` tokens in whole chunks.

    A memory is a value: reading on returns a new one, questions never change it. `tokens` may be longer than
    `position`: the rest is the pending part of a chunk, scored but not yet learned from.
    """

    model: str  # registry name, folder or Hugging Face id it was read with: a hint for people
    fingerprint: str  # sha256 over the model's configuration and weights
    reading: ReadingConfig
    fast: dict[int, BlockWeights]  # block index -> fast weights
    window: dict[int, tuple[Tensor, Tensor]]  # block index -> keys, values [kv_heads, cached, head_dim], sinks first
    position: int  # tokens read in whole chunks: a multiple of reading.chunk
    tokens: Tensor  # int32 [n], n >= position
    nll: Tensor  # float32 [n], nats: nll[i] = -log p(tokens[i] | before); 0 where nothing was predicted
    text: str | None = None
    documents: tuple[ReadDocument, ...] = ()
    skipped: int = 0  # updates that the guard refused
    extra: dict[str, str] = field(default_factory=dict)  # free notes of the caller
    #: A compact memory's: what reading added to the fast weights, which with the window are then empty.
    change: Changes | None = None
    #: The index that lookups use (`lookup/stored.py`); a compact memory leaves it out, and it is made again when asked.
    index: bytes | None = None

    @property
    def pending(self) -> Tensor:
        """Tokens after the last whole chunk, int32 [n - position]."""
        return self.tokens[self.position :]

    @property
    def chunks(self) -> int:
        return self.position // self.reading.chunk

    @property
    def unread(self) -> bool:
        """Whether it holds the documents' text alone, of which nothing was read."""
        return bool(self.documents) and len(self.tokens) <= self.documents[0].first_token

    def document_at(self, character: int) -> ReadDocument | None:
        """The document that a character of the text belongs to; the gap after a document counts as its end."""
        at = bisect_right(self.documents, character, key=lambda document: document.start) - 1
        return self.documents[at] if at >= 0 else None

    def label_at(self, character: int, kind: str) -> str | None:
        """The label of the "page" or "chapter" of a character of the text."""
        document = self.document_at(character)
        return None if document is None else label_at(document.spans, character, kind)

    def with_text(self, text: str | None) -> Memory:
        return replace(self, text=text, index=None)

    def nbytes(self) -> int:
        """Bytes of all tensors."""
        tensors: list[Tensor] = [self.tokens, self.nll]
        tensors += [t for block in self.fast.values() for t in block.values()]
        tensors += [t for pair in self.window.values() for t in pair]
        tensors += [
            t for block in (self.change or {}).values() for low in block.values() for t in low.tensors().values()
        ]
        return sum(t.numel() * t.element_size() for t in tensors)

    def compact(self, reader: Compacts, max_bytes: int = COMPACT_BYTES) -> Memory:
        """This memory for a file of at most `max_bytes`, close to exact: docs/compaction.md says how close.

        `reader` is a `TTTReader`, whose `compact` this calls: it knows the model's initial fast weights.

        Raises MemoryMismatchError for another model's reader, UsageError if it does not fit or is compact already.
        """
        return reader.compact(self, max_bytes)

    def save(
        self, path: str | PathLike[str], *, precision: Literal["float32", "bfloat16"] = "float32", text: bool = True
    ) -> Path:
        """Write this memory to one file; see `save_memory`, which this calls."""
        from ttt_docs.memory.format import save_memory  # here, since that module builds on this one

        return save_memory(self, path, precision=precision, text=text)

    @staticmethod
    def load(
        path: str | PathLike[str], *, expect_fingerprint: str | None = None, expect_model: str | None = None
    ) -> Memory:
        """Read a memory file; see `load_memory`, which this calls."""
        from ttt_docs.memory.format import load_memory

        return load_memory(path, expect_fingerprint=expect_fingerprint, expect_model=expect_model)


def memories_equal(a: Memory, b: Memory) -> bool:
    """Bit-for-bit equality of everything reading computed."""

    def same(x: Tensor, y: Tensor) -> bool:
        # As bytes: for numbers, -0.0 equals 0.0 and NaN nothing.
        same_kind = x.dtype == y.dtype and x.shape == y.shape
        return same_kind and torch.equal(x.reshape(-1).view(torch.uint8), y.reshape(-1).view(torch.uint8))

    return (
        a.position == b.position
        and same(a.tokens, b.tokens)
        and same(a.nll, b.nll)
        and a.fast.keys() == b.fast.keys()
        and all(same(a.fast[i][n], b.fast[i][n]) for i in a.fast for n in FAST_NAMES)
        and a.window.keys() == b.window.keys()
        and all(same(a.window[i][j], b.window[i][j]) for i in a.window for j in (0, 1))
    )
