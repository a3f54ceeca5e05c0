"""Collections of documents for evaluations: text files in any format, or JSON lines with one document a line."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from ttt_docs.documents import load_document
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

    Raises DocumentError, which names file and line, for what is missing, broken or without text.
    """
    for file in map(Path, files):
        if not {".jsonl", ".json"} & set(file.suffixes):
            document = load_document(file)
            yield Text(file.stem, document.name, document.text)
            continue
        try:
            with file.open("rb") as raw:
                for number, line in enumerate(_lines(file, raw), 1):
                    if line.strip():
                        yield _parsed(file, number, line)
        except OSError as error:
            raise DocumentError(f"{file}: {error.strerror}. Give a file that can be read.") from error


def _lines(file: Path, raw: IO[bytes]) -> Iterator[str]:
    if file.suffix != ".zst":
        yield from io.TextIOWrapper(raw, encoding="utf-8")
        return
    try:
        import zstandard
    except ImportError:
        raise DocumentError(f"{file}: zstd needs a package: pip install zstandard") from None
    try:
        with zstandard.ZstdDecompressor().stream_reader(raw) as stream:
            yield from io.TextIOWrapper(stream, encoding="utf-8")
    except zstandard.ZstdError as error:
        raise DocumentError(f"{file}: not a whole zstd file ({error})") from error


def _parsed(file: Path, number: int, line: str) -> Text:
    try:
        row = json.loads(line)
        text = row["text"]
        if not isinstance(text, str) or not text.strip():
            raise ValueError("its text is empty")
    except (ValueError, KeyError, TypeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else error
        raise DocumentError(f"{file}, line {number}: expected an object with `text`: {what}") from error
    identity = str(row.get("id", f"{file.name.split('.')[0]}-{number}"))
    return Text(identity, str(row.get("title", identity)), text)
