"""Books for the benchmarks: JSON lines compressed with zstd, each with id, author, title and text."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import zstandard

from ttt_docs import Memory, TTTReader
from ttt_docs.text.segments import segments


def books(path: Path) -> Iterator[dict[str, str]]:
    with path.open("rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw) as stream:
        for line in io.TextIOWrapper(stream, encoding="utf-8"):
            yield json.loads(line)


def beginning(reader: TTTReader, text: str, tokens: int) -> str:
    """The first segments of `text` that have at least `tokens` tokens."""
    parts, count = [], 0
    for segment in segments([text]):
        parts.append(segment)
        count += len(reader.tokenizer.encode(segment))
        if count >= tokens:
            break
    return "".join(parts)


def read_book(reader: TTTReader, book: dict[str, str], tokens: int | None, cache: Path | None) -> Memory:
    """The memory of a book's first `tokens` tokens (None: of all), kept in the folder `cache`; its text is whole."""
    text = book["text"]
    file = cache / f"{book['id']}-{tokens or 'all'}.ttt" if cache is not None else None
    if file is not None and file.is_file():
        memory = Memory.load(file)
    else:
        part = beginning(reader, text, tokens) if tokens else text
        memory = reader.ingest(text=part, name=book["title"])
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            memory.save(file)
    document = replace(memory.documents[0], end=len(text), complete=not tokens)
    return replace(memory, text=text, documents=(document,))
