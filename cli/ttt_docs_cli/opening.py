"""From what the user names to a reader and a memory. torch and the library's heavy parts are imported on use."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
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
from ttt_docs_cli.output import note, progress, warn

if TYPE_CHECKING:
    from ttt_docs import Memory, MemoryStore, TTTReader

#: What the memories of documents may take in the cache folder, unless TTT_DOCS_MEMORIES_SIZE says otherwise.
_KEPT_BYTES = "10GB"
SIZES = {unit + end: 1000**power for power, unit in enumerate(("", "k", "m", "g", "t")) for end in ("", "b")}


def is_memory_file(source: str) -> bool:
    """By its name, or by its first bytes: the length of a header, then JSON. No text begins like that."""
    if source.lower().endswith(".ttt"):
        return True
    with suppress(OSError, ValueError):
        if os.path.isfile(source):
            with open(source, "rb") as file:
                return file.read(9)[4:] == b"\0\0\0\0{"
    return False


def open_reader(model: str = DEFAULT_MODEL, **settings: Any) -> TTTReader:
    from ttt_docs import TTTReader

    return TTTReader.from_pretrained(model, **settings)


def open_memory(path: str, **opening: Any) -> tuple[TTTReader, Memory]:
    """The reader that belongs to the memory in a file, and the memory."""
    from ttt_docs import Memory

    memory = Memory.load(path)
    return reader_of(path, memory, **opening), memory


def reader_of(path: str, memory: Memory, model: str | None = None, **opening: Any) -> TTTReader:
    """The reader that belongs to the memory in the file `path`.

    A file may come from a stranger. Of the model it names only a registry name is used, never a path or address.
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
            return reader_for(memory, partial(open_reader, name, **opening))
    return reader_for(memory, partial(open_reader, last, **opening))


def how_far(memory: Memory, documents: Sequence[Document]) -> str:
    """For people: where reading stopped."""
    last = memory.documents[-1]
    length = next((len(document) for document in documents if document.sha256 == last.sha256), 0)
    share = f"{100 * (last.end - last.start) // length}% of " if length and not last.complete else ""
    return f"after {len(memory.tokens):,} tokens ({share}{last.name})"


def remembered(
    source: str, *, learn: bool = True, password: str | None = None, no_cache: bool = False, **opening: Any
) -> tuple[TTTReader, Memory]:
    """The memory in a memory file; or that of a document, read now unless the cache folder's store holds it.

    With `learn=False` the document's text is enough: without a memory in the store nothing is read.
    """
    if is_memory_file(source):
        return open_memory(source, **opening)
    from ttt_docs.documents import load_document
    from ttt_docs.store.store import memory_key

    document = load_document(source, password=password)
    reader = open_reader(**opening)
    key = memory_key([document.sha256], reader.fingerprint, reader.reading)
    store = None if no_cache else kept_memories()
    memory, begun = None, False
    try:
        if store is not None:
            with suppress(MemoryFormatError):  # a damaged one is read anew, and `ingest` says so
                memory = store.get(key)
            if memory is not None and any(keys.dtype != reader.model.dtype for keys, _ in memory.window.values()):
                store.delete(key)  # its products were of another number format
                memory = None
            begun = key in store.parts()
    except StoreError as error:
        warn(f"Warning: the memory will not be kept, {error}")
        store = None
    if memory is not None:
        note(f"{document.name} was read before: its memory is in {memories_folder()}")
        return reader, memory
    if not learn:
        return reader, reader.ingest(document, learn=False)
    where = f"; its memory is kept in {memories_folder()}" if store is not None else ""
    note(f"{'Going on with' if begun else 'Reading'} {document.name}{where}")
    try:
        return reader, reader.ingest(document, store=store, progress=progress())
    except ReadingInterrupted as interruption:
        kept = ", nothing was kept" if store is None else ", the same command goes on from there"
        raise KeyboardInterrupt(f"{how_far(interruption.memory, [document])}{kept}") from None


def texts_of(
    sources: Sequence[str], *, password: str | None = None, no_cache: bool = False, **opening: Any
) -> tuple[TTTReader, list[Memory]]:
    """The memories of several sources, for looking up: of documents the text alone, of folders all documents in them,
    of a store's folder all memories in it."""
    from ttt_docs import Memory

    reader: TTTReader | None = None
    memories: list[Memory] = []
    for source in sources:
        for one in _held(source, password):
            if isinstance(one, Memory):
                reader = reader or reader_of(source, one, **opening)
                memories.append(one)
            else:
                reader = reader or open_reader(**opening)
                memories.append(reader.ingest(one, learn=False))
    assert reader is not None
    return reader, memories


def _held(source: str, password: str | None) -> list[Memory | Document]:
    from ttt_docs import Memory, MemoryStore
    from ttt_docs.corpus.ingestion import corpus_sources
    from ttt_docs.documents import load_document

    if os.path.isdir(source):
        store = MemoryStore(source)
        memories = [store.get(key) for key in store.keys()]  # noqa: SIM118 (no dict)
        if memories:
            return [memory for memory in memories if memory is not None]
    names = corpus_sources(source) if os.path.isdir(source) else [source]
    return [Memory.load(n) if is_memory_file(n) else load_document(n, password=password) for n in names]


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
                warn(f"Warning: the memory is not kept, {error}")

    text = os.environ.get("TTT_DOCS_MEMORIES_SIZE") or _KEPT_BYTES
    limit = amount_of(text, SIZES, "size: write 5GB, 500MB, or a number of bytes")
    return KeptMemories(memories_folder(), max_bytes=int(limit))


def amount_of(text: str, units: Mapping[str, float], what: str) -> float:
    """5GB, 500 mb or 30d as a number, by a table of units. Raises UsageError."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in units:
        raise UsageError(f"{text!r} is no {what}")
    return float(match[1]) * units[match[2]]
