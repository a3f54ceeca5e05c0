"""From documents to training sequences: texts of several kinds, tokenized shards on disk, sequences.

    shard-00000.tokens    the tokens of whole documents, one after the other: little-endian uint16, or uint32 where the
                          vocabulary needs it
    shard-00000.json      written after it: length of each document, documents left out, sha256 of the tokens
    manifest.json         written last: what the shards were made from, totals, one hash over all shards

Shards are built once, by all cores. The order of the sources alone decides which documents a shard holds, so an
interrupted build skips what it finished.
"""

from __future__ import annotations

import glob
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ttt_docs.documents.json_lines import json_lines
from ttt_docs.errors import DocumentError, TTTDocsError, UsageError
from ttt_docs.io import replacing, write_json
from ttt_docs.text.segments import segments
from ttt_docs.text.tokenizer import Tokenizer

_KINDS = (".jsonl", ".jsonl.zst", ".txt", ".md", ".parquet")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
FORMAT_VERSION = 1
#: Characters of text that make a shard: some 8 million tokens of English.
SHARD_CHARACTERS = 32_000_000


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
        for where, row in _rows(source):
            text = row.get(source.field) if isinstance(row, dict) else None
            if not isinstance(text, str):
                there = ", ".join(map(str, row)) if isinstance(row, dict) else ""
                raise DocumentError(
                    f"{source.name}: {where} has no text under {source.field!r} (there are: {there or 'none'}); set "
                    "data.field"
                )
            yield text
    except TTTDocsError:
        raise
    except Exception as error:  # the hub's and Arrow's libraries raise what they like
        raise DocumentError(f"{source.name} cannot be read: {error}") from error


def _rows(source: TextSource) -> Iterator[tuple[str, Any]]:
    """Each document's row, and how a message calls it."""
    if source.path is None:
        rows = _package("datasets").load_dataset(source.name, source.subset, split=source.split, streaming=True)
        yield from ((f"document {number}", row) for number, row in enumerate(rows, 1))
    elif source.path.name.lower().endswith((".txt", ".md")):
        yield "it", {source.field: source.path.read_text("utf-8")}
    elif source.path.name.lower().endswith(".parquet"):
        with _package("pyarrow.parquet").ParquetFile(source.path) as file:
            columns = [source.field] if source.field in file.schema_arrow.names else None  # None: all, for the message
            batches = file.iter_batches(batch_size=64, columns=columns)
            rows = (row for batch in batches for row in batch.to_pylist())
            yield from ((f"row {number}", row) for number, row in enumerate(rows, 1))
    else:
        yield from ((f"line {number}", row) for number, row in json_lines(source.path))


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        wanted = name.partition(".")[0]
        raise UsageError(
            f'this data needs {wanted}: pip install {wanted}, or "ttt-docs[train]" with all of them'
        ) from None


