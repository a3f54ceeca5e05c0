"""The memory that reading leaves behind, and its file."""

from ttt_docs.memory.header import ReadDocument, Span
from ttt_docs.memory.inspection import inspect_memory, summary
from ttt_docs.memory.memory import Memory, memories_equal

__all__ = ["Memory", "ReadDocument", "Span", "inspect_memory", "memories_equal", "summary"]
