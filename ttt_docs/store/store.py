"""A store of memories: one object for each, in a folder or at any fsspec URL, found by what was read and how.

An entry's key is made of the hash of the documents, the model's fingerprint and the reading parameters, so what was
read once in one way is never read again. There is no index that could go stale: a listing reads the entries' headers,
and remembers them only as long as the objects do not change.

    <document hash>-<model and reading>.ttt    a memory
    <document hash>-<model and reading>.part   what an unfinished reading has so far
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ttt_docs.errors import MemoryFormatError, UsageError
from ttt_docs.io import readable_bytes
from ttt_docs.memory.format import RawHeader, explained, read_header
from ttt_docs.memory.header import ReadDocument, Refusal
from ttt_docs.memory.memory import Memory, read_memory, write_memory
from ttt_docs.model.config import ReadingConfig
from ttt_docs.store.objects import TEMPORARY, Stamp, objects_at

logger = logging.getLogger(__name__)

_KEY = re.compile(r"[0-9a-f]{64}-[0-9a-f]{32}")
_WHOLE, _PART = ".ttt", ".part"
#: Objects that are a store's own. The command line of 0.1.0 kept its memories under names of 32 digits.
_OWN = re.compile(r"(?:[0-9a-f]{64}-)?[0-9a-f]{32}\.(?:ttt|part)")
#: Fetched to read a header: enough for the table of some 300 tensors and the spans of a thousand pages.
_HEADER_BYTES = 1 << 18
#: `gc` removes temporary and unfinished objects that nothing was added to for this many seconds.
STALE = 24 * 3600.0


@dataclass(frozen=True)
class StoredDocument:
    """One document of a stored memory."""

    name: str
    sha256: str | None
    metadata: dict[str, str]


@dataclass(frozen=True)
class StoredMemory:
    """What the header of a stored memory says."""

    key: str
    documents: tuple[StoredDocument, ...]
    model: str
    fingerprint: str
    reading: ReadingConfig
    tokens: int
    nbytes: int
    created: datetime
    extra: dict[str, str]
    compact: bool


# Named here, since inside the class `list` is the method.
StoredMemories = list[StoredMemory]
Names = list[str]


def memory_key(documents: Sequence[str], fingerprint: str, reading: ReadingConfig, compact: bool = False) -> str:
    """The key of the memory of `documents` (sha256 of each text, in reading order) read with that model that way.

    A compact memory has another key than the exact one. (Release 0.1.0 gave both the same.)
    """
    if not documents:
        raise UsageError("a memory without documents has no key: read a document first")
    what = documents[0] if len(documents) == 1 else hashlib.sha256("\n".join(documents).encode()).hexdigest()
    how = json.dumps([fingerprint, reading.identity(), *(["compact"] if compact else [])], sort_keys=True)
    return f"{what}-{hashlib.sha256(how.encode()).hexdigest()[:32]}"


def hashes_of(documents: Sequence[ReadDocument]) -> list[str]:
    """The hashes of documents that were read.

    Raises UsageError for one that was read in part, or whose hash is unknown: what holds it has no key.
    """
    hashes = [one.sha256 for one in documents if one.complete and one.sha256 is not None]
    if len(hashes) < len(documents):
        raise UsageError(
            "a store takes memories of whole documents only: this one holds a document that was read in part, or "
            "whose text is unknown"
        )
    return hashes


def key_of(memory: Memory) -> str:
    """The key of a memory. Raises UsageError for one that has none."""
    if memory.unread:
        raise UsageError(
            "a store keeps what was read, and nothing of this memory was: ingest its documents with learn=True"
        )
    return memory_key(hashes_of(memory.documents), memory.fingerprint, memory.reading, memory.change is not None)


class MemoryStore:
    """Memories in a folder, or at a URL such as "s3://bucket/memories"; `options` go to that fsspec filesystem.

    Several processes may use one store at once: an entry appears, is replaced and disappears whole. `progress_every`
    is how many chunks `TTTReader.ingest` reads between two savings of what it has so far. Where a new memory makes the
    store larger than `max_bytes`, the oldest memories are removed.

    Every method raises StoreError when the place cannot be reached or used.
    """

    def __init__(
        self,
        location: str | os.PathLike[str],
        *,
        progress_every: int = 16,
        max_bytes: int | None = None,
        **options: Any,
    ) -> None:
        if progress_every < 1:
            raise UsageError(f"progress_every={progress_every}: it is a number of chunks, at least 1")
        self.location = os.fspath(location)
        self.progress_every, self.max_bytes = progress_every, max_bytes
        self._objects = objects_at(location, options)
        self._headers: dict[str, tuple[Stamp, StoredMemory]] = {}

    def __repr__(self) -> str:
        return f"MemoryStore({self.location!r})"

    def get(self, key: str) -> Memory | None:
        """The memory of that key, None if there is none.

        Raises MemoryFormatError when the entry is damaged.
        """
        return self._get(key, _WHOLE)

    def put(self, memory: Memory) -> str:
        """Stores a memory under its key, in place of the one that is there, and returns the key.

        Raises UsageError for a memory that has no key, MemoryFormatError for one that is not sound.
        """
        key = key_of(memory)
        self._put(key, _WHOLE, memory)
        if self.max_bytes is not None and (gone := self.prune(max_bytes=self.max_bytes, keep=key)):
            limit = readable_bytes(self.max_bytes)
            logger.info("%s may take %s: %d of the oldest memories were removed.", self.location, limit, len(gone))
        return key

    def delete(self, key: str) -> bool:
        """Removes an entry; False if there was none."""
        return self._objects.remove(_checked(key) + _WHOLE)

    def __contains__(self, key: str) -> bool:
        return self._objects.has(_checked(key) + _WHOLE)

    def keys(self) -> Names:
        """All keys, without a look at the entries."""
        return sorted(self._stamps(_WHOLE))

    def list(self) -> StoredMemories:
        """What is stored, by document name. Damaged entries are left out; `verify` names them."""
        return sorted(
            (entry for entry in self._entries().values() if isinstance(entry, StoredMemory)),
            key=lambda entry: ([document.name for document in entry.documents], entry.key),
        )

    def find(
        self,
        *,
        document: str | None = None,
        name: str | None = None,
        metadata: Mapping[str, str] | None = None,
        fingerprint: str | None = None,
    ) -> StoredMemories:
        """The entries to which everything given applies.

        `document` is the sha256 of a document's text, or at least 8 digits it begins with; `name` a document's name;
        `metadata` what must be in a document's metadata or in the memory's `extra`; `fingerprint` a model's.
        """
        if document is not None and not re.fullmatch("[0-9a-f]{8,64}", document):
            raise UsageError(f"document={document!r}: give the sha256 of a text, at least its first 8 digits")

        def fits(entry: StoredMemory) -> bool:
            hashes = [one.sha256 or "" for one in entry.documents]
            notes = [entry.extra, *(one.metadata for one in entry.documents)]
            return (
                (document is None or any(sha256.startswith(document) for sha256 in hashes))
                and (name is None or any(one.name == name for one in entry.documents))
                and (fingerprint is None or entry.fingerprint == fingerprint)
                and all(any(note.get(k) == v for note in notes) for k, v in (metadata or {}).items())
            )

        return [entry for entry in self.list() if fits(entry)]

    def verify(self) -> Iterator[tuple[str, str | None]]:
        """Reads every entry whole: its key, and what is wrong with it (None: it is intact)."""
        for key in self.keys():
            try:
                memory = self.get(key)
                wrong = None
                if memory is not None and key_of(memory) != key:
                    wrong = f"it holds another memory, whose key is {key_of(memory)}"
            except (MemoryFormatError, UsageError) as error:
                wrong = str(error)
            yield key, wrong

    def gc(self, older_than: float = STALE, *, dry_run: bool = False) -> Names:
        """Removes what killed processes left: temporary files, and parts of readings that are complete or that nothing
        was added to for `older_than` seconds. Returns the names of what was (or with `dry_run` would be) removed.
        """
        stamps = self._objects.stamps()
        before = time.time() - older_than
        left = [
            name
            for name, stamp in sorted(stamps.items())
            if (name.endswith(_PART) and name.removesuffix(_PART) + _WHOLE in stamps)
            or (name.endswith((_PART, TEMPORARY)) and stamp.modified < before)
        ]
        return left if dry_run else [name for name in left if self._objects.remove(name)]

    def prune(
        self,
        *,
        max_bytes: int | None = None,
        older_than: float | None = None,
        keep: str | None = None,
        dry_run: bool = False,
    ) -> Names:
        """Removes the memories, finished or not, that were written more than `older_than` seconds ago, then the oldest
        until the rest takes at most `max_bytes`. The entry of the key `keep` stays.

        Returns the names of what was (or with `dry_run` would be) removed, the oldest first.
        """
        own = [item for item in self._objects.stamps().items() if _OWN.fullmatch(item[0])]
        left, now, gone = sum(stamp.nbytes for _, stamp in own), time.time(), []
        for name, stamp in sorted(own, key=lambda item: item[1].modified):
            old = older_than is not None and stamp.modified and stamp.modified < now - older_than
            if (old or (max_bytes is not None and left > max_bytes)) and name != f"{keep}{_WHOLE}":
                left -= stamp.nbytes
                if dry_run or self._objects.remove(name):
                    gone.append(name)
        return gone

    def part(self, key: str) -> Memory | None:
        """What an unfinished reading has so far; None if there is nothing, or nothing that can be used."""
        try:
            return self._get(key, _PART)
        except MemoryFormatError:
            return None

    def put_part(self, key: str, memory: Memory) -> None:
        self._put(key, _PART, memory)

    def delete_part(self, key: str) -> bool:
        return self._objects.remove(_checked(key) + _PART)

    def parts(self) -> dict[str, int]:
        """Unfinished readings: their keys and bytes."""
        return {key: stamp.nbytes for key, stamp in self._stamps(_PART).items()}

    def _get(self, key: str, suffix: str) -> Memory | None:
        try:
            with self._objects.open(_checked(key) + suffix) as file:
                return read_memory(file, self._shown(key + suffix))
        except FileNotFoundError:
            return None

    def _put(self, key: str, suffix: str, memory: Memory) -> None:
        name = _checked(key) + suffix
        write_memory(memory, self._shown(name), lambda: self._objects.create(name))

    def _shown(self, name: str) -> str:
        return f"{self.location.rstrip('/')}/{name}"

    def _stamps(self, suffix: str) -> dict[str, Stamp]:
        found = {name.removesuffix(suffix): s for name, s in self._objects.stamps().items() if name.endswith(suffix)}
        return {key: stamp for key, stamp in found.items() if _KEY.fullmatch(key)}

    def _entries(self) -> dict[str, StoredMemory | MemoryFormatError | None]:
        """All entries by key: the error of those that are damaged, None for those removed meanwhile."""
        stamps = self._stamps(_WHOLE)
        with ThreadPoolExecutor(16) as pool:
            return dict(zip(stamps, pool.map(self._entry, stamps, stamps.values()), strict=True))

    def _entry(self, key: str, stamp: Stamp) -> StoredMemory | MemoryFormatError | None:
        held, entry = self._headers.get(key, (None, None))
        if entry is not None and held == stamp and stamp.version is not None:
            return entry
        try:
            entry = _stored(key, self._header(key + _WHOLE, stamp.nbytes))
        except MemoryFormatError as error:
            return error
        except FileNotFoundError:
            return None
        self._headers[key] = stamp, entry
        return entry

    def _header(self, name: str, nbytes: int) -> RawHeader:
        with self._objects.open(name, _HEADER_BYTES) as file, suppress(Refusal):
            return read_header(file, nbytes)
        # Damaged, of a longer header, or replaced since it was listed: one look at the whole object tells.
        with self._objects.open(name) as file, explained(self._shown(name)):
            return read_header(file)


def _stored(key: str, raw: RawHeader) -> StoredMemory:
    header = raw.header
    return StoredMemory(
        key=key,
        documents=tuple(StoredDocument(one.name, one.sha256, one.metadata) for one in header.documents),
        model=header.model,
        fingerprint=header.fingerprint,
        reading=header.reading,
        tokens=raw.tokens,
        nbytes=raw.header_bytes + raw.data_bytes,
        created=header.created,
        extra=header.extra,
        compact=header.packed is not None,
    )


def _checked(key: str) -> str:
    """`key`, if it is one: it becomes part of a path."""
    if not _KEY.fullmatch(key):
        raise UsageError(f"{key!r} is no key of a store: `list` and `find` give them")
    return key
