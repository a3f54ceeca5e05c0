"""Read a long document once, keep what was learned in fast weights, ask it later."""

from typing import TYPE_CHECKING, Any

from ttt_docs._version import __version__
from ttt_docs.documents.document import Document
from ttt_docs.errors import (
    CheckpointError,
    DocumentError,
    MemoryFormatError,
    MemoryMismatchError,
    ReadingInterrupted,
    StoreError,
    TTTDocsError,
    UsageError,
)

if TYPE_CHECKING:
    from ttt_docs.generation.results import Answer, Evidence, Summary
    from ttt_docs.memory.memory import Memory
    from ttt_docs.reader import TTTReader
    from ttt_docs.reading.chunks import ChunkReport
    from ttt_docs.store.store import MemoryStore, StoredMemory

__all__ = [
    "Answer",
    "CheckpointError",
    "ChunkReport",
    "Document",
    "DocumentError",
    "Evidence",
    "Memory",
    "MemoryFormatError",
    "MemoryMismatchError",
    "MemoryStore",
    "ReadingInterrupted",
    "StoreError",
    "StoredMemory",
    "Summary",
    "TTTDocsError",
    "TTTReader",
    "UsageError",
    "__version__",
]

_LATER = {
    "Answer": "ttt_docs.generation.results",
    "ChunkReport": "ttt_docs.reading.chunks",
    "Evidence": "ttt_docs.generation.results",
    "Memory": "ttt_docs.memory.memory",
    "MemoryStore": "ttt_docs.store.store",
    "StoredMemory": "ttt_docs.store.store",
    "Summary": "ttt_docs.generation.results",
    "TTTReader": "ttt_docs.reader",
}


def __getattr__(name: str) -> Any:
    """Names that need torch are imported at first use, so that `ttt-docs --help` answers at once."""
    if name in _LATER:
        from importlib import import_module

        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
