"""A document into a memory: opened, read after what was read before, recorded, and kept in a store on the way."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import chain
from typing import IO, NamedTuple

import torch
from tqdm import tqdm

from ttt_docs.documents import Document, iter_text, load_document
from ttt_docs.documents.load import SUFFIXES
from ttt_docs.errors import MemoryFormatError, ReadingInterrupted, UsageError
from ttt_docs.io import Interrupt
from ttt_docs.memory.header import ReadDocument
from ttt_docs.memory.memory import Memory
from ttt_docs.model.decoder import Decoder
from ttt_docs.reading.chunks import ChunkReport, Track, batch_state, read_batch, read_stream
from ttt_docs.reading.restoring import state_of
from ttt_docs.store.store import MemoryStore, hashes_of, memory_key
from ttt_docs.text.segments import segments
from ttt_docs.text.spans import moved_spans
from ttt_docs.text.tokenizer import Tokenizer
from ttt_docs.ttt.state import ReadingState

logger = logging.getLogger(__name__)

#: What `ingest` reads: a path, URL, `-`, open file, Document, or an iterable of text.
Source = str | os.PathLike[str] | IO[bytes] | IO[str] | Document | Iterable[str]
OnChunk = Callable[[ChunkReport], None]

#: Between two documents that are read one after the other into one memory.
SEPARATOR = "\n\n"


class Incoming(NamedTuple):
    """A document to read: its text in pieces, what to call it, and the document where its end is known."""

    document: Document | None
    pieces: Iterable[str]
    label: str


def open_source(
    source: Source | None, text: str | None, name: str | None, password: str | None, max_bytes: int
) -> Incoming:
    """The document that `ingest` was asked to read.

    Raises:
        UsageError: nothing to read, two things at once, or something that is neither a document nor text.
        DocumentError: a document that cannot be read.
    """
    if (source is None) == (text is None):
        raise UsageError("give a document to read: either a source (path, URL, file, Document, iterable) or text=")
    if text is not None:
        document = Document.from_text(text, name=name or "text")
    elif isinstance(source, (str, os.PathLike, Document)) or hasattr(source, "read"):
        document = load_document(source, password=password, max_bytes=max_bytes, name=name)  # type: ignore[arg-type]
    elif not isinstance(source, Iterable) or isinstance(source, (bytes, bytearray, dict)):
        raise UsageError(f"a {type(source).__name__} cannot be read: give a path, URL, file or Document")
    elif isinstance(source, Sequence) and source and all(map(_names_a_document, source)):
        raise UsageError(
            "a list is taken as the pieces of one text, and this one names documents: read them one after the other, "
            "memory = reader.ingest(path, memory=memory), or each by itself"
        )
    else:
        return Incoming(None, iter_text(source, max_bytes=max_bytes, name=name), name or "stream")
    return Incoming(document, [document.text], name or document.name)


def _names_a_document(piece: object) -> bool:
    """Whether a piece of a list is no piece of text but a document, or its path."""
    if not isinstance(piece, str):
        return isinstance(piece, (os.PathLike, Document))
    if not piece.strip() or "\n" in piece or len(piece) > 1024:
        return False
    return os.path.splitext(piece)[1].lower() in SUFFIXES or os.path.isfile(piece)


def take_text(history: Memory, incoming: Incoming) -> Memory:
    """The text of a document after `history`, of which nothing is read.

    Raises UsageError if `history` was read.
    """
    history, pieces, _ = _after(history, incoming)
    if history.documents and not history.unread:
        raise UsageError("this memory was read: ingest its documents again, or go on with learn=True")
    whole = replace(history, text=(history.text or "") + "".join(pieces))
    return _with_document(whole, incoming, len(history.tokens), history)


def read_document(
    model: Decoder,
    tokenizer: Tokenizer,
    history: Memory,
    incoming: Incoming,
    progress: bool | None = None,
    on_chunk: OnChunk | None = None,
    between: Callable[[int, Callable[[], Memory]], None] = lambda position, so_far: None,
) -> Memory:
    """Reads a document after `history`.

    `between` is called between two pieces of chunks, with the position and what makes the memory of what was read.

    Raises:
        UsageError: `history` holds text that was not read.
        ReadingInterrupted: Ctrl-C; its `memory` holds what was read.
    """
    document, _, label = incoming
    history, pieces, skip = _after(history, incoming)
    if history.unread:
        raise UsageError(
            "this memory holds only text, nothing of it was read: ingest its documents again, or go on with learn=False"
        )
    state = state_of(model, history) if len(history.tokens) else ReadingState(model, history.reading)
    track = Track(history)
    first = len(track.tokens) - skip
    characters = len(document) if document is not None else 0
    disable = None if progress is None else not progress

    def so_far() -> Memory:
        memory = _with_document(track.so_far(state), incoming, first, history)
        *before, last = memory.documents
        return replace(memory, documents=(*before, replace(last, complete=False)))

    def stop() -> bool:
        between(state.position, so_far)
        return interrupt.requested

    with Interrupt() as interrupt, tqdm(unit="tok", unit_scale=True, disable=disable, desc=label[-40:]) as bar:
        for report in read_stream(state, track, pieces, tokenizer, skip, stop):
            if characters:  # tokens in all, from the rate so far
                fed = sum(map(len, track.text))
                bar.total = (len(track.tokens) - first) * characters // fed
            bar.set_postfix(loss=f"{report.loss:.3f}", refresh=False)
            bar.update(report.tokens - first - bar.n)
            if on_chunk is not None:
                on_chunk(report)
    if interrupt.requested:
        raise ReadingInterrupted(so_far())
    return _with_document(track.finish(state), incoming, first, history)


def read_or_load(
    model: Decoder,
    tokenizer: Tokenizer,
    history: Memory,
    incoming: Incoming,
    store: MemoryStore,
    finish: Callable[[Memory], Memory],
    progress: bool | None = None,
    on_chunk: OnChunk | None = None,
) -> Memory:
    """As `read_document`, but what the store has is not read again; `finish` makes the memory that is stored.

    Raises as `read_document`; UsageError for a `history` that has no key; StoreError.
    """
    document, pieces, label = incoming
    if document is None:
        document = Document.from_text("".join(pieces), name=label)
        incoming = Incoming(document, [document.text], label)
    before = history.documents[:-1] if _unfinished(history, document) else history.documents
    key = memory_key([*hashes_of(before), document.sha256], history.fingerprint, history.reading)
    whole = _whole(store, key, history)
    if whole is not None:  # perhaps read from another file: name and pages are this one's
        *others, last = whole.documents
        spans = moved_spans(document.spans, last.start, last.end)
        last = replace(last, name=label, spans=spans, metadata=document.metadata)
        return replace(whole, documents=(*others, last))
    start = _part(store, key, history, model.dtype) or history
    due = start.position + store.progress_every * history.reading.chunk

    def between(position: int, so_far: Callable[[], Memory]) -> None:
        nonlocal due
        if position >= due:
            store.put_part(key, so_far())
            due = position + store.progress_every * history.reading.chunk

    try:
        read = finish(read_document(model, tokenizer, start, incoming, progress, on_chunk, between))
    except ReadingInterrupted as interruption:
        with Interrupt():  # a second Ctrl-C must not cost what was read
            store.put_part(key, interruption.memory)
        raise
    store.put(read)
    store.delete_part(key)
    return read


def _whole(store: MemoryStore, key: str, history: Memory) -> Memory | None:
    """The exact memory, if it was read before. One that is damaged, compact or without its text is read anew."""
    try:
        memory = store.get(key)
    except MemoryFormatError as error:
        logger.warning("%s It is read anew.", error)
        return None
    if memory is None or memory.change is not None or memory.unread:
        return None
    return memory if memory.text is not None or history.text is None else None


def _part(store: MemoryStore, key: str, history: Memory, dtype: torch.dtype) -> Memory | None:
    """What an unfinished reading left, if it is further than `history` and its products had the same `dtype`."""
    part = store.part(key)
    if part is None or part.position <= history.position or part.documents[-1].complete:
        return None
    same_history = torch.equal(part.tokens[: history.position], history.tokens[: history.position])
    return part if same_history and all(k.dtype == dtype for k, _ in part.window.values()) else None


def read_in_step(
    model: Decoder,
    tokenizer: Tokenizer,
    empty: Memory,
    documents: Sequence[Document],
    on_chunk: Callable[[int, ChunkReport], None] | None = None,
) -> list[Memory]:
    """The memories of several documents, each read after `empty` with fast weights of its own."""
    tracks = [Track(empty) for _ in documents]
    for track, document in zip(tracks, documents, strict=True):
        for segment in segments([document.text]):
            track.text.append(segment)
            track.tokens.extend(tokenizer.encode(segment))
    memories = read_batch(batch_state(model, empty.reading, len(tracks)), tracks, on_chunk) if tracks else []
    incoming = [Incoming(document, [], document.name) for document in documents]
    first = len(empty.tokens)
    return [_with_document(memory, one, first, empty) for memory, one in zip(memories, incoming, strict=True)]


def _with_document(memory: Memory, incoming: Incoming, first: int, history: Memory) -> Memory:
    """`memory` with the document just read added to those of `history`; `first` is its first token."""
    document, _, label = incoming
    read = ReadDocument(label, 0, 0, first_token=first)
    if document is not None:
        read = replace(read, sha256=document.sha256, metadata=document.metadata)
    if memory.text is not None and history.text is not None:
        start, end = len(history.text) + len(SEPARATOR) * bool(history.documents), len(memory.text)
        read = replace(read, start=start, end=end)
        if document is None:
            read = replace(read, sha256=hashlib.sha256(memory.text[start:].encode()).hexdigest())
        else:
            read = replace(read, spans=moved_spans(document.spans, start, end))
    return replace(memory, documents=(*history.documents, read))


def _unfinished(memory: Memory, document: Document | None) -> bool:
    """Whether reading `document` goes on in its middle, where `memory` stopped."""
    last = memory.documents[-1] if memory.documents else None
    return last is not None and not last.complete and document is not None and last.sha256 == document.sha256


def _after(memory: Memory, incoming: Incoming) -> tuple[Memory, Iterable[str], int]:
    """What was read before this document, the text to read, and how many of its tokens were read already."""
    if not memory.documents:
        return memory, incoming.pieces, 0
    if not _unfinished(memory, incoming.document):
        return memory, chain([SEPARATOR], incoming.pieces), 0
    *before, last = memory.documents
    separator = SEPARATOR if before else ""
    text = None if memory.text is None else memory.text[: last.start - len(separator)]
    history = replace(memory, text=text, documents=tuple(before))
    return history, chain([separator], incoming.pieces), len(memory.tokens) - last.first_token
