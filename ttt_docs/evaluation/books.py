"""Documents for evaluations: text files in any format, or JSON lines with one document a line."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from ttt_docs.documents import load_document
from ttt_docs.documents.json_lines import json_lines
from ttt_docs.errors import DocumentError


class Text(NamedTuple):
    """One document of a collection."""

    id: str
    title: str
    text: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


def read_collection(files: Iterable[str | Path]) -> Iterator[Text]:
    """The documents of `files` in order: each line of a JSONL(.zst) file, anything else as `ingest` reads it.

    A line is an object with `text`, and `id` and `title` where it has them.

    Raises DocumentError, which names file and line, for what is missing, broken or without text; UsageError without
    the package for zstd.
    """
    for file in map(Path, files):
        if not {".jsonl", ".json"} & set(file.suffixes):
            document = load_document(file)
            yield Text(file.stem, document.name, document.text)
            continue
        for number, row in json_lines(file):
            text = row.get("text") if isinstance(row, dict) else None
            if not isinstance(text, str) or not text.strip():
                raise DocumentError(f"{file}, line {number}: expected an object with `text` that is not empty")
            identity = str(row.get("id", f"{file.name.split('.')[0]}-{number}"))
            yield Text(identity, str(row.get("title", identity)), text)
