"""From a model's name to a decoder and how it reads: checkpoint, adapter or retrofit, and what the caller asks for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ttt_docs.errors import UsageError, naming_the_values
from ttt_docs.model.config import ModelConfig, ReadingConfig
from ttt_docs.model.decoder import Decoder
from ttt_docs.weights.adapter import SHIPPED, adapted, base_of, chosen_adapter
from ttt_docs.weights.converted import derived_fingerprint, load_checkpoint
from ttt_docs.weights.loading import build_decoder, device_of, dtype_of, retrofit, retrofit_config
from ttt_docs.weights.registry import full_name, resolve

#: The retrofit's inner loop: of the rules measured in docs/benchmarks.md the best for a model not meta-trained.
RETROFIT_READING = {"inner_rule": "normalized", "inner_lr": 0.3}
RETROFIT_BLOCKS, RETROFIT_SINKS = 8, 4


@dataclass(frozen=True)
class Base:
    """The model as its checkpoint has it, before a retrofit or an adapter."""

    config: ModelConfig
    fingerprint: str

    def retrofit_blocks(self, sinks: int, fingerprint: str) -> int | None:
        """How many suffix blocks the retrofit has whose fingerprint is this one; None: no retrofit has it."""
        if self.config.suffix_blocks or self.config.post_norm:
            return None
        for blocks in range(1, self.config.blocks + 1):
            if derived_fingerprint(self.fingerprint, retrofit_config(self.config, blocks, sinks)) == fingerprint:
                return blocks
        return None


@dataclass(frozen=True)
class Pretrained:
    """A model that is ready to read; `folder` holds its tokenizer, `name` says which of its weights it has."""

    name: str
    model: Decoder
    reading: ReadingConfig
    folder: Path
    fingerprint: str
    base: Base


def open_pretrained(
    name: str | os.PathLike[str],
    adapter: str | os.PathLike[str] | None,
    device: str | torch.device,
    dtype: torch.dtype | str | None,
    suffix_blocks: int | None,
    **chosen: Any,
) -> Pretrained:
    """What `TTTReader.from_pretrained` opens; `chosen` are fields of ReadingConfig, None where the model is to say.

    Raises CheckpointError, UsageError as that does.
    """
    if not isinstance(name, (str, os.PathLike)):
        raise UsageError(f"the model's name is a {type(name).__name__}: give a registry name, folder, file or id")
    where = device_of(device)
    numbers = dtype_of(dtype, where)
    sinks = chosen.get("sinks")
    for what, count in (("suffix_blocks", suffix_blocks), ("sinks", sinks)):
        if count is not None and type(count) is not int:
            raise UsageError(f"{what}={count!r}: give a whole number")
    base: str | os.PathLike[str] = name
    if adapter in (None, SHIPPED) and str(name).endswith(".safetensors") and Path(name).expanduser().is_file():
        adapter, base = name, base_of(name)
    checkpoint = load_checkpoint(resolve(Path(base) if isinstance(base, os.PathLike) else base))
    config, state, fingerprint = checkpoint.config, checkpoint.state, checkpoint.fingerprint
    reading: dict[str, Any] = {"window": config.window or 2048, "chunk": 1024, "sinks": config.sinks}
    trained_as = checkpoint.manifest.get("source", {}).get("reading", {})  # of a model that `ttt-docs train` made
    reading |= {field: value for field, value in trained_as.items() if field != "learn"}
    trained = chosen_adapter(adapter, str(base), checkpoint, suffix_blocks, sinks)
    if trained is not None:
        state, fingerprint = adapted(checkpoint, trained)
        config, reading = trained.config, trained.reading.model_dump(exclude={"learn"})
    if not config.suffix_blocks and not config.post_norm and trained is None:  # a baseline stays what it is
        blocks = min(RETROFIT_BLOCKS, config.blocks) if suffix_blocks is None else suffix_blocks
        config, state = retrofit(config, state, blocks, RETROFIT_SINKS if sinks is None else sinks)
        fingerprint = derived_fingerprint(fingerprint, config)
        reading |= RETROFIT_READING | {"sinks": config.sinks}
    elif suffix_blocks not in (None, config.suffix_blocks):
        raise UsageError(
            f"{trained.path if trained else name} was trained with {config.suffix_blocks} suffix blocks: "
            "leave suffix_blocks out"
        )
    if chosen.get("inner_rule") == "sgd" and chosen.get("inner_lr") is None:
        chosen["inner_lr"] = 1.0
    with naming_the_values():
        parameters = ReadingConfig(**reading | {key: value for key, value in chosen.items() if value is not None})
    model = build_decoder(config, state, where, numbers)
    full = full_name(str(name), checkpoint.manifest)
    origin = Base(checkpoint.config, checkpoint.fingerprint)
    return Pretrained(full, model, parameters, checkpoint.folder, fingerprint, origin)
