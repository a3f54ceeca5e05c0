"""The work of a corpus: documents loaded, sorted by length into batches, read, and put into the store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

from ttt_docs.documents import Document, load_document
from ttt_docs.documents.load import DEFAULT_MAX_BYTES
from ttt_docs.errors import DocumentError, TTTDocsError
from ttt_docs.memory.memory import COMPACT_BYTES
from ttt_docs.reader import TTTReader
from ttt_docs.store.store import MemoryStore, memory_key

#: Batches of documents that are loaded at a time: among so many, those of similar length are put together.
AHEAD = 4


@dataclass(frozen=True)
class Outcome:
    """What became of one document."""

    source: str
    status: str  # "read", "there already" or "failed"
    key: str | None = None  # in the store
    tokens: int = 0
    reason: str | None = None  # why it failed


@dataclass
class CorpusReport:
    """What became of all of them."""

    outcomes: list[Outcome] = field(default_factory=list)
    seconds: float = 0.0

    def count(self, status: str) -> int:
        return sum(outcome.status == status for outcome in self.outcomes)

    @property
    def failed(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.status == "failed"]

    @property
    def tokens(self) -> int:
        """Tokens that were read now, without those of documents that were there already."""
        return sum(outcome.tokens for outcome in self.outcomes)

    def as_json(self) -> dict[str, Any]:
        return {
            "read": self.count("read"),
            "there_already": self.count("there already"),
            "failed": [{"source": one.source, "reason": one.reason} for one in self.failed],
            "tokens": self.tokens,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens / self.seconds if self.seconds else None,
            "documents": [asdict(outcome) for outcome in self.outcomes],
        }


@dataclass(frozen=True)
class Settings:
    """How a corpus is read."""

    batch: int = 4
    resume: bool = False  # documents that are in the store already are left as they are
    compact: bool = False  # memories are stored in the compact form
    max_bytes: int = DEFAULT_MAX_BYTES


def read_sources(
    reader: TTTReader, store: MemoryStore, sources: Iterable[str], settings: Settings
) -> Iterator[Outcome]:
    """Reads documents into the store, and yields what became of each as soon as that is known.

    At most `AHEAD` batches of texts and one batch of states are held at a time. A document that cannot be read or
    compacted has failed, and the others are read. A store that cannot be written to ends the work (StoreError).
    """
    remaining = iter(sources)
    seen: set[str] = set()
    while some := list(islice(remaining, AHEAD * settings.batch)):
        loaded: list[tuple[str, str, Document]] = []
        for source in some:
            try:
                document = load_document(source, max_bytes=settings.max_bytes)
            except DocumentError as error:
                yield _failed(source, error)
                continue
            exact = memory_key([document.sha256], reader.fingerprint, reader.reading)
            key = memory_key([document.sha256], reader.fingerprint, reader.reading, settings.compact)
            # An exact memory will do where a compact one is asked for; 0.1.0 kept compact ones under that key too.
            there = next((one for one in (key, exact) if settings.resume and one in store), None)
            if key in seen or there is not None:
                yield Outcome(source, "there already", there or key)
                continue
            seen.add(key)
            loaded.append((source, key, document))
        loaded.sort(key=lambda one: len(one[2]))
        for first in range(0, len(loaded), settings.batch):
            yield from _read_batch(reader, store, loaded[first : first + settings.batch], settings.compact)


def _read_batch(
    reader: TTTReader, store: MemoryStore, batch: Sequence[tuple[str, str, Document]], compact: bool
) -> Iterator[Outcome]:
    try:
        memories = reader.ingest_batch([document for _, _, document in batch])
    except (TTTDocsError, RuntimeError) as error:
        if len(batch) == 1:
            yield _failed(batch[0][0], error)
            return
        for one in batch:  # which of them it was
            yield from _read_batch(reader, store, [one], compact)
        return
    for (source, key, _), memory in zip(batch, memories, strict=True):
        try:
            stored = memory.compact(reader, COMPACT_BYTES) if compact else memory
        except (TTTDocsError, RuntimeError) as error:
            yield _failed(source, error)
        else:
            store.put(stored)
            yield Outcome(source, "read", key, tokens=len(memory.tokens))


def _failed(source: str, error: Exception) -> Outcome:
    return Outcome(source, "failed", reason=" ".join(str(error).split()) or type(error).__name__)