class Sequences:
    """Tokenized documents as training takes them: `length` tokens and the one after them, which is the last target.

    A sequence lies inside one document; the next one begins with the last one's final target. What is left at a
    document's end, shorter than a sequence, is not used.
    """

    def __init__(self, folder: Path) -> None:
        """Opens a finished folder of shards.

        Raises:
            TTTDocsError: a file is missing, damaged or of another size than when it was written.
        """
        #: Of each shard the tokens, memory-mapped, and the number of them in each of its documents.
        self.tokens: list[np.ndarray] = []
        self.lengths: list[np.ndarray] = []
        try:
            manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
            dtype, self.length = np.dtype(manifest["dtype"]), manifest["shortest"] - 1
            self.left_out, self.sha256 = manifest["left_out"], manifest["sha256"]
            for shard in range(manifest["shards"]):
                lengths = json.loads((folder / _name(shard, "json")).read_text("utf-8"))["documents"]
                file = folder / _name(shard, "tokens")
                if file.stat().st_size != sum(lengths) * dtype.itemsize:
                    raise ValueError(f"{file.name} has another size than when it was written")
                self.lengths.append(np.array(lengths, dtype=np.int64))
                empty = not lengths  # an empty file cannot be mapped
                self.tokens.append(np.zeros(0, dtype) if empty else np.memmap(file, dtype=dtype, mode="r"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TTTDocsError(f"the tokenized data in {folder} is damaged ({error}): remove the folder") from error
        rows = [np.zeros((0, 3), dtype=np.int64)]
        for shard, of_documents in enumerate(self.lengths):
            counts = (of_documents - 1) // self.length
            starts = np.cumsum(of_documents) - of_documents
            nth = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            rows.append(np.stack([np.full(len(nth), shard), np.repeat(starts, counts) + nth * self.length, nth], 1))
        #: [sequences, 3]: shard, first token, which sequence of its document
        self._rows = np.concatenate(rows)

    @property
    def documents(self) -> int:
        return sum(map(len, self.lengths))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> np.ndarray:
        """Tokens int64 [length + 1]."""
        shard, start, _ = self._rows[index]
        return self.tokens[shard][start : start + self.length + 1].astype(np.int64)

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Tokens int64 [indices, length + 1]."""
        return np.stack([self[int(index)] for index in indices])

    def batch(self, step: int, size: int, seed: int) -> np.ndarray:
        """Indices of the sequences of a step. Each epoch visits every sequence once, in an order of its own."""
        epochs, offsets = np.divmod(np.arange(step * size, (step + 1) * size), len(self))
        return np.array([_order(len(self), seed, int(e))[i] for e, i in zip(epochs, offsets, strict=True)])

    def spread(self, count: int) -> np.ndarray:
        """Indices of `count` sequences for validation: the first of every document, then the second ones, ..."""
        return np.argsort(self._rows[:, 2], kind="stable")[:count]


@lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(count)


def shards_folder(root: Path, sources: list[TextSource], tokenizer: Path, shortest: int) -> Path:
    """Where the shards of these texts lie: other texts, another tokenizer or length have another folder."""
    token_file = tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer
    parts = [FORMAT_VERSION, shortest, hashlib.sha256(token_file.read_bytes()).hexdigest()]
    key = json.dumps([*parts, *(source.identity() for source in sources)])
    return root / hashlib.sha256(key.encode()).hexdigest()[:24]


def build_shards(
    folder: Path, sources: list[TextSource], tokenizer: Tokenizer, shortest: int, progress: bool = True
) -> Sequences:
    """Tokenizes every document of at least `shortest` tokens, and counts the others. A finished folder is only opened.

    A BOS token stands in front of each document if the tokenizer wants one, as in reading.

    Raises:
        DocumentError: a source that cannot be read, or without one document that is long enough.
        TTTDocsError: a full disk, no permission.
    """
    if (folder / "manifest.json").is_file():
        return Sequences(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TTTDocsError(f"{folder} cannot be made for tokenized data ({error.strerror}): set data.folder") from error
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    heads: list[dict[str, Any]] = []
    texts = (text.encode("utf-8", "replace").decode() for source in sources for text in texts_of(source))
    with tqdm(desc="tokenizing", unit="tok", unit_scale=True, disable=None if progress else True) as bar:
        for group in _groups(texts):
            done = _finished(folder, len(heads))
            heads.append(done or _write_shard(folder, len(heads), group, tokenizer, dtype, shortest))
            bar.update(sum(heads[-1]["documents"]))
    if not any(head["documents"] for head in heads):
        longest = max((head["longest_characters"] for head in heads), default=0)
        raise DocumentError(
            f"no document of {', '.join(source.name for source in sources[:4])} has {shortest:,} tokens (the longest "
            f"has {longest:,} characters): use longer documents or a shorter sequence"
        )
    manifest = {
        "format": FORMAT_VERSION,
        "sources": [source.identity() for source in sources],
        "dtype": dtype.str,
        "shortest": shortest,
        "shards": len(heads),
        "left_out": sum(head["left_out"] for head in heads),
        "sha256": hashlib.sha256("".join(head["sha256"] for head in heads).encode()).hexdigest(),
    }
    write_json(folder / "manifest.json", manifest)
    return Sequences(folder)


def _groups(texts: Iterable[str]) -> Iterator[list[str]]:
    group: list[str] = []
    characters = 0
    for text in texts:
        group.append(text)
        characters += len(text)
        if characters >= SHARD_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


def _write_shard(
    folder: Path, index: int, texts: list[str], tokenizer: Tokenizer, dtype: np.dtype[Any], shortest: int
) -> dict[str, Any]:
    bos = [tokenizer.bos_id] if tokenizer.adds_bos and tokenizer.bos_id is not None else []
    digest, lengths = hashlib.sha256(), []
    with replacing(folder / _name(index, "tokens")) as file:
        for text in texts:
            if len(text.encode()) + len(bos) < shortest:  # no token is less than a byte: spares most web pages the work
                continue
            ids = bos + [i for part in tokenizer.encode_batch(list(segments([text]))) for i in part]
            if len(ids) >= shortest:
                data = np.array(ids, dtype=dtype).tobytes()
                digest.update(data)
                file.write(data)
                lengths.append(len(ids))
    head = {
        "documents": lengths,
        "left_out": len(texts) - len(lengths),
        "longest_characters": max(map(len, texts)),
        "sha256": digest.hexdigest(),
    }
    write_json(folder / _name(index, "json"), head)
    return head


def _finished(folder: Path, index: int) -> dict[str, Any] | None:
    """What an earlier attempt wrote about a shard, if its tokens are still those it wrote."""
    try:
        head = json.loads((folder / _name(index, "json")).read_text("utf-8"))
        data = (folder / _name(index, "tokens")).read_bytes()
    except (OSError, ValueError):
        return None
    return head if hashlib.sha256(data).hexdigest() == head["sha256"] else None


def _name(index: int, suffix: str) -> str:
    return f"shard-{index:05d}.{suffix}"
