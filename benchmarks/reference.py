"""Reference outputs of the published method (docs/method.md section 7): tiny models with their losses and gradients.

`published.py` has the layout of their parameters.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ttt_docs.errors import CheckpointError
from ttt_docs.model.config import ModelConfig, ReadingConfig
from ttt_docs.weights.parameters import State, compare_shapes, parameter_shapes
from ttt_docs.weights.published import configs_from_published, published_layout, rows_of


@dataclass(frozen=True)
class Reference:
    """One reference file. `tokens` is `[T + 1]`, `token_nll` `[T]` in nats, `grads` has the names of `state`."""

    config: ModelConfig
    reading: ReadingConfig
    state: State
    tokens: torch.Tensor
    token_nll: torch.Tensor
    loss: float
    grads: State
    settings: dict[str, Any]  # the file's own config; settings["train_mode"] is "meta" or "pretrain"


def load_reference(path: str | Path) -> Reference:
    """Read a reference .npz file, weights and gradients under our names.

    Raises:
        CheckpointError: not such a file, or a layout that is not known.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        settings = json.loads(str(arrays["config"]))
        config, reading = configs_from_published(settings)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is not a reference file: {error}") from error

    def group(prefix: str) -> dict[str, np.ndarray]:
        return {name[len(prefix) :]: array for name, array in arrays.items() if name.startswith(prefix)}

    return Reference(
        config=config,
        reading=reading,
        state=state_from_published(config, group("param/")),
        tokens=torch.from_numpy(arrays["tokens"].astype(np.int64)),
        token_nll=torch.from_numpy(arrays["token_nll"]),
        loss=float(arrays["loss"]),
        grads=state_from_published(config, group("grad/")),
        settings=settings,
    )


def state_from_published(config: ModelConfig, arrays: dict[str, np.ndarray]) -> State:
    """Parameters, or gradients with respect to them, from the published layout to our names.

    Raises:
        CheckpointError: arrays missing, left over or of the wrong shape.
    """
    layout = published_layout(config)
    compare_shapes(
        {path: published.shape for path, published in layout.items()},
        {path: array.shape for path, array in arrays.items()},
        config.name,
    )
    state = {name: torch.empty(shape) for name, shape in parameter_shapes(config).items()}
    for path, published in layout.items():
        array = torch.from_numpy(np.array(arrays[path]))
        stacked = published.parts[0].block is not None
        for entry, part in zip(array if stacked else [array], published.parts, strict=True):
            rows = rows_of(entry, part)
            state[part.name][part.row : part.row + len(rows)] = rows
    return state
