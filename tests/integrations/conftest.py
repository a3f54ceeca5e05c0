"""A small book about a captain, read by a tiny model: in a file, and in a store."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
from tiny_checkpoint import TEXT, write_model

from ttt_docs import Document, Memory, MemoryStore, TTTReader
from ttt_docs.documents import Span

LOG = "".join(TEXT.splitlines(keepends=True)[:24])


class Library(NamedTuple):
    """Where things are: the model's folder, a memory's file, a store with two books, and a book to read."""

    model: str
    memory: str
    store: str
    book: Path


@pytest.fixture(scope="session")
def library(tmp_path_factory) -> Library:
    folder = tmp_path_factory.mktemp("library")
    model = write_model(folder / "tiny", seed=0)
    book = folder / "log.txt"
    book.write_text(LOG, "utf-8")
    reader = TTTReader.from_pretrained(model, dtype="float32", window=2048, chunk=512)
    middle = LOG.index("12. The ship")
    spans = [Span("page", "1", 0, middle), Span("page", "2", middle, len(LOG))]
    store = MemoryStore(folder / "memories")
    log = reader.ingest(Document.from_text(LOG, name="log.txt", spans=spans), store=store, progress=False)
    reader.ingest(
        text="The farm lies on a hill. Nobody ever saw the sea from there. " * 4, name="farm.txt", store=store
    )
    return Library(str(model), str(log.save(folder / "log.ttt")), store.location, book)


@pytest.fixture(scope="session")
def reader(library) -> TTTReader:
    return TTTReader.from_pretrained(library.model, dtype="float32")


@pytest.fixture(scope="session")
def memory(library) -> Memory:
    return Memory.load(library.memory)


@pytest.fixture
def settings(library) -> dict:
    """What every object is made with here: answers of a few tokens, and the memory."""
    return {"model": library.model, "dtype": "float32", "memory": library.memory, "max_tokens": 24}


@pytest.fixture(scope="session")
def other_model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("other") / "tiny", seed=1)
