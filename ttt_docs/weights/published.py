"""The layout of the published checkpoints, and how each of its arrays becomes rows of ours.

Block parameters are stacked over blocks on axis 0, and prime MLPs over suffix blocks. Matrices are `[in, out]`, and
RoPE rotates interleaved pairs (docs/method.md section 7). Ours are one tensor for each block, `[out, in]`, with RoPE on
halves. q, k and v are rows of one tensor, and so are w1 and w3.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import replace
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
_DTYPES = {"<f4": torch.float32, "<f2": torch.float16, "bfloat16": torch.bfloat16}


class _Array(NamedTuple):
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
            first = 0
            if parts[0].block is None:
                for rows in _entries(store, arrays[path], 4096):
                    yield parts[0].name, first, rows.to(dtype)
                    first += len(rows)
            else:
                for (entry,), part in zip(_entries(store, arrays[path], 1), parts, strict=True):
                    yield part.name, part.row, rows_of(entry, part).to(dtype)

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
            if last != ".zarray":
                continue
            meta = json.loads(store[key])
            dtype, compressor = _DTYPES.get(meta["dtype"]), (meta["compressor"] or {}).get("id")
            if dtype is None or meta.get("filters") or meta.get("order", "C") != "C":
                raise CheckpointError(f"{path} is stored as {meta['dtype']}, order {meta.get('order')}: not known")
            if compressor not in (None, "zstd", "zlib", "gzip"):
                raise CheckpointError(f"{path} is compressed with {compressor}, which is not known")
            arrays[path] = _Array(path, tuple(meta["shape"]), tuple(meta["chunks"]), dtype, compressor)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{item} is damaged or not a store of zarr arrays: {error}") from error
    if not arrays:
        raise CheckpointError(f"{item} holds no zarr arrays")
    return arrays


def _entries(store: Any, array: _Array, most: int) -> Iterator[torch.Tensor]:
    """The array from the start of axis 0 to its end, as tensors [up to `most`, ...]."""
    grid = [range(-(-size // chunk)) for size, chunk in zip(array.shape, array.chunks, strict=True)]
    depth = array.chunks[0]
    for slab in grid[0]:
        count = min(depth, array.shape[0] - slab * depth)
        if array.chunks[1:] == array.shape[1:]:
            counts = [min(most, count - first) for first in range(0, count, most)]
            yield from _chunk(store, array, (slab, *[0] * (len(grid) - 1)), counts)
            continue
        # Several chunks side by side: the slab is put together whole.
        whole = torch.empty((count, *array.shape[1:]), dtype=array.dtype)
        for index in product(*grid[1:]):
            (chunk,) = _chunk(store, array, (slab, *index), [depth])
            inside = (slice(i * size, (i + 1) * size) for i, size in zip(index, array.chunks[1:], strict=True))
            region = whole[(slice(None), *inside)]
            region.copy_(chunk[tuple(map(slice, region.shape))])
        yield from whole.split(most)


def _chunk(store: Any, array: _Array, index: tuple[int, ...], counts: list[int]) -> Iterator[torch.Tensor]:
    """One chunk from its start, as tensors of so many entries each. A chunk may be too large for memory."""
    data, pieces = bytearray(), _decompressed(store, f"{array.path}/{'.'.join(map(str, index))}", array.compressor)
    for count in counts:
        size = count * prod(array.chunks[1:]) * array.dtype.itemsize
        while len(data) < size:
            data += next(pieces)
        yield torch.frombuffer(data[:size], dtype=array.dtype).view(count, *array.chunks[1:])
        del data[:size]


def _decompressed(store: Any, key: str, compressor: str | None) -> Iterator[bytes]:
    """The bytes of the chunk `key`, a few at a time. It is an error to ask for more than there are."""
    import zstandard

    zstd = compressor == "zstd"
    decoder: Any = zstandard.ZstdDecompressor().decompressobj() if zstd else zlib.decompressobj(wbits=47)  # any header
    at, last = 0, False
    try:
        while not last:
            try:
                found = store.read(key, byte_range=slice(at, at + _READ)).result()
            except ValueError as error:
                if "OUT_OF_RANGE" not in str(error):
                    raise
                found, last = store.read(key, byte_range=slice(at, None)).result(), True  # less than that is left
            if found.state != "value":
                raise ValueError("it is missing")
            yield decoder.decompress(found.value) if compressor else found.value
            at += len(found.value)
        raise ValueError("it ends too soon")
    except Exception as error:  # ValueError, or the decompressors' own
        raise CheckpointError(f"the chunk {key} is damaged: {error}") from error
