"""A document on its way into a memory: opened, set after what was read before, and recorded."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from typing import IO

from ttt_docs.documents import Document, Span, iter_text, load_document
from ttt_docs.errors import UsageError
from ttt_docs.memory.memory import Memory, ReadDocument

#: What `ingest` reads: a path, URL, `-`, open file, Document, or an iterable of text.
Source = str | os.PathLike[str] | IO[bytes] | IO[str] | Document | Iterable[str]

#: Between two documents that are read one after the other into one memory.
SEPARATOR = "\n\n"


def open_source(
    source: Source | None, text: str | None, name: str | None, password: str | None, max_bytes: int
) -> tuple[Document | None, Iterable[str], str]:
    """The document if its end is known, its text in pieces, and what to call it."""
    if (source is None) == (text is None):
        raise UsageError("give a document to read: either a source (path, URL, file, Document, iterable) or text=")
    if text is not None:
        document = Document.from_text(text, name=name or "text")
    elif isinstance(source, (str, os.PathLike, Document)) or hasattr(source, "read"):
        document = load_document(source, password=password, max_bytes=max_bytes, name=name)  # type: ignore[arg-type]
    else:
        return None, iter_text(source, max_bytes=max_bytes, name=name), name or "stream"  # type: ignore[arg-type]
    return document, [document.text], name or document.name


def with_document(memory: Memory, document: Document | None, label: str, first: int, history: Memory) -> Memory:
    """`memory` with the document just read added to those of `history`."""
    before = len(SEPARATOR) if history.documents else 0
    start = end = 0
    spans: tuple[Span, ...] = ()
    sha256 = document.sha256 if document is not None else None
    metadata = {} if document is None else document.metadata
    if memory.text is not None and history.text is not None:
        start, end = len(history.text) + before, len(memory.text)
        if document is None:
            sha256 = hashlib.sha256(memory.text[start:].encode()).hexdigest()
        else:
            spans = _shifted(document.spans, start, end)
    read = ReadDocument(label, start, end, sha256, spans=spans, first_token=first, metadata=metadata)
    return replace(memory, documents=(*history.documents, read))


def _shifted(spans: Iterable[Span], start: int, end: int) -> tuple[Span, ...]:
    shifted = (Span(s.kind, s.label, s.start + start, min(s.end + start, end)) for s in spans)
    return tuple(span for span in shifted if span.start < span.end)


def renamed(memory: Memory, document: Document, label: str) -> Memory:
    """A memory from a store, whose last document may have been read from another file: name and pages of this one."""
    last = memory.documents[-1]
    spans = _shifted(document.spans, last.start, last.end)
    renamed = replace(last, name=label, spans=spans, metadata=document.metadata)
    return replace(memory, documents=(*memory.documents[:-1], renamed))


def unfinished(memory: Memory) -> Memory:
    """`memory` of a reading that stopped inside its last document."""
    *before, last = memory.documents
    return replace(memory, documents=(*before, replace(last, complete=False)))


def after(memory: Memory, document: Document | None, pieces: Iterable[str]) -> tuple[Memory, Iterable[str], int]:
    """What was read before this document, the text to read, and how many of its tokens were read already."""
    if not memory.documents:
        return memory, pieces, 0
    last = memory.documents[-1]
    if not last.complete and document is not None and last.sha256 == document.sha256:
        before = len(SEPARATOR) if len(memory.documents) > 1 else 0
        text = None if memory.text is None else memory.text[: last.start - before]
        history = replace(memory, text=text, documents=memory.documents[:-1])
        return history, chain([SEPARATOR] if before else [], pieces), len(memory.tokens) - last.first_token
    return memory, chain([SEPARATOR], pieces), 0
