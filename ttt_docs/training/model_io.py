"""The model that a run starts from, its tokenizer, and what the run leaves for readers.

A run starts from random weights, from a checkpoint, or from a plain model that gets prime MLPs (retrofit). It leaves an
adapter for its base model, or a model folder of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ttt_docs.errors import UsageError
from ttt_docs.model.config import ModelConfig, ReadingConfig
from ttt_docs.model.decoder import Decoder
from ttt_docs.text.tokenizer import Tokenizer
from ttt_docs.training.parallel import INNER_LR
from ttt_docs.training.recipe import Recipe, changed_config
from ttt_docs.weights import fetch
from ttt_docs.weights.adapter import Adapter, adapted, load_adapter, save_adapter
from ttt_docs.weights.converted import Checkpoint, copy_tokenizer, load_checkpoint, write_checkpoint
from ttt_docs.weights.loading import retrofit
from ttt_docs.weights.parameters import State, check_state, state_source
from ttt_docs.weights.registry import resolve

#: A tokenizer with one token for each byte of UTF-8, after three special ones (259 in all).
BYTE_TOKENIZER = Path(__file__).parent / "byte_tokenizer"


@dataclass(frozen=True)
class Start:
    """A model before its training. `base` is what it was made from (None: random weights)."""

    config: ModelConfig
    state: State
    base: Checkpoint | None
    inner_lr_factors: tuple[float, ...] = ()  # learned before
    provenance: dict[str, Any] = field(default_factory=dict)  # of the run before


def start_of(recipe: Recipe) -> Start:
    """Weights as the recipe says: float32 where random, else in the dtype they are stored in.

    Raises:
        CheckpointError: weights that cannot be found or read.
        UsageError: weights of another architecture than the recipe's.
    """
    chosen = recipe.model
    if chosen.pretrained is None:
        config = recipe.architecture()
        model = Decoder(config).initialize(torch.Generator().manual_seed(recipe.seed))
        state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
        if not chosen.attention:
            for index in range(config.blocks):
                state[f"blocks.{index}.attention.wo.weight"].zero_()
        return Start(config, state, None)
    base, wanted = load_checkpoint(resolve(chosen.pretrained)), chosen.suffix_blocks
    adapter = None if chosen.adapter is None else load_adapter(chosen.adapter)
    known, state = (base.config, base.state) if adapter is None else (adapter.config, adapted(base, adapter)[0])
    longest = max(recipe.sequence, known.max_positions)
    config = changed_config(known.model_dump() | {"max_positions": longest} | chosen.changes)
    if adapter is not None:
        if (recipe.mode != "none") != bool(config.suffix_blocks) or wanted not in (None, config.suffix_blocks):
            raise UsageError(
                f"{adapter.path} has {config.suffix_blocks} suffix blocks: leave model.suffix_blocks out, and choose a "
                "mode for that"
            )
        return Start(config, state, base, adapter.reading.inner_lr_factors, adapter.provenance)
    if chosen.config is not None:
        check_state(recipe.architecture(), state, f"{chosen.pretrained} (the recipe wants {chosen.config})")
    check_state(config, state, chosen.pretrained)
    if recipe.mode != "none" and not config.suffix_blocks:
        blocks = wanted if isinstance(wanted, int) else 8
        config, state = retrofit(config, state, min(blocks, config.blocks), recipe.reading.sinks)
    elif isinstance(wanted, int) and wanted not in (0, config.suffix_blocks):
        raise UsageError(f"{chosen.pretrained} has {config.suffix_blocks} suffix blocks, not {wanted}")
    return Start(config, state, base)


def config_of(recipe: Recipe) -> ModelConfig:
    """The architecture that a recipe trains. No weights are opened if `model.config` says it.

    Raises as `start_of`.
    """
    if recipe.model.config is not None:
        return recipe.architecture()
    with torch.device("meta"):
        return start_of(recipe).config


def export(
    recipe: Recipe, start: Start, reading: ReadingConfig, trained: State, tokenizer: Path, provenance: dict[str, Any]
) -> Path:
    """Writes `adapter.safetensors` if the recipe trains one, else the folder `model`; returns which.

    Both read with the recipe's inner loop from then on; learned inner rates are in `reading`.
    """
    trained = {name: tensor for name, tensor in trained.items() if name != INNER_LR}
    if recipe.trains != "all" and start.base is not None:
        path = recipe.folder / "adapter.safetensors"
        assert recipe.model.pretrained is not None
        base, fingerprint = recipe.model.pretrained, start.base.fingerprint
        save_adapter(Adapter(path, base, fingerprint, start.config, reading, trained, provenance))
        return path
    folder, state = recipe.folder / "model", start.state | trained
    config = start.config.model_copy(update={"name": recipe.name})
    source = state_source(config, state, "training", write_tokenizer=partial(copy_tokenizer, tokenizer))
    (folder / "manifest.json").unlink(missing_ok=True)  # of an earlier export of the same run
    facts = {"reading": reading.model_dump(mode="json"), "training": provenance}
    return write_checkpoint(folder, source, facts, progress=False)


def tokenizer_folder(recipe: Recipe) -> Path:
    """The folder with the recipe's tokenizer.json, downloaded first if need be.

    Raises:
        UsageError: `model`, where there is no pretrained model.
        CheckpointError: no tokenizer there, or one that cannot be downloaded.
    """
    name = recipe.data.tokenizer
    if name == "bytes":
        return BYTE_TOKENIZER
    if name == "model":
        if recipe.model.pretrained is None:
            raise UsageError(
                "data.tokenizer: a model of random weights has none; give bytes, a folder or a model's name"
            )
        return resolve(recipe.model.pretrained)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    return fetch.download_repository(name, patterns=["tokenizer*"]) if "/" in name else resolve(name)


def check_vocabulary(tokenizer: Tokenizer, config: ModelConfig) -> None:
    """Raises UsageError if the tokenizer has tokens that the model has no row for."""
    if tokenizer.vocab_size > config.vocab_size:
        raise UsageError(
            f"the tokenizer has {tokenizer.vocab_size:,} tokens and the model {config.vocab_size:,}: "
            "set data.tokenizer, or model.changes.vocab_size"
        )
