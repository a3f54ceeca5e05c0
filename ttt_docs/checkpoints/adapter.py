"""An adapter: what training changed in a base model, as one safetensors file.

Tensors stand under our parameter names, whole (an adapter replaces, it does not add). The header's metadata holds one
JSON object under `ttt-docs`: format version, base model (name and fingerprint), the ModelConfig it makes of the base,
how that model reads (ReadingConfig), digest of the tensors, and where it comes from (recipe, data, tokens, seed, code).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from ttt_docs.checkpoints.names import parameter_shapes
from ttt_docs.checkpoints.registry import REGISTRY
from ttt_docs.checkpoints.source import State
from ttt_docs.checkpoints.store import Checkpoint, derived_fingerprint
from ttt_docs.errors import CheckpointError
from ttt_docs.memory.files import replacing
from ttt_docs.model.config import ModelConfig, ReadingConfig

FORMAT_VERSION = 1
_KEY = "ttt-docs"


@dataclass(frozen=True)
class Adapter:
    """A loaded adapter; `state` holds only what was trained."""

    path: Path
    base: str
    base_fingerprint: str
    config: ModelConfig
    reading: ReadingConfig
    state: State
    digest: str
    provenance: dict[str, Any]


def save_adapter(
    path: Path,
    state: State,
    *,
    base: str,
    base_fingerprint: str,
    config: ModelConfig,
    reading: ReadingConfig,
    provenance: dict[str, Any],
) -> str:
    """Writes an adapter, whole or not at all; returns the sha256 over its tensors.

    Raises TTTDocsError, UsageError as `ttt_docs.memory.files.replacing` does.
    """
    from safetensors.torch import save

    digest = _digest(state)
    header = {
        "format": FORMAT_VERSION,
        "base": {"name": base, "fingerprint": base_fingerprint},
        "config": config.model_dump(mode="json"),
        "reading": reading.model_dump(mode="json"),
        "sha256": digest,
        "provenance": provenance,
    }
    with replacing(path) as file:
        file.write(save({k: v.contiguous() for k, v in state.items()}, {_KEY: json.dumps(header)}))
    return digest


def load_adapter(path: str | PathLike[str]) -> Adapter:
    """Reads an adapter and checks it against its own header.

    Raises:
        CheckpointError: not an adapter, damaged, of a newer format, or with tensors its configuration does not have.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path).expanduser()
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[_KEY])
            version = int(header["format"])
            if version > FORMAT_VERSION:
                raise CheckpointError(f"{path} has adapter format {version}, newer than this package: upgrade ttt-docs")
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        adapter = Adapter(
            path,
            str(header["base"]["name"]),
            str(header["base"]["fingerprint"]),
            ModelConfig(**header["config"]),
            ReadingConfig(**header["reading"]),
            state,
            str(header["sha256"]),
            dict(header["provenance"]),
        )
    except FileNotFoundError:
        raise CheckpointError(f"there is no adapter {path}") from None
    except (SafetensorError, OSError, ValidationError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not an adapter of ttt-docs, or is damaged: {error}") from error
    shapes = parameter_shapes(adapter.config)
    strange = [name for name, tensor in state.items() if shapes.get(name) != tuple(tensor.shape)]
    if strange:
        raise CheckpointError(f"{path} has tensors that its model does not have: {', '.join(sorted(strange)[:6])}")
    if _digest(state) != adapter.digest:
        raise CheckpointError(f"{path} is damaged: its tensors do not match their sha256")
    return adapter


def is_adapter(name: str | PathLike[str]) -> bool:
    """Whether a model's name is in fact that of an adapter's file."""
    return str(name).endswith(".safetensors") and Path(name).expanduser().is_file()


def base_of(path: str | PathLike[str]) -> str:
    """The base model that an adapter names, if it is in the registry: a file may come from a stranger, and shall not
    make anyone open a path or address.

    Raises:
        CheckpointError: not an adapter, or one whose base goes by no registry name.
    """
    base = load_adapter(path).base
    if base not in REGISTRY:
        raise CheckpointError(
            f"{path} is an adapter for {base!r}, which is none of {', '.join(REGISTRY)}: open that model, and give the "
            "file as its adapter"
        )
    return base


def adapted(checkpoint: Checkpoint, adapter: Adapter) -> tuple[State, str]:
    """The base model's weights with the adapter's in their place, and the fingerprint of the result.

    Raises:
        CheckpointError: the adapter was trained for another base model, or lacks a prime MLP that the base lacks too.
    """
    if checkpoint.fingerprint != adapter.base_fingerprint:
        raise CheckpointError(
            f"{adapter.path} was trained for another model ({adapter.base}, fingerprint "
            f"{adapter.base_fingerprint[:12]}) than {checkpoint.config.name} ({checkpoint.fingerprint[:12]}): "
            "open that one with it"
        )
    state = dict(checkpoint.state)
    for name, tensor in adapter.state.items():
        state[name] = tensor if ".prime_mlp." in name else tensor.to(checkpoint.state.get(name, tensor).dtype)
    missing = parameter_shapes(adapter.config).keys() - state.keys()
    if missing:
        raise CheckpointError(f"{adapter.path} has no {', '.join(sorted(missing)[:6])}, and neither has its base model")
    return state, derived_fingerprint(f"{checkpoint.fingerprint}\n{adapter.digest}", adapter.config)


def _digest(state: State) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.view(torch.uint8).numpy().data.cast("B") if tensor.numel() else b"")
    return digest.hexdigest()
