"""One reading and the store that keeps it: whole in the end, and what there is so far on the way."""

from __future__ import annotations

import logging

import torch

from ttt_docs.documents.document import Document
from ttt_docs.errors import MemoryFormatError
from ttt_docs.memory.memory import Memory
from ttt_docs.store.store import MemoryStore, hashes_of, memory_key

logger = logging.getLogger(__name__)


class Keeping:
    """The place in `store` of what reading `document` after `history` leaves behind.

    Raises UsageError where that has none: `history` holds another document that was read in part.
    """

    def __init__(self, store: MemoryStore, history: Memory, document: Document) -> None:
        last = history.documents[-1] if history.documents else None
        before = history.documents
        if last is not None and not last.complete and last.sha256 == document.sha256:
            before = before[:-1]  # reading goes on in the middle of this one
        self.store = store
        self.key = memory_key([*hashes_of(before), document.sha256], history.fingerprint, history.reading)
        self.history = history
        self.step = store.progress_every * history.reading.chunk
        self.kept = history.position

    def whole(self) -> Memory | None:
        """The memory, if it was read before. One that is damaged is read anew."""
        try:
            return self.store.get(self.key)
        except MemoryFormatError as error:
            logger.warning("%s It is read anew.", error)
            return None

    def part(self, dtype: torch.dtype) -> Memory | None:
        """What an unfinished reading has, if it is further than `history` and its products had the same `dtype`."""
        part = self.store.part(self.key)
        if part is None or part.position <= self.history.position or part.documents[-1].complete:
            return None
        same_history = torch.equal(part.tokens[: self.history.position], self.history.tokens[: self.history.position])
        if not same_history or any(k.dtype != dtype for k, _ in part.window.values()):
            return None
        self.kept = part.position
        return part

    def due(self, position: int) -> bool:
        return position - self.kept >= self.step

    def keep(self, part: Memory) -> None:
        self.store.put_part(self.key, part)
        self.kept = part.position

    def finish(self, memory: Memory) -> None:
        self.store.put(memory)
        self.store.delete_part(self.key)
