"""Where training documents come from: files of several kinds, folders of them, Hugging Face datasets."""

from __future__ import annotations

import glob
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttt_docs.errors import DocumentError, UsageError

_KINDS = (".jsonl", ".jsonl.zst", ".txt", ".md", ".parquet")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class DataSource:
    """One file, or one split of a Hugging Face dataset (`path` None)."""

    name: str
    path: Path | None
    field: str = "text"
    subset: str | None = None
    split: str = "train"

    def identity(self) -> list[Any]:
        """Changes when the documents may have changed: name, size and time of a file, or the dataset's coordinates."""
        if self.path is None:
            return [self.name, self.subset, self.split, self.field]
        status = self.path.stat()
        return [self.name, status.st_size, status.st_mtime_ns, self.field]


def find_sources(
    named: tuple[str, ...], field: str = "text", subset: str | None = None, split: str = "train"
) -> list[DataSource]:
    """The files and datasets that `named` stands for, in order.

    Raises:
        UsageError: a name that is no file, folder, pattern with a match, or Hugging Face id.
    """
    found: list[DataSource] = []
    for name in named:
        path = Path(name).expanduser()
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file() and _kind(file))
        elif path.is_file():
            files = [path]
        else:
            files = sorted(Path(match) for match in glob.glob(str(path)))
        if files:
            if strange := [file for file in files if not _kind(file)]:
                raise UsageError(f"{strange[0]} is none of the kinds known as training data: {', '.join(_KINDS)}")
            found += [DataSource(file.name, file, field) for file in files]
        elif _HUB_ID.fullmatch(name) and not path.exists():
            found.append(DataSource(name, None, field, subset, split))
        else:
            raise UsageError(
                f"no training data at {name}: give files ({', '.join(_KINDS)}), a folder, a pattern such as "
                "'books/*.jsonl.zst', or the id of a Hugging Face dataset"
            )
    return found


def documents(source: DataSource) -> Iterator[str]:
    """The texts of one source, in its order.

    Raises:
        DocumentError: a file that is damaged or not of its kind, a document without the field.
        UsageError: a package that reads this kind is not installed.
    """
    try:
        if source.path is None:
            yield from _hub(source)
        else:
            yield from _READERS[_kind(source.path) or ".txt"](source)
    except (OSError, UnicodeDecodeError) as error:
        raise DocumentError(f"{source.name} cannot be read: {error}") from error


def _kind(path: Path) -> str | None:
    return next((kind for kind in sorted(_KINDS, key=len, reverse=True) if path.name.lower().endswith(kind)), None)


def _text_file(source: DataSource) -> Iterator[str]:
    assert source.path is not None
    yield source.path.read_text("utf-8")


def _json_lines(source: DataSource) -> Iterator[str]:
    assert source.path is not None
    with source.path.open("rb") as file:
        yield from _texts(file, source)


def _compressed_lines(source: DataSource) -> Iterator[str]:
    zstandard = _package("zstandard")
    assert source.path is not None
    try:
        with (
            source.path.open("rb") as raw,
            zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True) as stream,
            io.BufferedReader(stream) as file,
        ):
            yield from _texts(file, source)
    except zstandard.ZstdError as error:
        raise DocumentError(f"{source.name} is not intact zstd: {error}") from error


def _texts(lines: Any, source: DataSource) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield _text(json.loads(line), source, f"line {number}")
        except ValueError as error:
            raise DocumentError(f"{source.name}, line {number} is not JSON: {error}") from error


def _parquet(source: DataSource) -> Iterator[str]:
    pyarrow, parquet = _package("pyarrow"), _package("pyarrow.parquet")
    try:
        with parquet.ParquetFile(source.path) as file:
            if source.field not in file.schema_arrow.names:
                raise _no_field(source, "it", file.schema_arrow.names)
            row = 0
            for batch in file.iter_batches(batch_size=64, columns=[source.field]):
                for text in batch.column(0).to_pylist():
                    row += 1
                    yield _text({source.field: text}, source, f"row {row}")
    except pyarrow.ArrowInvalid as error:
        raise DocumentError(f"{source.name} is not an intact Parquet file: {error}") from error


def _hub(source: DataSource) -> Iterator[str]:
    datasets = _package("datasets")
    try:
        rows = datasets.load_dataset(source.name, source.subset, split=source.split, streaming=True)
        for number, row in enumerate(rows, 1):
            yield _text(row, source, f"document {number}")
    except (DocumentError, KeyboardInterrupt):
        raise
    except Exception as error:  # the hub's libraries raise what they like
        raise DocumentError(f"the dataset {source.name} cannot be read: {error}") from error


def _text(row: Any, source: DataSource, where: str) -> str:
    text = row.get(source.field) if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise _no_field(source, where, list(row) if isinstance(row, dict) else [])
    return text


def _no_field(source: DataSource, where: str, there: list[str]) -> DocumentError:
    return DocumentError(
        f"{source.name}: {where} has no text under {source.field!r} "
        f"(there are: {', '.join(map(str, there)) or 'none'}); set data.field"
    )


def _package(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError:
        wanted = name.partition(".")[0]
        raise UsageError(
            f'this data needs {wanted}: pip install {wanted}, or "ttt-docs[train]" with all of them'
        ) from None


_READERS = {
    ".txt": _text_file,
    ".md": _text_file,
    ".jsonl": _json_lines,
    ".jsonl.zst": _compressed_lines,
    ".parquet": _parquet,
}
