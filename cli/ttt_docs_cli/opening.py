"""From what the user names to a reader and a memory. torch and the library's heavy parts are imported on use."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttt_docs import (
    Document,
    MemoryFormatError,
    MemoryMismatchError,
    ReadingInterrupted,
    StoreError,
    TTTDocsError,
    UsageError,
)
from ttt_docs_cli.options import DEFAULT_MODEL
from ttt_docs_cli.output import note

if TYPE_CHECKING:
    from ttt_docs import Memory, MemoryStore, TTTReader

_MAX_HEADER_BYTES = 16 * 1024 * 1024
#: What the memories of documents may take in the cache folder, unless TTT_DOCS_MEMORIES_SIZE says otherwise.
_KEPT_BYTES = "10GB"


def is_memory_file(source: str) -> bool:
    """By its name, or by its first bytes: a length, then JSON. No text begins like that."""
    if source.lower().endswith(".ttt"):
        return True
    try:
        if not os.path.isfile(source):
            return False
        with open(source, "rb") as file:
            start = file.read(9)
    except (OSError, ValueError):
        return False
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= _MAX_HEADER_BYTES


def open_reader(model: str | None, device: str, dtype: str | None, **reading: Any) -> TTTReader:
    from ttt_docs import TTTReader

    return TTTReader.from_pretrained(model or DEFAULT_MODEL, device=device, dtype=dtype, **reading)


def open_memory(path: str, model: str | None, device: str, dtype: str | None) -> tuple[TTTReader, Memory]:
    """A memory and the reader that belongs to it."""
    from ttt_docs import Memory

    memory = Memory.load(path)
    return reader_of(path, memory, model, device, dtype), memory


def reader_of(path: str, memory: Memory, model: str | None, device: str, dtype: str | None) -> TTTReader:
    """The reader that belongs to the memory in the file `path`.

    A file may come from a stranger: of the model it names only a registry name is used, never a path or address.
    Where that name may mean several weights, those in the cache are tried until one fits.
    """
    from ttt_docs.reader import reader_for
    from ttt_docs.weights.registry import REGISTRY, candidates, entry_of

    if model is None and entry_of(memory.model) is None:
        raise UsageError(
            f"{path} was read with the model {memory.model!r}, which is none of {', '.join(REGISTRY)}: "
            "say with --model where that model is"
        )
    *others, last = [model] if model else candidates(memory.model)
    for name in others:
        with suppress(MemoryMismatchError):
            return reader_for(memory, partial(open_reader, name, device, dtype))
    return reader_for(memory, partial(open_reader, last, device, dtype))


def how_far(memory: Memory, documents: Sequence[Document]) -> str:
    """For people: where reading stopped."""
    last = memory.documents[-1]
    length = next((len(document) for document in documents if document.sha256 == last.sha256), 0)
    share = f"{100 * (last.end - last.start) // length}% of " if length and not last.complete else ""
    return f"after {len(memory.tokens):,} tokens ({share}{last.name})"


def remembered(
    source: str,
    *,
    model: str | None,
    device: str,
    dtype: str | None,
    password: str | None,
    no_cache: bool,
    quiet: bool,
    learn: bool = True,
) -> tuple[TTTReader, Memory]:
    """The memory in a memory file; or that of a document, read now unless the cache folder's store holds it.

    With `learn=False` the document's text is enough: without a memory in the store nothing is read.
    """
    if is_memory_file(source):
        return open_memory(source, model, device, dtype)
    from ttt_docs.documents import load_document

    document = load_document(source, password=password)
    reader = open_reader(model, device, dtype)
    store = None if no_cache else kept_memories()
    memory, begun = None, False
    try:
        if store is not None:
            memory, begun = _kept(store, reader, document)
    except StoreError as error:
        note(f"Warning: the memory will not be kept, {error}")
        store = None
    if memory is not None:
        note(f"{document.name} was read before: its memory is in {memories_folder()}", quiet)
        return reader, memory
    if not learn:
        return reader, reader.ingest(document, learn=False)
    where = f"; its memory is kept in {memories_folder()}" if store is not None else ""
    note(f"{'Going on with' if begun else 'Reading'} {document.name}{where}", quiet)
    try:
        return reader, reader.ingest(document, store=store, progress=False if quiet else None)
    except ReadingInterrupted as interruption:
        kept = ", nothing was kept" if store is None else ", the same command goes on from there"
        raise KeyboardInterrupt(f"{how_far(interruption.memory, [document])}{kept}") from None


def _kept(store: MemoryStore, reader: TTTReader, document: Document) -> tuple[Memory | None, bool]:
    """The memory of a document in the store, and whether a part of it is there.

    One that is damaged, or was read with products of another number format, makes room for a new one.
    """
    from ttt_docs.store.store import memory_key

    key = memory_key([document.sha256], reader.fingerprint, reader.reading)
    try:
        memory = store.get(key)
    except MemoryFormatError as error:
        note(f"Warning: {error} It is read anew.")
        store.delete(key)
        return None, False
    if memory is not None and any(k.dtype != reader.model.dtype for k, _ in memory.window.values()):
        store.delete(key)
        memory = None
    return memory, memory is None and key in store.parts()


def memories_folder() -> Path:
    from ttt_docs.io import cache_folder

    return cache_folder() / "memories"


def kept_memories() -> MemoryStore:
    """The store in the cache folder. What it cannot keep (a full disk) costs a warning, not the answer."""
    from ttt_docs import MemoryStore

    class KeptMemories(MemoryStore):
        def _put(self, key: str, suffix: str, memory: Memory) -> None:
            try:
                super()._put(key, suffix, memory)
            except TTTDocsError as error:
                note(f"Warning: the memory is not kept, {error}")

    return KeptMemories(memories_folder(), max_bytes=bytes_of(os.environ.get("TTT_DOCS_MEMORIES_SIZE") or _KEPT_BYTES))


def bytes_of(text: str) -> int:
    """5GB, 500 MB, 1.5GB or a number of bytes, as bytes. Raises UsageError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([KMGT]?)B?\s*", text, re.IGNORECASE)
    if match is None:
        raise UsageError(f"{text!r} is no size: write 5GB, 500MB, or a number of bytes")
    return int(float(match[1]) * {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}[match[2].upper()])
