"""`ttt-docs train`: a recipe to a trained model."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from ttt_docs.errors import UsageError
from ttt_docs.io import readable_bytes as size
from ttt_docs_cli.options import examples, quiet_option
from ttt_docs_cli.output import Result, duration, note, quiet, table, with_json

if TYPE_CHECKING:
    from ttt_docs.training.recipe import Recipe
    from ttt_docs.training.trainer import Plan


@click.command(
    epilog=examples(
        "ttt-docs train smollm2-135m-adapt data.train=books/ steps=200",
        "ttt-docs train pretrain-125m --dry-run",
        "torchrun --nproc-per-node 8 -m ttt_docs_cli train my.yaml compute.parallel=sharded",
        more="""RECIPE is a .yaml file or a name that --list shows. key=value changes what the recipe says, such as
optimizer.lr=1e-3 or 'data.train=[books/*.jsonl.zst]'. The same command goes on where a run was stopped. See
docs/training.md.""",
    )
)
@click.argument("recipe", required=False)
@click.argument("changes", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--list", "list_", is_flag=True, help="Print the recipes that ship with the package.")
@click.option("--show", is_flag=True, help="Print the recipe with its changes as YAML; train nothing.")
@click.option("--dry-run", is_flag=True, help="Print parameters, tokens, FLOPs and memory per process; train nothing.")
@quiet_option
@with_json
def train(recipe: str | None, changes: tuple[str, ...], list_: bool, show: bool, dry_run: bool) -> Result:
    """Train the initialization that reading starts from, by a recipe.

    A run leaves in its folder (output=, else runs/NAME) the trained model or adapter, checkpoints, log.jsonl,
    TensorBoard events and loss.png.
    """
    from ttt_docs.training.recipe import load_recipe, recipe_names

    if list_:
        names = recipe_names()
        return Result({"recipes": names}, "\n".join(names))
    if recipe is None:
        raise UsageError("give a recipe: a .yaml file, or a name that `ttt-docs train --list` shows")
    chosen = load_recipe(recipe, changes)
    if show:
        import yaml

        values = chosen.model_dump(mode="json")
        return Result(values, yaml.safe_dump(values, sort_keys=False).rstrip())
    return _estimate(chosen) if dry_run else _train(chosen)


def _estimate(recipe: Recipe) -> Result:
    from ttt_docs.training.budget import budget_of
    from ttt_docs.training.model_io import config_of

    count = int(os.environ.get("WORLD_SIZE", "1"))
    budget = budget_of(recipe, config_of(recipe), count, 4 if recipe.compute.dtype == "float32" else 2)
    counted = "one epoch of the data, which training counts first"
    steps = counted if recipe.steps is None else f"{recipe.steps:,} of {recipe.batch} x {recipe.sequence:,} tokens"
    rows: list[tuple[str, object]] = [
        ("recipe", f"{recipe.name}, mode {recipe.mode}, trains {recipe.trains}"),
        ("parameters", f"{budget.parameters:,}, {budget.trained:,} of them trained, {budget.fast:,} fast weights"),
        ("steps", steps),
    ]
    if budget.tokens is not None and budget.flops is not None:
        rows += [("tokens", f"{budget.tokens:,}"), ("FLOPs", f"{budget.flops:.3g}")]
    rows += [("FLOPs per token", f"{budget.flops_per_token:.3g}")]
    rows += [("memory per GPU", f"{size(budget.memory['total'])} (estimated, {count} process{'es' * (count > 1)})")]
    parts = [(key.replace("_", " "), size(value)) for key, value in budget.memory.items() if key != "total"]

    def words() -> None:
        table(rows)
        table(parts, indent="  ")

    return Result(vars(budget) | {"name": recipe.name, "steps": recipe.steps, "processes": count}, words)


def _train(recipe: Recipe) -> Result:
    from ttt_docs.training.trainer import train as run

    def announce(plan: Plan) -> None:
        note(
            f"{recipe.name}: {plan.steps:,} steps, {plan.tokens:,} tokens ({plan.epochs:.2f} epochs) from "
            f"{plan.sequences:,} sequences of {plan.documents:,} documents; {plan.left_out:,} documents are shorter "
            f"than a sequence and left out" + (f"; going on after step {plan.resumes_at:,}" if plan.resumes_at else "")
        )

    done = run(recipe, progress=not quiet(), announce=announce)
    if int(os.environ.get("RANK", "0")):
        click.get_current_context().exit()  # process 0 speaks for all
    valid = "" if done.valid_loss is None else f", validation loss {done.valid_loss:.4f}"
    return Result(done, f"{done.exported}: {done.steps:,} steps, loss {done.loss:.4f}{valid}, {duration(done.seconds)}")
