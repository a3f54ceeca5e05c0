"""An adapter: what training changed in a base model, as one safetensors file.

Tensors have our parameter names and replace those of the base. A packed adapter (format 2) holds a matrix NAME of a
prime MLP as its change from the base's retrofit, where training began. The change is a sum of rounded terms
(`weights.lowrank`): NAME/left8, NAME/right8 and so on. The header's metadata holds one JSON object under `ttt-docs`:
format version, base model (name and fingerprint), the ModelConfig of the result, how it reads (ReadingConfig), the
digest of the tensors, and where it comes from (recipe, data, tokens, seed, code).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, fields, replace
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import Any

from ttt_docs.errors import CheckpointError, UsageError
from ttt_docs.io import replacing
from ttt_docs.model.config import ModelConfig, ReadingConfig
from ttt_docs.weights.converted import Checkpoint, derived_fingerprint, open_safetensors, tensor_bytes
from ttt_docs.weights.loading import retrofit
from ttt_docs.weights.lowrank import LowRank, compress
from ttt_docs.weights.parameters import State, parameter_shapes
from ttt_docs.weights.registry import REGISTRY, advice, candidates, entry_of, full_name, info

#: Stands for the adapter that comes with this package for the model, if there is one.
SHIPPED = "shipped"
WHOLE, PACKED = 1, 2  # the formats
_KEY = "ttt-docs"
_PARTS = tuple(part.name for part in fields(LowRank))
#: What a base model and an adapter for it have in common.
_ARCHITECTURE = {"vocab_size", "blocks", "dim", "heads", "kv_heads", "head_dim", "mlp_dim", "norm_eps", "rope_theta"}
#: Bytes of a packed file's header, at most.
_HEADER_BYTES = 1 << 16


@dataclass(frozen=True)
class Adapter:
    """A loaded adapter. `state` holds what was trained; `changes` the matrices of the prime MLPs, in a packed one."""

    path: Path
    base: str
    base_fingerprint: str
    config: ModelConfig
    reading: ReadingConfig
    state: State
    provenance: dict[str, Any]
    changes: dict[str, LowRank] = field(default_factory=dict)
    digest: str = ""

    def tensors(self) -> State:
        """Everything in the file, by the names there."""
        parts = {f"{name}/{part}": t for name, c in self.changes.items() for part, t in c.tensors().items()}
        return self.state | parts


def save_adapter(adapter: Adapter) -> Adapter:
    """Writes an adapter to its path, whole or not at all; returns it with the sha256 over its tensors.

    Raises TTTDocsError, UsageError as `ttt_docs.io.replacing` does.
    """
    from safetensors.torch import save

    tensors = {name: tensor.contiguous() for name, tensor in adapter.tensors().items()}
    adapter = replace(adapter, digest=_digest(tensors))
    header = {
        "format": PACKED if adapter.changes else WHOLE,
        "base": {"name": adapter.base, "fingerprint": adapter.base_fingerprint},
        "config": adapter.config.model_dump(mode="json"),
        "reading": adapter.reading.model_dump(mode="json"),
        "sha256": adapter.digest,
        "provenance": adapter.provenance,
    }
    with replacing(adapter.path) as file:
        file.write(save(tensors, {_KEY: json.dumps(header)}))
    return adapter


def pack_adapter(adapter: Adapter, checkpoint: Checkpoint, path: Path, max_bytes: int) -> Adapter:
    """Writes `adapter`, made for `checkpoint`, as a packed one of at most `max_bytes`; returns that.

    Raises:
        CheckpointError: another base model.
        UsageError: packed already, without prime MLPs, or too little room for anything.
    """
    prime = [name for name in adapter.state if ".prime_mlp." in name]
    if adapter.changes or not prime:
        raise UsageError(f"{adapter.path} has no whole prime MLPs to pack" + " again" * bool(adapter.changes))
    _check_base(checkpoint, adapter)
    start = _start(checkpoint, adapter.config)
    rest = {name: tensor for name, tensor in adapter.state.items() if name not in prime}
    left = max_bytes - _HEADER_BYTES - sum(tensor.nbytes for tensor in rest.values())
    packed = compress({0: {name: adapter.state[name] - start[name].float() for name in prime}}, max(left, 0))[0]
    if not any(change.scale8.numel() + change.scale4.numel() for change in packed.values()):
        raise UsageError(f"{max_bytes:,} bytes are too few for {adapter.path}: give more")
    return save_adapter(replace(adapter, path=path, state=rest, changes=packed))


def load_adapter(path: str | PathLike[str]) -> Adapter:
    """Reads an adapter and checks it against its own header.

    Raises:
        CheckpointError: not an adapter, damaged, of a newer format, or with tensors its configuration does not have.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise CheckpointError(f"there is no adapter {path}")
    try:
        with open_safetensors(path) as file:
            metadata = file.metadata() or {}
            if _KEY not in metadata:
                raise CheckpointError(f"{path} is not an adapter of ttt-docs: it does not have an adapter's header")
            header = json.loads(metadata[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        if header["format"] > PACKED:
            found = header["format"]
            raise CheckpointError(f"{path} has adapter format {found}, newer than this package: upgrade ttt-docs")
        state = {name: tensor for name, tensor in tensors.items() if "/" not in name}
        changed = sorted({name.partition("/")[0] for name in tensors.keys() - state.keys()})
        changes = {n: LowRank(**{part: tensors.pop(f"{n}/{part}") for part in _PARTS}) for n in changed}
        adapter = Adapter(
            path,
            str(header["base"]["name"]),
            str(header["base"]["fingerprint"]),
            ModelConfig(**header["config"]),
            ReadingConfig(**header["reading"]),
            state,
            dict(header["provenance"]),
            changes,
            str(header["sha256"]),
        )
    except (ValueError, KeyError, TypeError) as error:  # pydantic's are ValueErrors too
        said = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise CheckpointError(f"{path} is not an adapter of ttt-docs, or is damaged: {said}") from error
    shapes = parameter_shapes(adapter.config)
    strange = [name for name, tensor in state.items() if shapes.get(name) != tuple(tensor.shape)]
    strange += tensors.keys() - state.keys()
    strange += [name for name, change in changes.items() if not change.fits(shapes.get(name, ()))]
    if strange:
        raise CheckpointError(f"{path} has tensors that its model does not have: {', '.join(sorted(strange)[:6])}")
    if _digest(adapter.tensors()) != adapter.digest:
        raise CheckpointError(f"{path} is damaged: its tensors do not match their sha256")
    return adapter


def chosen_adapter(
    wanted: str | PathLike[str] | None,
    name: str,
    checkpoint: Checkpoint,
    suffix_blocks: int | None = None,
    sinks: int | None = None,
) -> Adapter | None:
    """The adapter at the path `wanted`; for SHIPPED that of the package, unless another retrofit is asked for.

    Raises CheckpointError as `load_adapter`.
    """
    if wanted != SHIPPED:
        return None if wanted is None else load_adapter(wanted)
    entry = entry_of(name)
    if entry is None or entry.adapter is None:
        return None
    shipped = load_adapter(str(files("ttt_docs.weights") / "adapters" / entry.adapter))
    own, theirs = checkpoint.config, shipped.config
    if suffix_blocks not in (None, theirs.suffix_blocks) or sinks not in (None, theirs.sinks):
        return None
    if own.suffix_blocks or own.model_dump(include=_ARCHITECTURE) != theirs.model_dump(include=_ARCHITECTURE):
        return None
    # The name may stand for the same weights at another precision (the hub's, or a GGUF file's): a change fits both.
    return replace(shipped, base_fingerprint=checkpoint.fingerprint)


def base_of(path: str | PathLike[str]) -> str:
    """The base model that an adapter names, in the variant it was trained on if that is here.

    The base must be a registry name: a file from a stranger must not make anyone open a path or an address.

    Raises:
        CheckpointError: not an adapter, or one whose base goes by no registry name.
    """
    adapter = load_adapter(path)
    if entry_of(adapter.base) is None:
        raise CheckpointError(
            f"{path} is an adapter for {adapter.base!r}, which is none of {', '.join(REGISTRY)}: open that model, and "
            "give the file as its adapter"
        )
    names = candidates(adapter.base)
    return next((name for name in names if info(name).get("fingerprint") == adapter.base_fingerprint), adapter.base)


def adapted(checkpoint: Checkpoint, adapter: Adapter) -> tuple[State, str]:
    """The base model's weights, replaced by the adapter's where it has them, and the fingerprint of the result.

    Raises:
        CheckpointError: the adapter was trained for another base model, or lacks a prime MLP that the base lacks too.
    """
    _check_base(checkpoint, adapter)
    state = dict(checkpoint.state)
    if adapter.changes:
        start = _start(checkpoint, adapter.config)
        state |= {name: start[name].float() + change.expand() for name, change in adapter.changes.items()}
    for name, tensor in adapter.state.items():
        state[name] = tensor if ".prime_mlp." in name else tensor.to(checkpoint.state.get(name, tensor).dtype)
    missing = parameter_shapes(adapter.config).keys() - state.keys()
    if missing:
        raise CheckpointError(f"{adapter.path} has no {', '.join(sorted(missing)[:6])}, and neither has its base model")
    return state, derived_fingerprint(f"{checkpoint.fingerprint}\n{adapter.digest}", adapter.config)


def _check_base(checkpoint: Checkpoint, adapter: Adapter) -> None:
    if checkpoint.fingerprint != adapter.base_fingerprint:
        name = full_name(checkpoint.config.name, checkpoint.manifest)
        raise CheckpointError(
            f"{adapter.path} was trained for another model ({adapter.base}, fingerprint "
            f"{adapter.base_fingerprint[:12]}) than {name} ({checkpoint.fingerprint[:12]}): "
            + advice(adapter.base, name)
        )


def _start(checkpoint: Checkpoint, config: ModelConfig) -> State:
    """The weights that an adapter's training began with."""
    if checkpoint.config.suffix_blocks:
        return checkpoint.state
    return retrofit(checkpoint.config, checkpoint.state, config.suffix_blocks, config.sinks)[1]


def _digest(state: State) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()
