"""The memory that reading leaves behind, and its file."""

from ttt_docs.memory.header import ReadDocument
from ttt_docs.memory.inspection import inspect_memory, summary
from ttt_docs.memory.memory import Memory, memories_equal
from ttt_docs.text.spans import Span

#: The names that release 0.1.0 had for these.
load_memory, save_memory = Memory.load, Memory.save

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
