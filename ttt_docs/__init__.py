"""Read a long document once, keep what was learned in fast weights, ask it later."""

from importlib import import_module
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
    "ttt_docs.generation.results": ("Answer", "Evidence", "Summary"),
    "ttt_docs.memory.memory": ("Memory",),
    "ttt_docs.reader": ("TTTReader",),
    "ttt_docs.reading.chunks": ("ChunkReport",),
    "ttt_docs.store.store": ("MemoryStore", "StoredMemory"),
}


def __getattr__(name: str) -> Any:
    """Names that need torch are imported at first use, so that `ttt-docs --help` answers at once."""
    for module, names in _LATER.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
