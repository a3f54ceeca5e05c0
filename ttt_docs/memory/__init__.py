"""The memory that reading leaves behind, and its file."""

from ttt_docs.memory.format import load_memory, save_memory
from ttt_docs.memory.inspection import inspect_memory, summary
from ttt_docs.memory.memory import Memory, ReadDocument, Span, memories_equal

__all__ = [
    "Memory",
    "ReadDocument",
    "Span",
    "inspect_memory",
    "load_memory",
    "memories_equal",
    "save_memory",
    "summary",
]
