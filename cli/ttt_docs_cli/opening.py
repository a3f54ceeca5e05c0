"""From what the user names to a reader and a memory. torch and the library's heavy parts are imported on use."""

from __future__ import annotations

import hashlib
import json
import os
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
    TTTDocsError,
    UsageError,
)
from ttt_docs_cli.options import DEFAULT_MODEL
from ttt_docs_cli.output import note

if TYPE_CHECKING:
    from ttt_docs import Memory, TTTReader

_MAX_HEADER_BYTES = 16 * 1024 * 1024


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
    """A reader, after a look at `device`, for which torch has only long error messages."""
    import torch

    from ttt_docs import TTTReader

    try:
        where = torch.device(device)
    except RuntimeError:
        raise UsageError(f"there is no device {device!r}: use cpu, cuda, or cuda:0") from None
    if where.type == "cuda" and (where.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"torch {torch.__version__} finds no device {device}: use cpu, or see `ttt-docs env`")
    return TTTReader.from_pretrained(model or DEFAULT_MODEL, device=where, dtype=dtype, **reading)


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
    try:
        return reader_for(memory, partial(open_reader, last, device, dtype))
    except UsageError as error:
        if "suffix" not in str(error):
            raise
        raise MemoryMismatchError(f"{path} was read with another model ({memory.model}) than {last}") from error


def read_documents(
    reader: TTTReader,
    documents: Sequence[Document],
    memory: Memory | None,
    unfinished: Path | None,
    quiet: bool,
    learn: bool = True,
) -> Memory:
    """Reads the documents one after the other, after `memory`. On Ctrl-C what was read is saved to `unfinished`.

    With `learn=False` only their text is taken.

    It is saved whole (float32, with its text), whatever is asked for the final file: going on from it must give the
    same as reading in one go.

    Raises ReadingInterrupted after saving.
    """
    from ttt_docs.io import Interrupt

    before = memory
    try:
        for document in documents:
            memory = reader.ingest(document, memory=memory, learn=learn, progress=False if quiet else None)
    except KeyboardInterrupt as interruption:
        memory = interruption.memory if isinstance(interruption, ReadingInterrupted) else memory
        if memory is None or memory is before or unfinished is None:
            raise
        with Interrupt():  # a second Ctrl-C by an impatient finger shall not cost what was read
            memory.save(unfinished)
        raise ReadingInterrupted(memory) from None
    assert memory is not None
    return memory


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
    """The memory in a memory file; or that of a document, read now unless the user's cache folder holds it.

    With `learn=False` the document's text is enough: without a memory in the cache nothing is read.
    """
    if is_memory_file(source):
        return open_memory(source, model, device, dtype)
    from ttt_docs.documents import load_document

    document = load_document(source, password=password)
    reader = open_reader(model, device, dtype)
    path = None if no_cache else cached_memory_path(reader, document)
    memory = None if path is None else _cached(path)
    if memory is not None and memory.documents[-1].complete:
        note(f"{document.name} was read before: its memory is {path}", quiet)
        return reader, memory
    if not learn:
        return reader, reader.ingest(document, learn=False)
    where = f"; its memory is kept in {path}" if path else ""
    note(f"{'Reading' if memory is None else 'Going on with'} {document.name}{where}", quiet)
    if path is not None and not _writable(path):
        path = None
    try:
        memory = read_documents(reader, [document], memory, path, quiet)
    except ReadingInterrupted as interruption:
        kept = ", the same command goes on from there" if path else ", nothing was kept"
        raise KeyboardInterrupt(f"{how_far(interruption.memory, [document])}{kept}") from None
    if path is not None:
        try:
            memory.save(path)
        except TTTDocsError as error:  # a full disk: the answer is here all the same
            note(f"Warning: {error}")
    return reader, memory


def memories_folder() -> Path:
    from ttt_docs.io import cache_folder

    return cache_folder() / "memories"


def cached_memory_path(reader: TTTReader, document: Document) -> Path:
    """Another document, model, way of reading or precision of the products is another memory."""
    parts = [document.sha256, reader.fingerprint, reader.reading.model_dump(mode="json"), str(reader.model.dtype)]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return memories_folder() / f"{key[:32]}.ttt"


def _cached(path: Path) -> Memory | None:
    from ttt_docs import Memory

    if not path.exists():
        return None
    try:
        return Memory.load(path)
    except MemoryFormatError as error:
        note(f"Warning: {error} It is read anew.")
        return None


def _writable(path: Path) -> bool:
    from ttt_docs.io import check_writable

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        check_writable(path)
    except (OSError, TTTDocsError) as error:
        note(f"Warning: the memory will not be kept, {error}")
        return False
    return True
