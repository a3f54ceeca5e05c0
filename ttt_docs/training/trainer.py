"""A training run from recipe to exported model: data, steps, validation, checkpoints, log (METHOD section 4).

The same call works alone and in each process that torchrun starts. What a run computes is a function of its recipe and
data: killed anywhere and started again, it goes on from its last checkpoint to the same losses.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ttt_docs.errors import TTTDocsError, UsageError
from ttt_docs.io import Interrupt
from ttt_docs.model.config import ReadingConfig
from ttt_docs.text.tokenizer import Tokenizer
from ttt_docs.training import checkpoint
from ttt_docs.training.evaluation import validation_loss
from ttt_docs.training.export import export
from ttt_docs.training.processes import Processes, processes
from ttt_docs.training.recipe import Recipe
from ttt_docs.training.record import Record, plot, read_log
from ttt_docs.training.schedule import inner_lr_scale, learning_rate
from ttt_docs.training.sequences import Sequences
from ttt_docs.training.shards import Shards, build_shards, shards_folder, wait_for_shards
from ttt_docs.training.sources import find_sources
from ttt_docs.training.start import Start, check_vocabulary, config_of, start_of, tokenizer_folder
from ttt_docs.training.weights import Weights, gather_prime_mlps, prepare
from ttt_docs.weights.loading import best_dtype
from ttt_docs.weights.registry import cache_folder


@dataclass(frozen=True)
class Data:
    """What a run reads."""

    train: Sequences
    shards: Shards
    valid: Sequences | None
    tokenizer: Path


@dataclass(frozen=True)
class Plan:
    """What a run is about to do, for people and for `--json`."""

    steps: int
    tokens: int  # in training sequences, over all steps
    sequences: int  # different ones there are
    documents: int  # that those lie in
    left_out: int  # documents shorter than a sequence
    epochs: float
    resumes_at: int  # 0: from the start


@dataclass(frozen=True)
class Trained:
    """A finished run."""

    folder: Path
    exported: Path  # a model folder, or adapter.safetensors
    steps: int
    tokens: int
    loss: float  # of the last step, nats per token
    valid_loss: float | None
    seconds: float  # of this call


def train(recipe: Recipe, *, progress: bool = True, announce: Callable[[Plan], None] | None = None) -> Trained:
    """Runs `recipe` to its end, from its last checkpoint if there is one. `announce` is called before the first step.

    Raises:
        UsageError: sizes that cannot work with this data, tokenizer, model or number of processes.
        DocumentError: training data that cannot be read, or without one long enough document.
        CheckpointError: weights that cannot be found, or a run folder that belongs to another recipe.
        TTTDocsError: a loss that is not a number; a full disk.
        KeyboardInterrupt: Ctrl-C, after the step it came in; a checkpoint was made.
    """
    with processes(recipe.compute.device) as here:
        return _train(recipe, here, progress and here.first, announce if here.first else None)


def prepare_data(recipe: Recipe, here: Processes, progress: bool) -> Data:
    """The recipe's documents as sequences, tokenized unless that was done before.

    Raises:
        UsageError: no documents named, or names that are nothing.
        DocumentError: documents that cannot be read, or of which none is long enough.
    """
    if not recipe.data.train:
        raise UsageError(f"recipe {recipe.name} names no documents: add data.train=FILE, FOLDER or DATASET")
    folder = tokenizer_folder(recipe)
    tokenizer = Tokenizer(folder)
    root = Path(recipe.data.folder).expanduser() if recipe.data.folder else cache_folder() / "data"

    def shards_of(named: tuple[str, ...]) -> Shards:
        sources = find_sources(named, recipe.data.field, recipe.data.subset, recipe.data.split)
        where = shards_folder(root, sources, folder, recipe.sequence + 1)
        if here.local_rank:
            return wait_for_shards(where)
        return build_shards(where, sources, tokenizer, recipe.sequence + 1, progress)

    shards = shards_of(recipe.data.train)
    valid = shards_of(recipe.data.valid) if recipe.data.valid else None
    return Data(
        Sequences(shards, recipe.sequence), shards, None if valid is None else Sequences(valid, recipe.sequence), folder
    )


def reading_of(recipe: Recipe, weights: Weights) -> ReadingConfig:
    """How the model in training reads at this moment: with its learned rates, and not at all for mode `none`."""
    changes: dict[str, Any] = {"learn": recipe.mode != "none"}
    if weights.inner_lr is not None:
        changes["inner_lr_factors"] = tuple(weights.inner_lr.flatten().tolist())
    return recipe.reading.model_copy(update=changes)


def _train(recipe: Recipe, here: Processes, progress: bool, announce: Callable[[Plan], None] | None) -> Trained:
    began = time.perf_counter()
    own = recipe.batch // here.count
    if recipe.batch % here.count or own % recipe.compute.micro_batch:
        raise UsageError(
            f"a batch of {recipe.batch} sequences cannot be divided between {here.count} processes in pieces of "
            f"{recipe.compute.micro_batch}: change batch, compute.micro_batch or the number of processes"
        )
    data = prepare_data(recipe, here, progress)
    check_vocabulary(Tokenizer(data.tokenizer), config_of(recipe))
    start = start_of(recipe)
    steps = recipe.steps or len(data.train) // recipe.batch
    if not steps:
        raise UsageError(f"the data has {len(data.train)} sequences, less than one batch ({recipe.batch})")
    facts = {
        "recipe": recipe.identity(),
        "data": data.shards.sha256,
        "base": None if start.base is None else start.base.fingerprint,
    }
    run = recipe.folder
    found = checkpoint.saved_checkpoints(run)
    if found:
        checkpoint.check_same_run(found[-1], facts, recipe)
    if announce is not None:
        done = found[-1].step if found else 0
        tokens, epochs = steps * recipe.tokens_per_step, steps * recipe.batch / len(data.train)
        announce(Plan(steps, tokens, len(data.train), data.shards.documents, data.shards.left_out, epochs, done))
    weights = prepare(recipe, start.config, start.state, _dtype(recipe, here), here, start.inner_lr_factors)
    optimizer = checkpoint.optimizer_of(recipe, weights)
    if found:
        checkpoint.load(found[-1], weights, optimizer)
    if here.first:
        run.mkdir(parents=True, exist_ok=True)
    here.wait()
    valid_loss = _steps(recipe, here, data, facts, steps, found, weights, optimizer, progress)
    here.wait()
    best = checkpoint.best_of(checkpoint.saved_checkpoints(run))
    if recipe.checkpoint.export == "best" and best is not None:
        checkpoint.load(best, weights, optimizer)
    exported = _export(recipe, here, start, data, weights, steps)
    here.wait()
    if here.first:
        plot(run)
    last = next(line for line in reversed(read_log(run)) if "loss" in line)
    tokens = steps * recipe.tokens_per_step
    return Trained(run, exported, steps, tokens, last["loss"], valid_loss, time.perf_counter() - began)


def _steps(
    recipe: Recipe, here: Processes, data: Data, facts: dict[str, Any], steps: int, found: list[checkpoint.Saved],
    weights: Weights, optimizer: torch.optim.Optimizer, progress: bool,
) -> float | None:  # fmt: skip
    """All steps that are left, with what happens between them; returns the last validation loss."""
    run, kept = recipe.folder, recipe.checkpoint
    first = found[-1].step if found else 0
    record = Record(run, first) if here.first else None
    valid_loss = found[-1].score if found and first == steps and data.valid is not None else None
    since: list[float] = []
    with (
        Interrupt() as interrupt,
        tqdm(initial=first, total=steps, unit="step", disable=None if progress else True) as bar,
    ):
        for step in range(first + 1, steps + 1):
            line = _step(recipe, here, data, step, steps, weights, optimizer, interrupt)
            stop = line.pop("stop")
            since.append(line["loss"])
            if record is not None:
                record.add(line)
            bar.set_postfix(loss=f"{line['loss']:.4f}", tok_s=f"{line['tokens_per_second']:.0f}", refresh=False)
            bar.update()
            score = None
            if data.valid is not None and (step == steps or (kept.evaluate_every and step % kept.evaluate_every == 0)):
                score, chunks = _validate(recipe, here, data, weights)
                valid_loss = score
                if record is not None:
                    record.add({"step": step, "valid_loss": score, "valid_chunk_losses": chunks})
            if stop or step == steps or step % kept.every == 0 or score is not None:
                if data.valid is None:
                    score = sum(since) / len(since)
                checkpoint.save(run, step, score, facts, weights, optimizer, here)
                since = []
                if here.first:
                    checkpoint.remove_old(run, kept.keep)
            if stop and step < steps:
                raise KeyboardInterrupt(
                    f"stopped after step {step:,} of {steps:,}; the same command goes on from there"
                )
    if record is not None:
        record.close()
    return valid_loss


def _step(
    recipe: Recipe, here: Processes, data: Data, step: int, steps: int, weights: Weights,
    optimizer: torch.optim.Optimizer, interrupt: Interrupt,
) -> dict[str, Any]:  # fmt: skip
    """One update, on this process's part of the batch; returns the line for the log."""
    began = time.perf_counter()
    chosen, size = recipe.optimizer, recipe.compute.micro_batch
    lr = learning_rate(step - 1, steps, chosen.lr, chosen.final_lr, chosen.warmup)
    scale = inner_lr_scale(step - 1, steps, chosen.inner_warmup_from, chosen.inner_warmup)
    mine = np.split(data.train.batch(step - 1, recipe.batch, recipe.seed), here.count)[here.rank]
    pieces = np.split(mine, len(mine) // size)
    sums: torch.Tensor | None = None
    for piece in pieces:
        tokens = torch.from_numpy(data.train.take(piece)).to(here.device)
        outer = weights.objective(tokens, scale, weights.inner_lr)
        outer.loss.backward()
        weights.collect_gradients()
        measured = torch.stack([outer.chunk_losses.mean(0), outer.grad_norms.mean(0)]).double()
        sums = measured if sums is None else sums + measured
    assert sums is not None
    chunk_losses, inner_norms = here.mean(sums / len(pieces))
    weights.average_gradients(here, len(pieces))
    norm = weights.gradient_norm(here)
    stop = here.sum(torch.tensor(float(interrupt.requested), device=here.device))
    loss = chunk_losses.mean().item()
    if not np.isfinite(loss) or not bool(norm.isfinite()):
        raise TTTDocsError(
            f"step {step:,}: the loss ({loss:.4g}) or its gradient ({float(norm):.4g}) is not a number any more. "
            "Nothing of it was kept; the last checkpoint is whole. Try a smaller optimizer.lr or reading.inner_lr"
        )
    if chosen.clip:
        for master in weights.masters.values():
            if master.grad is not None:
                master.grad.mul_((chosen.clip / norm.clamp_min(chosen.clip)).item())
    for group in optimizer.param_groups:
        group["lr"] = lr * group["factor"]
    optimizer.step()
    weights.clear_gradients()
    weights.publish()
    seconds = time.perf_counter() - began
    line: dict[str, Any] = {
        "step": step,
        "loss": loss,
        "grad_norm": float(norm),
        "lr": lr,
        "inner_lr_scale": scale,
        "tokens": step * recipe.tokens_per_step,
        "tokens_per_second": recipe.tokens_per_step / seconds,
        "seconds": seconds,
        "chunk_losses": chunk_losses.tolist(),
        "inner_norms": inner_norms.tolist(),
        "stop": bool(stop > 0),
    }
    if weights.inner_lr is not None:
        line["inner_lr_factors"] = weights.inner_lr.flatten().tolist()
    return line


def _validate(recipe: Recipe, here: Processes, data: Data, weights: Weights) -> tuple[float, list[float]]:
    assert data.valid is not None
    indices = data.valid.spread(recipe.checkpoint.evaluate_sequences)
    if weights.sharded:
        weights.objective.unshard()  # type: ignore[operator]
        gather_prime_mlps(weights.model)
    result = validation_loss(weights.model, data.valid, indices, reading_of(recipe, weights), here)
    if weights.sharded:
        weights.objective.reshard()  # type: ignore[operator]
    return result


def _export(recipe: Recipe, here: Processes, start: Start, data: Data, weights: Weights, steps: int) -> Path:
    provenance = {
        "recipe": _without_folders(recipe.identity()),
        "data": data.shards.sha256,
        "documents": data.shards.documents,
        "steps": steps,
        "tokens": steps * recipe.tokens_per_step,
        "seed": recipe.seed,
        "commit": _commit(),
    } | ({"after": start.provenance} if start.provenance else {})
    reading = reading_of(recipe, weights)
    trained = {name: tensor for name, tensor in weights.state() if here.first}
    return export(recipe, start, reading, trained, data.tokenizer, provenance) if here.first else recipe.folder


def _without_folders(identity: dict[str, Any]) -> dict[str, Any]:
    """A recipe as others may see it: of files on this machine the names alone."""

    def name(value: str) -> str:
        return Path(value).name if Path(value).expanduser().is_absolute() or Path(value).exists() else value

    data, model = identity["data"], identity["model"]
    files = {key: [name(value) for value in data[key]] for key in ("train", "valid")}
    start = {key: model[key] and name(model[key]) for key in ("pretrained", "adapter")}
    return identity | {"data": data | files, "model": model | start}


def _commit() -> str:
    """sha256 over this package's source files: it names the code where there is no repository, as in a wheel."""
    root, digest = Path(__file__).resolve().parents[1], hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _dtype(recipe: Recipe, here: Processes) -> torch.dtype:
    chosen = recipe.compute.dtype
    return best_dtype(here.device) if chosen == "auto" else getattr(torch, chosen)
