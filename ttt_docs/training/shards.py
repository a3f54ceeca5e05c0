"""Documents to tokenized shards on disk, built once and by all cores; shards to training sequences.

    shard-00000.tokens    the tokens of whole documents, one after the other: little-endian uint16, or uint32 where the
                          vocabulary needs it
    shard-00000.json      written after it: length of each document, documents left out, sha256 of the tokens
    manifest.json         written last: what the shards were made from, totals, one hash over all shards

The order of the sources alone decides which documents a shard holds, so an interrupted build skips what it finished.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ttt_docs.errors import DocumentError, TTTDocsError
from ttt_docs.io import replacing, write_json
from ttt_docs.text.segments import segments
from ttt_docs.text.tokenizer import Tokenizer
from ttt_docs.training.texts import TextSource, texts_of

FORMAT_VERSION = 1
#: Characters of text that make a shard: some 8 million tokens of English.
SHARD_CHARACTERS = 32_000_000


@dataclass(frozen=True)
class Shards:
    """A finished folder of shards. `lengths[i]` are the tokens of shard i's documents, in order."""

    folder: Path
    dtype: np.dtype[Any]
    lengths: tuple[np.ndarray, ...]
    left_out: int  # documents that were too short
    sha256: str

    @property
    def documents(self) -> int:
        return sum(len(lengths) for lengths in self.lengths)

    def tokens_of(self, shard: int) -> np.ndarray:
        """The tokens of one shard, memory-mapped."""
        if not len(self.lengths[shard]):  # an empty file cannot be mapped
            return np.zeros(0, self.dtype)
        return np.memmap(self.folder / _name(shard, "tokens"), dtype=self.dtype, mode="r")


class Sequences:
    """Every whole sequence of every document: `length` tokens and the one after them, the last target.

    A sequence lies inside one document; the next one begins with the last one's final target. What is left at a
    document's end, shorter than a sequence, is not used.
    """

    def __init__(self, shards: Shards, length: int) -> None:
        self.shards, self.length = shards, length
        self._tokens = [shards.tokens_of(shard) for shard in range(len(shards.lengths))]
        rows = [np.zeros((0, 3), dtype=np.int64)]
        for shard, lengths in enumerate(shards.lengths):
            counts = (lengths - 1) // length
            starts = np.cumsum(lengths) - lengths
            nth = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            rows.append(np.stack([np.full(len(nth), shard), np.repeat(starts, counts) + nth * length, nth], 1))
        #: [sequences, 3]: shard, first token, which sequence of its document
        self._rows = np.concatenate(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> np.ndarray:
        """Tokens int64 [length + 1]."""
        shard, start, _ = self._rows[index]
        return self._tokens[shard][start : start + self.length + 1].astype(np.int64)

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
) -> Shards:
    """Tokenizes every document of at least `shortest` tokens, unless that is done; the rest is counted.

    A BOS token stands in front of each document if the tokenizer wants one, as in reading.

    Raises:
        DocumentError: a source that cannot be read, or without one document that is long enough.
        TTTDocsError: a full disk, no permission.
    """
    if (folder / "manifest.json").is_file():
        return open_shards(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TTTDocsError(f"{folder} cannot be made for tokenized data ({error.strerror}): set data.folder") from error
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    heads: list[dict[str, Any]] = []
    texts = (text.encode("utf-8", "replace").decode() for source in sources for text in texts_of(source))
    with tqdm(desc="tokenizing", unit="tok", unit_scale=True, disable=None if progress else True) as bar:
        for group in _groups(texts):
            done = _finished(folder, len(heads), dtype)
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
    return open_shards(folder)


def open_shards(folder: Path) -> Shards:
    """The shards of a finished folder.

    Raises:
        TTTDocsError: a file is missing, damaged or of another size than when it was written.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        dtype = np.dtype(manifest["dtype"])
        heads = [json.loads((folder / _name(i, "json")).read_text("utf-8")) for i in range(manifest["shards"])]
        for index, head in enumerate(heads):
            if (folder / _name(index, "tokens")).stat().st_size != sum(head["documents"]) * dtype.itemsize:
                raise ValueError(f"{_name(index, 'tokens')} has another size than when it was written")
        lengths = tuple(np.array(head["documents"], dtype=np.int64) for head in heads)
        return Shards(folder, dtype, lengths, manifest["left_out"], manifest["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TTTDocsError(f"the tokenized data in {folder} is damaged ({error}): remove the folder") from error


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


def _finished(folder: Path, index: int, dtype: np.dtype[Any]) -> dict[str, Any] | None:
    """What an earlier attempt wrote about a shard, if its tokens are still those it wrote."""
    try:
        head = json.loads((folder / _name(index, "json")).read_text("utf-8"))
        data = (folder / _name(index, "tokens")).read_bytes()
    except (OSError, ValueError):
        return None
    intact = hashlib.sha256(data).hexdigest() == head["sha256"]
    return head if intact and len(data) == sum(head["documents"]) * dtype.itemsize else None


def _name(index: int, suffix: str) -> str:
    return f"shard-{index:05d}.{suffix}"
