"""Documents to tokenized shards on disk: built once, by all cores, going on where it was killed.

    shard-00000.tokens    the tokens of whole documents, one after the other: little-endian uint16, or uint32 where the
                          vocabulary needs it
    shard-00000.json      written after it: length of each document, documents left out, sha256 of the tokens
    manifest.json         written last: what the shards were made from, totals, one hash over all shards

A shard is a run of documents that the sources' order alone decides, so an interrupted build skips what it finished.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ttt_docs.errors import DocumentError, TTTDocsError
from ttt_docs.io import replacing
from ttt_docs.text.segments import segments
from ttt_docs.text.tokenizer import Tokenizer
from ttt_docs.training.sources import DataSource, documents

FORMAT_VERSION = 1
#: Characters of text that make a shard: some 8 million tokens of English.
SHARD_CHARACTERS = 32_000_000


@dataclass(frozen=True)
class Shards:
    """A finished folder of shards. `lengths[i]` are the tokens of shard i's documents, in order."""

    folder: Path
    dtype: np.dtype[Any]
    lengths: tuple[np.ndarray, ...]
    left_out: int  # documents shorter than `shortest`
    shortest: int
    sha256: str

    @property
    def documents(self) -> int:
        return sum(len(lengths) for lengths in self.lengths)

    @property
    def tokens(self) -> int:
        return int(sum(lengths.sum() for lengths in self.lengths))

    def tokens_of(self, shard: int) -> np.ndarray:
        """The tokens of one shard, memory-mapped."""
        return np.memmap(self.folder / _name(shard, "tokens"), dtype=self.dtype, mode="r")


def shards_folder(root: Path, sources: list[DataSource], tokenizer: Path, shortest: int) -> Path:
    """Where the shards of these documents lie: other documents, another tokenizer or length have another folder."""
    token_file = tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer
    parts = [FORMAT_VERSION, shortest, hashlib.sha256(token_file.read_bytes()).hexdigest()]
    key = json.dumps([*parts, *(source.identity() for source in sources)])
    return root / hashlib.sha256(key.encode()).hexdigest()[:24]


def build_shards(
    folder: Path, sources: list[DataSource], tokenizer: Tokenizer, shortest: int, progress: bool = True
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
    bos = [tokenizer.bos_id] if tokenizer.adds_bos and tokenizer.bos_id is not None else []
    heads: list[dict[str, Any]] = []
    texts = (text.encode("utf-8", "replace").decode() for source in sources for text in documents(source))
    with tqdm(desc="tokenizing", unit="tok", unit_scale=True, disable=None if progress else True) as bar:
        for group in _groups(texts):
            head = _finished(folder, len(heads), dtype)
            if head is None:
                head = _write_shard(folder, len(heads), group, tokenizer, bos, dtype, shortest)
            heads.append(head)
            bar.update(sum(head["documents"]))
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
        "documents": sum(len(head["documents"]) for head in heads),
        "tokens": sum(sum(head["documents"]) for head in heads),
        "left_out": sum(head["left_out"] for head in heads),
        "sha256": hashlib.sha256("".join(head["sha256"] for head in heads).encode()).hexdigest(),
    }
    _write_json(folder / "manifest.json", manifest)
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
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TTTDocsError(f"the tokenized data in {folder} is damaged ({error}): remove the folder") from error
    lengths = tuple(np.array(head["documents"], dtype=np.int64) for head in heads)
    return Shards(folder, dtype, lengths, manifest["left_out"], manifest["shortest"], manifest["sha256"])


def wait_for_shards(folder: Path, seconds: float = 0.2) -> Shards:
    """The shards that another process of this machine is building."""
    while not (folder / "manifest.json").is_file():
        time.sleep(seconds)
    return open_shards(folder)


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
    folder: Path, index: int, texts: list[str], tokenizer: Tokenizer, bos: list[int], dtype: Any, shortest: int
) -> dict[str, Any]:
    digest, lengths = hashlib.sha256(), []
    with replacing(folder / _name(index, "tokens")) as file:
        for text in texts:
            if len(text.encode()) + len(bos) < shortest:  # no token is less than a byte: spares most web pages the work
                continue
            ids = bos + [i for part in tokenizer.encode_batch(list(segments([text]))) for i in part]
            if len(ids) < shortest:
                continue
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
    _write_json(folder / _name(index, "json"), head)
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


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with replacing(path) as file:
        file.write(json.dumps(content).encode())
