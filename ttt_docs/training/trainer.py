"""A training run from recipe to exported model: data, steps, validation, checkpoints, log (docs/method.md section 4).

The same call works alone and in each process that torchrun starts. What a run computes is a function of its recipe and
data. Killed anywhere and started again, it goes on from its last checkpoint to the same losses.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ttt_docs.errors import TTTDocsError, UsageError
from ttt_docs.io import Interrupt, cache_folder
from ttt_docs.model.config import ReadingConfig
from ttt_docs.text.tokenizer import Tokenizer
from ttt_docs.training import checkpoint
from ttt_docs.training.data import Sequences, build_shards, find_texts, shards_folder
from ttt_docs.training.model_io import Start, check_vocabulary, config_of, export, start_of, tokenizer_folder
from ttt_docs.training.parallel import Processes, TrainedWeights, gather_prime_mlps, prepare, processes
from ttt_docs.training.recipe import OptimizerRecipe, Recipe
from ttt_docs.training.record import Record, code_identity, plot, read_log
from ttt_docs.ttt.state import ReadingState
from ttt_docs.weights.loading import best_dtype


@dataclass(frozen=True)
class TrainingData:
    """What a run reads."""

    train: Sequences
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


def prepare_data(recipe: Recipe, here: Processes, progress: bool) -> TrainingData:
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

    def sequences(named: tuple[str, ...]) -> Sequences:
        sources = find_texts(named, recipe.data.field, recipe.data.subset, recipe.data.split)
        where = shards_folder(root, sources, folder, recipe.sequence + 1)
        if not here.local_rank:  # one process of each machine tokenizes, the others wait
            return build_shards(where, sources, tokenizer, recipe.sequence + 1, progress)
        while not (where / "manifest.json").is_file():
            time.sleep(0.2)
        return Sequences(where)

    return TrainingData(
        sequences(recipe.data.train), sequences(recipe.data.valid) if recipe.data.valid else None, folder
    )


@dataclass
class _Run:
    """A run in one of its processes."""

    recipe: Recipe
    here: Processes
    data: TrainingData
    start: Start
    steps: int
    facts: dict[str, Any]  # what its checkpoints belong to
    weights: TrainedWeights

    def reading(self) -> ReadingConfig:
        """How the model reads at this moment: with its learned rates, and without updates for mode `none`."""
        changes: dict[str, Any] = {"learn": self.recipe.mode != "none"}
        if self.weights.inner_lr is not None:
            changes["inner_lr_factors"] = tuple(self.weights.inner_lr.flatten().tolist())
        return self.recipe.reading.model_copy(update=changes)


def _train(recipe: Recipe, here: Processes, progress: bool, announce: Callable[[Plan], None] | None) -> Trained:
    began = time.perf_counter()
    own = recipe.batch // here.count
    if recipe.batch % here.count or own % recipe.compute.micro_batch:
        raise UsageError(
            f"a batch of {recipe.batch} sequences cannot be divided between {here.count} processes in pieces of "
            f"{recipe.compute.micro_batch}: change batch, compute.micro_batch or the number of processes"
        )
    _check_folder(recipe.folder)
    data = prepare_data(recipe, here, progress)
    check_vocabulary(Tokenizer(data.tokenizer), config_of(recipe))
    start = start_of(recipe)
    steps = recipe.steps or len(data.train) // recipe.batch
    if not steps:
        raise UsageError(f"the data has {len(data.train)} sequences, less than one batch ({recipe.batch})")
    facts = {
        "recipe": recipe.identity(),
        "data": data.train.sha256,
        "base": None if start.base is None else start.base.fingerprint,
    }
    folder, tokens = recipe.folder, steps * recipe.tokens_per_step
    found = checkpoint.saved_checkpoints(folder)
    if found:
        checkpoint.check_same_run(found[-1], facts, recipe.name)
    if announce is not None:
        epochs = steps * recipe.batch / len(data.train)
        done = found[-1].step if found else 0
        announce(Plan(steps, tokens, len(data.train), data.train.documents, data.train.left_out, epochs, done))
    dtype = best_dtype(here.device) if recipe.compute.dtype == "auto" else getattr(torch, recipe.compute.dtype)
    weights = prepare(recipe, start.config, start.state, dtype, here, start.inner_lr_factors)
    run = _Run(recipe, here, data, start, steps, facts, weights)
    if found:
        checkpoint.load(found[-1], weights)
    if here.first:
        folder.mkdir(parents=True, exist_ok=True)
    here.wait()
    valid_loss = _all_steps(run, found[-1] if found else None, progress)
    here.wait()
    best = checkpoint.best_of(checkpoint.saved_checkpoints(folder))
    if recipe.checkpoint.export == "best" and best is not None:
        checkpoint.load(best, weights)
    exported = _export(run)
    here.wait()
    if here.first:
        plot(folder)
    last = next(line for line in reversed(read_log(folder)) if "loss" in line)
    return Trained(folder, exported, steps, tokens, last["loss"], valid_loss, time.perf_counter() - began)


def _check_folder(folder: Path) -> None:
    """Raises UsageError where `folder` cannot be made because a file is in the way."""
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not os.path.isdir(there):
        raise UsageError(f"the run cannot be kept in {folder}: {there} is not a folder. Give another output=FOLDER")


def _all_steps(run: _Run, last: checkpoint.Saved | None, progress: bool) -> float | None:
    """All steps that are left after the last checkpoint, with what happens between them; returns the last validation
    loss."""
    folder, kept, steps, data = run.recipe.folder, run.recipe.checkpoint, run.steps, run.data
    first = last.step if last else 0
    record = Record(folder, first) if run.here.first else None
    valid_loss = last.score if last and first == steps and data.valid is not None else None
    since: list[float] = []
    bar = tqdm(initial=first, total=steps, unit="step", disable=None if progress else True)
    with Interrupt() as interrupt, bar:
        for step in range(first + 1, steps + 1):
            line = _step(run, step)
            stop = bool(run.here.sum(torch.tensor(float(interrupt.requested), device=run.here.device)))
            since.append(line["loss"])
            if record is not None:
                record.add(line)
            bar.set_postfix(loss=f"{line['loss']:.4f}", tok_s=f"{line['tokens_per_second']:.0f}", refresh=False)
            bar.update()
            score = None
            if data.valid is not None and (step == steps or (kept.evaluate_every and step % kept.evaluate_every == 0)):
                score, chunk_losses = _validate(run, data.valid)
                valid_loss = score
                if record is not None:
                    record.add({"step": step, "valid_loss": score, "valid_chunk_losses": chunk_losses})
            if stop or step == steps or step % kept.every == 0 or score is not None:
                if data.valid is None:
                    score = sum(since) / len(since)
                checkpoint.save(folder, step, score, run.facts, run.weights, run.here)
                since = []
                if run.here.first:
                    checkpoint.remove_old(folder, kept.keep)
            if stop and step < steps:
                raise KeyboardInterrupt(
                    f"stopped after step {step:,} of {steps:,}; the same command goes on from there"
                )
    if record is not None:
        record.close()
    return valid_loss


def _step(run: _Run, step: int) -> dict[str, Any]:
    """One update, on this process's part of the batch; returns the line for the log."""
    began = time.perf_counter()
    recipe, here, weights, train = run.recipe, run.here, run.weights, run.data.train
    chosen, size = recipe.optimizer, recipe.compute.micro_batch
    lr, scale = learning_rate(chosen, step - 1, run.steps), inner_lr_scale(chosen, step - 1, run.steps)
    mine = np.split(train.batch(step - 1, recipe.batch, recipe.seed), here.count)[here.rank]
    pieces = np.split(mine, len(mine) // size)
    measured: list[torch.Tensor] = []
    for piece in pieces:
        outer = weights.objective(torch.from_numpy(train.take(piece)).to(here.device), scale, weights.inner_lr)
        outer.loss.backward()
        weights.collect_gradients()
        measured.append(torch.stack([outer.chunk_losses.mean(0), outer.grad_norms.mean(0)]).double())
    chunk_losses, inner_norms = here.mean(sum(measured[1:], measured[0]) / len(pieces))
    weights.average_gradients(here, len(pieces))
    norm = weights.gradient_norm(here)
    loss = chunk_losses.mean().item()
    if not np.isfinite(loss) or not bool(norm.isfinite()):
        raise TTTDocsError(
            f"step {step:,}: the loss ({loss:.4g}) or its gradient ({float(norm):.4g}) is not a number any more. "
            "Nothing of it was kept; the last checkpoint is whole. Try a smaller optimizer.lr or reading.inner_lr"
        )
    if chosen.clip:
        factor = (chosen.clip / norm.clamp_min(chosen.clip)).item()
        for grad in weights.grads:
            grad.mul_(factor)
    weights.update(lr)
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
    }
    if weights.inner_lr is not None:
        line["inner_lr_factors"] = weights.inner_lr.flatten().tolist()
    return line


