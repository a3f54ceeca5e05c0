"""The layout of the published checkpoints, and how each of its arrays becomes rows of ours.

Block parameters are stacked over blocks on axis 0, and prime MLPs over suffix blocks. Matrices are `[in, out]`, and
RoPE rotates interleaved pairs (docs/method.md section 7). Ours are one tensor for each block, `[out, in]`, with RoPE on
halves. q, k and v are rows of one tensor, and so are w1 and w3.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError

from ttt_docs.errors import CheckpointError, UsageError
from ttt_docs.model.config import CONFIGS, ModelConfig, ReadingConfig
from ttt_docs.weights import fetch
from ttt_docs.weights.converted import copy_tokenizer, write_checkpoint
from ttt_docs.weights.parameters import (
    Part,
    Piece,
    WeightSource,
    compare_shapes,
    fields_of,
    halves_from_interleaved,
    parts_of,
    refuse,
    stored_dtype,
)


class Published(NamedTuple):
    """An array of a published checkpoint, and its parts: one, or if it is stacked, one in each entry of axis 0."""

    shape: tuple[int, ...]
    parts: list[Part]


def published_layout(config: ModelConfig) -> dict[str, Published]:
    """Every array of a published checkpoint of `config`, by its path.

    Raises:
        CheckpointError: an untied head, which no published model has.
    """
    refuse(config.name, {"an untied head in the published layout": not config.tied_head})
    arrays: dict[str, list[Part]] = {}
    for part in parts_of(config, "published"):
        arrays.setdefault(part.theirs, []).append(part)
    return {
        path: Published(parts[0].shape if parts[0].block is None else (len(parts), *parts[0].shape[::-1]), parts)
        for path, parts in arrays.items()
    }


def rows_of(entry: torch.Tensor, part: Part) -> torch.Tensor:
    """An array, or one entry of a stacked one, as rows of our tensor."""
    rows = entry.t() if part.block is not None and entry.dim() == 2 else entry
    return halves_from_interleaved(rows, part.heads) if part.heads else rows.contiguous()


#: What the published sizes are called here.
SIZES = {"125m": "125m", "1b": "1.3b", "3b": "3b"}
_ITEM = "model_weights"
_READ = 1 << 18  # compressed bytes at a time
_PIECE = 1 << 24  # bytes of an array that is not stacked, at a time
_DTYPES = {"<f4": torch.float32, "<f2": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class _Array:
    """One zarr array (version 2, C order)."""

    path: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: torch.dtype
    compressor: str | None


def config_of(size: str | None, file: Path | None) -> tuple[ModelConfig, ReadingConfig]:
    """The architecture and inner loop of a published size, or of a JSON file: a ModelConfig, or the published names.

    Raises:
        UsageError: neither or both given, an unknown size, a file that is no configuration.
    """
    if (size is None) == (file is None):
        raise UsageError("say what the checkpoint is: a size, or a file with its configuration")
    if size is not None:
        if size not in SIZES:
            raise UsageError(f"size {size!r} is none of {', '.join(SIZES)}")
        return CONFIGS[SIZES[size]], ReadingConfig(chunk=1024, window=8192)
    assert file is not None
    try:
        settings = json.loads(file.read_text("utf-8"))
        if "num_hidden_layers" in settings:
            return configs_from_published(settings)
        config = ModelConfig(**settings)
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise UsageError(f"{file} is not a model's configuration: {error}") from None
    window = config.window or config.max_positions
    return config, ReadingConfig(chunk=min(1024, window), window=window)


def configs_from_published(settings: dict[str, Any]) -> tuple[ModelConfig, ReadingConfig]:
    """The two configurations that a published config (a dict of its own names) amounts to.

    Raises:
        CheckpointError: a block type that is not known.
    """
    kind = settings["seq_modeling_block"]
    if kind not in ("SWA", "SWAFull", "self_attention"):
        raise CheckpointError(f"{settings['name']}: seq_modeling_block {kind!r} is not known")
    full = kind == "self_attention"
    window = settings["seq_len"] if full else settings["sliding_window_size"]
    prime = settings["prime"]
    config = ModelConfig(
        head_dim=settings["hidden_size"] // settings["num_attention_heads"],
        suffix_blocks=settings["suffix_len"] if prime else 0,
        post_norm=True,
        window=None if full else window,
        **fields_of("published", settings),
    )
    reading = ReadingConfig(
        chunk=min(settings["mini_batch_size"], window),  # without an update the chunk is only a way of computing
        window=window,
        learn=prime,
        inner_rule="sgd",
        inner_lr=settings["inner_lr"],
        inner_clip=settings["inner_clip"],
        guard=None,  # the published method has none
    )
    return config, reading


def import_checkpoint(
    folder: Path,
    output: Path,
    *,
    size: str | None = None,
    config_file: Path | None = None,
    tokenizer: str | None = None,
    progress: bool = True,
) -> Path:
    """Writes an Orbax checkpoint as a model folder; returns `output`. See `config_of` and `open_orbax` for errors.

    Raises:
        UsageError: `output` is there already.
    """
    if output.exists():
        raise UsageError(f"{output} is there already: give another folder, or remove it first")
    config, reading = config_of(size, config_file)
    source = open_orbax(folder, config)
    if tokenizer is not None:
        files = Path(tokenizer).expanduser()
        files = files if files.is_dir() else fetch.download_repository(tokenizer, patterns=["tokenizer*"])
        if not (files / "tokenizer.json").is_file():
            raise CheckpointError(f"{tokenizer} has no tokenizer.json")
        source = replace(source, write_tokenizer=lambda target: copy_tokenizer(files, target))
    origin = {"path": folder.name, "reading": reading.model_dump(mode="json")}
    return write_checkpoint(output, source, origin, progress)


def open_orbax(folder: Path, config: ModelConfig) -> WeightSource:
    """An Orbax checkpoint as a source; `folder` is the checkpoint, one of its steps, or a step's `model_weights`.

    Raises:
        CheckpointError: no such checkpoint, or arrays missing, left over or of another shape than `config` wants.
        UsageError: tensorstore or zstandard is not installed.
    """
    item = _item(folder)
    store = _open(item)
    arrays = _arrays(store, item)
    layout = published_layout(config)
    compare_shapes(
        {path: published.shape for path, published in layout.items()},
        {path: array.shape for path, array in arrays.items()},
        str(folder),
    )
    dtype = stored_dtype(array.dtype for array in arrays.values())
    dtypes = {part.name: dtype for published in layout.values() for part in published.parts}

    def pieces() -> Iterator[Piece]:
        for path, (_, parts) in layout.items():
            stacked = parts[0].block is not None
            for first, entries in _entries(store, arrays[path], stacked):
                if stacked:
                    yield parts[first].name, parts[first].row, rows_of(entries[0], parts[first]).to(dtype)
                else:
                    yield parts[0].name, first, entries.to(dtype)

    return WeightSource(config, dtypes, pieces, "orbax")


def _item(folder: Path) -> Path:
    candidates = [folder, folder / _ITEM]
    steps = [step for step in folder.glob("*") if step.name.isdigit()] if folder.is_dir() else []
    if steps:
        candidates.append(max(steps, key=lambda step: int(step.name)) / _ITEM)
    for candidate in candidates:
        if (candidate / "manifest.ocdbt").is_file():
            return candidate
    raise CheckpointError(f"{folder} is not an Orbax checkpoint: no manifest.ocdbt there, nor in a step's {_ITEM}")


def _open(item: Path) -> Any:
    try:
        import tensorstore
        import zstandard  # noqa: F401 (decompresses; better missed now than after an hour)
    except ImportError as error:
        raise UsageError(f'reading Orbax checkpoints needs {error.name}: pip install "ttt-docs[orbax]"') from None
    # One thread reads and one copies: more of them hold more of an array at a time.
    context = {"file_io_concurrency": {"limit": 1}, "data_copy_concurrency": {"limit": 1}}
    spec = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{item.resolve()}/"}, "context": context}
    try:
        return tensorstore.KvStore.open(spec).result()
    except ValueError as error:
        raise CheckpointError(f"{item} cannot be opened: {error}") from error


def _arrays(store: Any, item: Path) -> dict[str, _Array]:
    arrays = {}
    try:
        for key in store.list().result():
            path, _, last = key.decode().rpartition("/")
            if last == ".zarray":
                arrays[path] = _array(path, json.loads(store[key]))
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{item} is damaged or not a store of zarr arrays: {error}") from error
    if not arrays:
        raise CheckpointError(f"{item} holds no zarr arrays")
    return arrays


def _array(path: str, meta: dict[str, Any]) -> _Array:
    dtype, compressor = _DTYPES.get(meta["dtype"]), (meta["compressor"] or {}).get("id")
    if dtype is None or meta.get("filters") or meta.get("order", "C") != "C":
        raise CheckpointError(f"{path} is stored as {meta['dtype']}, order {meta.get('order')}: not known")
    if compressor not in (None, "zstd", "zlib", "gzip"):
        raise CheckpointError(f"{path} is compressed with {compressor}, which is not known")
    return _Array(path, tuple(meta["shape"]), tuple(meta["chunks"]), dtype, compressor)


def _entries(store: Any, array: _Array, one: bool) -> Iterator[tuple[int, torch.Tensor]]:
    """The array from the start of axis 0 to its end, one or some entries at a time: (first, entries [count, ...])."""
    step = 1 if one else max(1, _PIECE // (prod(array.shape[1:]) * array.dtype.itemsize))
    depth = array.chunks[0]
    grid = [range(-(-size // chunk)) for size, chunk in zip(array.shape, array.chunks, strict=True)]
    for slab in grid[0]:
        start, count = slab * depth, min(depth, array.shape[0] - slab * depth)
        if array.chunks[1:] == array.shape[1:]:
            chunk = _Chunk(store, array, (slab, *[0] * (len(grid) - 1)))
            for first in range(0, count, step):
                yield start + first, chunk.take(min(step, count - first), array.shape[1:])
            continue
        # Several chunks side by side: the slab is put together whole.
        whole = torch.empty((count, *array.shape[1:]), dtype=array.dtype)
        for place in product(*grid[1:]):
            part = _Chunk(store, array, (slab, *place)).take(depth, array.chunks[1:])
            inside = tuple(slice(i * size, (i + 1) * size) for i, size in zip(place, array.chunks[1:], strict=True))
            region = whole[(slice(None), *inside)]
            region.copy_(part[tuple(slice(0, size) for size in region.shape)])
        for first in range(0, count, step):
            yield start + first, whole[first : first + step]


def _stream(store: Any, array: _Array, place: tuple[int, ...]) -> Iterator[bytes]:
    """The decompressed bytes of one chunk, in pieces."""
    key = f"{array.path}/{'.'.join(map(str, place))}"
    import zstandard

    zstd, packed = array.compressor == "zstd", array.compressor is not None
    decoder: Any = zstandard.ZstdDecompressor().decompressobj() if zstd else zlib.decompressobj(wbits=47)  # any header
    at, whole = 0, False
    while not whole:
        try:
            try:
                found = store.read(key, byte_range=slice(at, at + _READ)).result()
            except ValueError as error:
                if "OUT_OF_RANGE" not in str(error):
                    raise
                found, whole = store.read(key, byte_range=slice(at, None)).result(), True  # less than that is left
        except ValueError as error:
            raise CheckpointError(f"{key} cannot be read: {error}") from error
        if found.state != "value":
            raise CheckpointError(f"{array.path} is damaged: its chunk {key.rpartition('/')[2]} is missing")
        try:
            if data := decoder.decompress(found.value) if packed else found.value:
                yield data
        except Exception as error:  # zstd's and zlib's own
            raise CheckpointError(f"{key} is damaged: {error}") from error
        at += len(found.value)


class _Chunk:
    """The bytes of a chunk, a known number at a time, in one buffer: what `take` gave is gone at the next call."""

    def __init__(self, store: Any, array: _Array, place: tuple[int, ...]) -> None:
        self._array, self._pieces, self._left = array, _stream(store, array, place), memoryview(b"")
        self._buffer = bytearray()

    def take(self, entries: int, shape: tuple[int, ...]) -> torch.Tensor:
        """The next [entries, *shape]."""
        size, filled = entries * prod(shape) * self._array.dtype.itemsize, 0
        if len(self._buffer) < size:
            self._buffer = bytearray(size)
        data = memoryview(self._buffer)[:size]
        while filled < size:
            if not self._left:
                self._left = memoryview(next(self._pieces, b""))
                if not self._left:
                    raise CheckpointError(f"{self._array.path} is damaged: a chunk ends too soon")
            part = self._left[: size - filled]
            data[filled : filled + len(part)] = part
            self._left, filled = self._left[len(part) :], filled + len(part)
        return torch.frombuffer(data, dtype=self._array.dtype).view(entries, *shape)
