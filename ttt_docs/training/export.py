"""What a run leaves behind for readers: an adapter for its base model, or a model folder of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ttt_docs.model.config import ReadingConfig
from ttt_docs.training.recipe import Recipe
from ttt_docs.training.start import Start
from ttt_docs.training.weights import INNER_LR
from ttt_docs.weights.adapter import save_adapter
from ttt_docs.weights.converted import copy_tokenizer, write_checkpoint
from ttt_docs.weights.parameters import State, WeightSource


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
        save_adapter(
            path,
            trained,
            base=recipe.model.pretrained,
            base_fingerprint=start.base.fingerprint,
            config=start.config,
            reading=reading,
            provenance=provenance,
        )
        return path
    folder = recipe.folder / "model"
    state = start.state | trained

    config = start.config.model_copy(update={"name": recipe.name})
    dtypes = {name: tensor.dtype for name, tensor in state.items()}
    source = WeightSource(
        config, dtypes, lambda name: state[name].detach(), "training", (), lambda to: copy_tokenizer(tokenizer, to)
    )
    if (folder / "manifest.json").is_file():  # an earlier export of the same run
        (folder / "manifest.json").unlink()
    return write_checkpoint(
        folder, source, {"reading": reading.model_dump(mode="json"), "training": provenance}, progress=False
    )