def learning_rate(chosen: OptimizerRecipe, step: int, steps: int) -> float:
    """AdamW's learning rate: from 0 linearly to `lr` over the warm-up, then along a cosine to `final_lr` at the end."""
    warm = round(chosen.warmup * steps)
    if step < warm:
        return chosen.lr * step / warm
    progress = (step - warm) / (steps - warm)
    return chosen.final_lr + (chosen.lr - chosen.final_lr) * (1 + math.cos(math.pi * progress)) / 2


def inner_lr_scale(chosen: OptimizerRecipe, step: int, steps: int) -> float:
    """What the inner learning rate is multiplied by: it rises linearly to 1 over the inner loop's warm-up."""
    warm, start = round(chosen.inner_warmup * steps), chosen.inner_warmup_from
    return 1.0 if step >= warm else start + (1 - start) * step / warm


def _validate(run: _Run, valid: Sequences) -> tuple[float, list[float]]:
    """Mean loss of the validation sequences, and the mean of each chunk; nats per token.

    It is measured by reading, as a user of the model would. The sequences are divided between the processes and read
    one by one.
    """
    here, weights, reading = run.here, run.weights, run.reading()
    chunks = valid.length // reading.chunk
    indices = valid.spread(run.recipe.checkpoint.evaluate_sequences)
    if weights.sharded:
        weights.objective.unshard()  # type: ignore[operator]
        gather_prime_mlps(weights.model)
    total = torch.zeros(chunks + 1, dtype=torch.float64)
    for index in indices[here.rank :: here.count]:
        tokens = torch.from_numpy(valid[int(index)]).unsqueeze(0).to(here.device)
        state = ReadingState(weights.model, reading)
        losses = [float(result.loss[0]) for result in state.read_whole(tokens[:, : chunks * reading.chunk + 1])]
        total += torch.tensor([*losses, sum(losses) / chunks], dtype=torch.float64)
    if weights.sharded:
        weights.objective.reshard()  # type: ignore[operator]
    means = (here.sum(total.to(here.device)) / len(indices)).tolist()
    return means[-1], means[:-1]


def _export(run: _Run) -> Path:
    recipe, data, before = run.recipe, run.data.train, run.start.provenance
    trained = {name: tensor for name, tensor in run.weights.state() if run.here.first}
    if not run.here.first:
        return recipe.folder
    provenance = {
        "recipe": _without_folders(recipe.identity()),
        "data": data.sha256,
        "documents": data.documents,
        "steps": run.steps,
        "tokens": run.steps * recipe.tokens_per_step,
        "seed": recipe.seed,
        "code": code_identity(),
    } | ({"after": before} if before else {})
    return export(recipe, run.start, run.reading(), trained, run.data.tokenizer, provenance)


def _without_folders(identity: dict[str, Any]) -> dict[str, Any]:
    """A recipe as others may see it: of files on this machine the names alone."""

    def name(value: str) -> str:
        return Path(value).name if Path(value).expanduser().is_absolute() or Path(value).exists() else value

    data, model = identity["data"], identity["model"]
    files = {key: [name(value) for value in data[key]] for key in ("train", "valid")}
    start = {key: model[key] and name(model[key]) for key in ("pretrained", "adapter")}
    return identity | {"data": data | files, "model": model | start}
