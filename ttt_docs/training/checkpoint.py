"""Checkpoints of a run: masters, AdamW's state, step and random state, by torch.distributed.checkpoint (DCP).

    RUN/checkpoints/step-000100/    .metadata and *.distcp (DCP), run.json: step, score, recipe, data

A checkpoint is written under another name and renamed when complete, so whatever kills the process leaves only whole
ones. Sharded tensors are saved and loaded in parts, by any number of processes.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed import checkpoint as dcp

from ttt_docs.errors import CheckpointError
from ttt_docs.io import write_json
from ttt_docs.training.parallel import Processes, TrainedWeights


@dataclass(frozen=True)
class Saved:
    """A whole checkpoint on disk."""

    folder: Path
    step: int
    score: float | None  # validation loss, or mean training loss since the one before: smaller is better
    facts: Mapping[str, Any]  # what it was made from: recipe, data, base


def save(
    run: Path, step: int, score: float | None, facts: Mapping[str, Any], weights: TrainedWeights, here: Processes
) -> None:
    """Writes the checkpoint of `step`. All processes call it together."""
    folder = run / "checkpoints" / f"step-{step:06d}"
    building = folder.with_name(f".{folder.name}.partial")
    if here.first:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
    here.wait()
    with _explained(f"{folder} cannot be written", "make room on the disk, and start again"):
        dcp.save(_state(weights), checkpoint_id=str(building))
    if here.first:
        write_json(building / "run.json", {"step": step, "score": score, **facts})
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(building, folder)
    here.wait()


def load(saved: Saved, weights: TrainedWeights) -> None:
    """Puts a checkpoint's content into `weights`. All processes call it together."""
    state = _state(weights)
    with _explained(f"{saved.folder} cannot be loaded", "remove it, and the run goes on from the one before"):
        dcp.load(state, checkpoint_id=str(saved.folder))
    torch.set_rng_state(state["random"])
    weights.publish()


def saved_checkpoints(run: Path) -> list[Saved]:
    """The whole checkpoints of a run, oldest first."""
    found = []
    for file in (run / "checkpoints").glob("step-*/run.json"):
        facts = json.loads(file.read_text("utf-8"))
        found.append(Saved(file.parent, facts.pop("step"), facts.pop("score"), facts))
    return sorted(found, key=lambda saved: saved.step)


def best_of(found: list[Saved]) -> Saved | None:
    """The one with the smallest score, the newer of equals."""
    scored = [saved for saved in found if saved.score is not None]
    return min(reversed(scored), key=lambda saved: saved.score or 0.0, default=None)


def remove_old(run: Path, keep: int) -> None:
    """Keeps the newest `keep` checkpoints and the best."""
    found = saved_checkpoints(run)
    best = best_of(found)
    for saved in found[:-keep]:
        if saved != best:
            (saved.folder / "run.json").unlink()  # first, so that an interrupted removal leaves nothing whole
            shutil.rmtree(saved.folder, ignore_errors=True)


def check_same_run(saved: Saved, facts: Mapping[str, Any], name: str) -> None:
    """Raises CheckpointError, naming what differs, if a checkpoint is of another recipe, data or base model than the
    run called `name`."""
    here = json.loads(json.dumps(facts))
    other = [part for part in here if saved.facts.get(part) != here[part]]
    if other:
        differ = [line for part in other for line in _differences(saved.facts.get(part), here[part], part)]
        raise CheckpointError(
            f"{saved.folder} was made from another {' and '.join(other)} than {name} is: {'; '.join(differ[:6])}. "
            "Give another output= folder, or remove that one"
        )


def _differences(there: Any, here: Any, path: str) -> list[str]:
    if isinstance(there, dict) and isinstance(here, dict):
        keys = sorted(there.keys() | here.keys())
        return [line for key in keys for line in _differences(there.get(key), here.get(key), f"{path}.{key}")]
    return [] if there == here else [f"{path} is {str(there)[:80]} there and {str(here)[:80]} here"]


@contextmanager
def _explained(what: str, advice: str) -> Iterator[None]:
    """Turns DCP's errors into a sentence. They hold what each process met, and are no subclass of Exception."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is one process only
            yield
    except (Exception, dcp.api.CheckpointException) as error:
        met = [cause for cause, _ in getattr(error, "failures", {}).values()] or [error]
        raise CheckpointError(f"{what} ({met[0]!r}): {advice}") from error


def _state(weights: TrainedWeights) -> dict[str, Any]:
    """What a checkpoint holds; tensors in place, for DCP to write from and to read into."""
    return {
        "weights": {name: master.detach() for name, master in weights.masters.items()},
        "optimizer": {name: dict(weights.optimizer.state[master]) for name, master in weights.masters.items()},
        "random": torch.get_rng_state(),
    }
