"""What the crash test's processes run: a tiny reader, made once where they are forked from, reading into a store."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from tiny_model import byte_tokenizer, tiny_decoder

from ttt_docs import Memory, MemoryStore, TTTReader
from ttt_docs.model.config import ReadingConfig

TEXT = "\n".join(f"{day}. The ship lay still; the captain counted {day * 37 % 101} waves." for day in range(1, 11))
READING = ReadingConfig(chunk=16, window=48, sinks=4, inner_rule="normalized", inner_lr=0.1)

with tempfile.TemporaryDirectory() as folder:
    READER = TTTReader(tiny_decoder(), byte_tokenizer(Path(folder)), READING, name="tiny", fingerprint="ab" * 32)


def read(store: str | None, started: Any = None) -> Memory:
    """Reads TEXT, with what there is so far kept after every piece of chunks; `started` hears of the first chunk."""
    place = None if store is None else MemoryStore(store, progress_every=1)
    return READER.ingest(text=TEXT, name="ship", store=place, on_chunk=started and (lambda report: started.set()))
