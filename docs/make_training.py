"""Writes the tables of docs/training.md (recipes, keys) from the recipes and their schema.

python docs/make_training.py
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from pydantic import BaseModel  # noqa: E402

from ttt_docs.training.recipe import Recipe, load_recipe, recipe_names  # noqa: E402

START, END = "<!-- tables: made by docs/make_training.py -->", "<!-- end of tables -->"


SIZES, LENGTHS = ("125m", "350m", "760m", "1.3b", "3b"), ("16k", "32k", "64k", "128k")
HEADS = (
    "| SIZE | steps at 8K | sequences a step | lr | steps of an extension | sequences a step at 16K, 32K, 64K, 128K |",
    "| Recipe | mode | trains | tokens of a sequence | sequences a step | steps | lr | inner lr |",
    "| Key | Default | Meaning |",
)


def tables() -> str:
    """The published runs by size, the other recipes, then every key."""
    published = {f"{full}{run}" for full in ("", "full-") for size in SIZES for run in _runs(size)}
    others = [name for name in recipe_names() if name not in published]
    rows = [_size(size) for size in SIZES], [_recipe(name) for name in others], list(_keys(Recipe))
    rules = ["|" + "---|" * (head.count("|") - 1) for head in HEADS]
    return "\n\n".join("\n".join([head, rule, *body]) for head, rule, body in zip(HEADS, rules, rows, strict=True))


def _runs(size: str) -> list[str]:
    return [f"pretrain-{size}", *(f"extend-{size}-{length}" for length in LENGTHS)]


def _size(size: str) -> str:
    first, *longer = (load_recipe(name) for name in _runs(size))
    for name, recipe in zip(_runs(size), (first, *longer), strict=True):
        full = load_recipe(f"full-{name}")  # the row is for both
        assert (full.steps, full.batch, full.optimizer) == (recipe.steps, recipe.batch, recipe.optimizer)
    (steps,) = {recipe.steps for recipe in longer}
    batches = ", ".join(str(recipe.batch) for recipe in longer)
    return f"| {size} | {first.steps:,} | {first.batch} | {first.optimizer.lr:g} | {steps:,} | {batches} |"


def _recipe(name: str) -> str:
    r = load_recipe(name)
    steps = "one epoch" if r.steps is None else f"{r.steps:,}"
    inner = f"{r.reading.inner_lr:g}"
    if r.optimizer.inner_warmup:
        inner += f", from {r.optimizer.inner_warmup_from:g} of it over {r.optimizer.inner_warmup:.0%} of the steps"
    return f"| `{name}` | {r.mode} | {r.trains} | {r.sequence:,} | {r.batch} | {steps} | {r.optimizer.lr:g} | {inner} |"


def _keys(model: type[BaseModel], path: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _keys(kind, f"{path}{name}.")
            continue
        default = "" if field.is_required() else f"`{field.get_default(call_default_factory=True)}`"
        yield f"| `{path}{name}` | {default} | {(field.description or '').replace('|', ' or ')} |"


def page(text: str) -> str:
    """The page `text` with current tables."""
    before, _, rest = text.partition(START)
    return f"{before}{START}\n\n{tables()}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    target = HERE / "training.md"
    target.write_text(page(target.read_text("utf-8")), "utf-8")
