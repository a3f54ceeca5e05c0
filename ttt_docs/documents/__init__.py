"""Files to documents: text with the page or chapter of every character."""

from ttt_docs.documents.document import Document
from ttt_docs.documents.load import load_document
from ttt_docs.documents.plain import iter_text
from ttt_docs.text.spans import Span

__all__ = ["Document", "Span", "iter_text", "load_document"]
