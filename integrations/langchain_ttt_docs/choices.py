"""From names to what they stand for: models and memories, loaded once per process at their first use."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from ttt_docs.errors import UsageError, naming_the_values
from ttt_docs.memory.memory import Memory
from ttt_docs.reader import TTTReader, reader_for
from ttt_docs.store.store import MemoryStore, StoredMemory

#: How many a process keeps; a memory of the default model has 132 MB, the model itself 400.
KEPT_READERS, KEPT_MEMORIES, KEPT_STORES = 2, 4, 8
_KEY = re.compile(r"[0-9a-f]{64}-[0-9a-f]{32}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
open_store = lru_cache(maxsize=KEPT_STORES)(MemoryStore)


Choice = TypeVar("Choice", bound="MemoryChoice")


class ModelChoice(BaseModel):
    """Which model, and what it runs on."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field("smollm2-135m", description="registry name, folder, .gguf file or Hugging Face id")
    device: str = "cpu"
    dtype: str | None = Field(None, description="of the products; None: what the hardware is best at")

    @classmethod
    def is_lc_serializable(cls) -> bool:
        return True


class MemoryChoice(ModelChoice):
    """Which memory: a file, or one of a store's. Without either there is none."""

    memory: str | None = Field(None, description="path of a .ttt file")
    store: str | None = Field(None, description="folder or fsspec URL of a MemoryStore")
    document: str | None = Field(
        None, description="which of the store's: a document's name, the sha256 of its text, or an entry's key"
    )


def changed(choice: MemoryChoice, form: type[Choice], given: Mapping[str, Any]) -> Choice:
    """`choice` as a `form`, with what a call gives in place of its own; a memory that is given replaces a store's.

    Raises UsageError for what no call can change, or a value of the wrong type.
    """
    own = {name: getattr(choice, name) for name in form.model_fields}
    if given.get("memory") is not None:
        own |= {"store": None, "document": None}
    elif given.get("document") is not None or given.get("store") is not None:
        own["memory"] = None
    with naming_the_values():
        return form.model_validate(own | {name: value for name, value in given.items() if value is not None})


def open_memory(choice: MemoryChoice) -> Memory | None:
    """The memory that was chosen; None if none was.

    Raises:
        UsageError: a file and a store at once, or a document that the store does not have, or has several times.
        MemoryFormatError: no intact memory.
        StoreError: a store that cannot be used.
    """
    if choice.memory is not None:
        if choice.store is not None or choice.document is not None:
            raise UsageError("give either memory=, a file, or store= and document=, not both")
        path = os.path.abspath(choice.memory)
        stamp = os.stat(path) if os.path.isfile(path) else None  # a file that is read anew is loaded anew
        return _file(path, stamp and (stamp.st_mtime_ns, stamp.st_size, stamp.st_ino))
    if choice.store is None and choice.document is None:
        return None
    if choice.store is None or choice.document is None:
        raise UsageError("store= and document= go together: which memories, and which of them")
    return _stored(choice.store, _key(choice))


def open_reader(choice: ModelChoice, memory: Memory | None = None, **reading: Any) -> TTTReader:
    """The model that was chosen; for a memory, with as many suffix blocks and sinks as that was read with.

    Raises CheckpointError, UsageError as `TTTReader.from_pretrained`; MemoryMismatchError for another model's memory.
    """

    def opened(**settings: Any) -> TTTReader:
        given = tuple(sorted((k, v) for k, v in settings.items() if v is not None or k == "adapter"))
        return _reader(choice.model, choice.device, choice.dtype, given)

    return opened(**reading) if memory is None else reader_for(memory, opened)


def _key(choice: MemoryChoice) -> str:
    """The key of the store's entry for the document. Of several models' memories that of the one chosen is taken."""
    assert choice.store is not None and choice.document is not None
    if _KEY.fullmatch(choice.document):
        return choice.document
    store, named = open_store(choice.store), choice.document
    found: list[StoredMemory] = store.find(document=named) if _SHA256.fullmatch(named) else store.find(name=named)
    if not found:
        raise UsageError(
            f"the store {choice.store} has no memory of {choice.document!r}: `ttt-docs store list` shows all"
        )
    if len(found) > 1:
        own = [entry for entry in found if entry.fingerprint == open_reader(choice).fingerprint]
        if len(own) != 1:
            keys = ", ".join(entry.key for entry in own or found)
            raise UsageError(
                f"the store {choice.store} has several memories of {choice.document!r}: give one key of {keys}"
            )
        found = own
    return found[0].key


@lru_cache(maxsize=KEPT_READERS)
def _reader(model: str, device: str, dtype: str | None, reading: tuple[tuple[str, Any], ...]) -> TTTReader:
    return TTTReader.from_pretrained(model, device=device, dtype=dtype, **dict(reading))


@lru_cache(maxsize=KEPT_MEMORIES)
def _file(path: str, stamp: tuple[int, ...] | None) -> Memory:
    return Memory.load(path)


@lru_cache(maxsize=KEPT_MEMORIES)
def _stored(location: str, key: str) -> Memory:
    memory = open_store(location).get(key)
    if memory is None:
        raise UsageError(f"the store {location} has no memory {key}: `ttt-docs store list` shows all")
    return memory
