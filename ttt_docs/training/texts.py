"""Where the texts of training come from: files of several kinds, folders of them, Hugging Face datasets."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from ttt_docs.documents.json_lines import json_lines
from ttt_docs.errors import DocumentError, UsageError

_KINDS = (".jsonl", ".jsonl.zst", ".txt", ".md", ".parquet")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class TextSource:
    """One file, or one split of a Hugging Face dataset (`path` None)."""

    name: str
    path: Path | None
    field: str = "text"
    subset: str | None = None
    split: str = "train"

    def identity(self) -> list[Any]:
        """Changes when the texts may have changed: name, size and time of a file, or the dataset's coordinates."""
        if self.path is None:
            return [self.name, self.subset, self.split, self.field]
        status = self.path.stat()
        return [self.name, status.st_size, status.st_mtime_ns, self.field]


def find_texts(
    named: tuple[str, ...], field: str = "text", subset: str | None = None, split: str = "train"
) -> list[TextSource]:
    """The files and datasets that `named` stands for, in order.

    Raises:
        UsageError: a name that is no file, folder, pattern with a match, or Hugging Face id.
    """
    found: list[TextSource] = []
    for name in named:
        path = Path(name).expanduser()
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file() and file.name.lower().endswith(_KINDS))
        elif path.is_file():
            files = [path]
        else:
            files = sorted(Path(match) for match in glob.glob(str(path)))
        if files:
            if strange := [file for file in files if not file.name.lower().endswith(_KINDS)]:
                raise UsageError(f"{strange[0]} is none of the kinds known as training data: {', '.join(_KINDS)}")
            found += [TextSource(file.name, file, field) for file in files]
        elif _HUB_ID.fullmatch(name) and not path.exists():
            found.append(TextSource(name, None, field, subset, split))
        else:
            raise UsageError(
                f"no training data at {name}: give files ({', '.join(_KINDS)}), a folder, a pattern such as "
                "'books/*.jsonl.zst', or the id of a Hugging Face dataset"
            )
    return found


def texts_of(source: TextSource) -> Iterator[str]:
    """The texts of one source, in its order.

    Raises:
        DocumentError: a file that is damaged or not of its kind, a document without the field.
        UsageError: a package that reads this kind is not installed.
    """
    try:
        if source.path is None:
            yield from _dataset(source)
        elif source.path.name.lower().endswith((".txt", ".md")):
            yield source.path.read_text("utf-8")
        elif source.path.name.lower().endswith(".parquet"):
            yield from _parquet(source, source.path)
        else:
            for number, row in json_lines(source.path):
                yield _text(row, source, f"line {number}")
    except (OSError, UnicodeDecodeError) as error:
        raise DocumentError(f"{source.name} cannot be read: {error}") from error


def _parquet(source: TextSource, path: Path) -> Iterator[str]:
    pyarrow, parquet = _package("pyarrow"), _package("pyarrow.parquet")
    try:
        with parquet.ParquetFile(path) as file:
            if source.field not in file.schema_arrow.names:
                raise _no_field(source, "it", file.schema_arrow.names)
            batches = file.iter_batches(batch_size=64, columns=[source.field])
            texts = (text for batch in batches for text in batch.column(0).to_pylist())
            for row, text in enumerate(texts, 1):
                yield _text({source.field: text}, source, f"row {row}")
    except pyarrow.ArrowInvalid as error:
        raise DocumentError(f"{source.name} is not an intact Parquet file: {error}") from error


def _dataset(source: TextSource) -> Iterator[str]:
    datasets = _package("datasets")
    try:
        rows = datasets.load_dataset(source.name, source.subset, split=source.split, streaming=True)
        for number, row in enumerate(rows, 1):
            yield _text(row, source, f"document {number}")
    except DocumentError:
        raise
    except Exception as error:  # the hub's libraries raise what they like
        raise DocumentError(f"the dataset {source.name} cannot be read: {error}") from error


def _text(row: Any, source: TextSource, where: str) -> str:
    text = row.get(source.field) if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise _no_field(source, where, list(row) if isinstance(row, dict) else [])
    return text


def _no_field(source: TextSource, where: str, there: list[str]) -> DocumentError:
    return DocumentError(
        f"{source.name}: {where} has no text under {source.field!r} "
        f"(there are: {', '.join(map(str, there)) or 'none'}); set data.field"
    )


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        wanted = name.partition(".")[0]
        raise UsageError(
            f'this data needs {wanted}: pip install {wanted}, or "ttt-docs[train]" with all of them'
        ) from None
