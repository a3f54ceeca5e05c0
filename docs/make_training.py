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


def tables() -> str:
    """The recipes, then every key."""
    head = "| Recipe | mode | sequence | sequences a step | steps | lr | inner lr |\n|---|---|---|---|---|---|---|"
    return "\n".join(
        [head, *map(_recipe, recipe_names()), "", "| Key | Default | Meaning |", "|---|---|---|", *_keys(Recipe)]
    )


def _recipe(name: str) -> str:
    r = load_recipe(name)
    steps = "one epoch" if r.steps is None else f"{r.steps:,}"
    inner = f"{r.reading.inner_lr:g}" if r.mode != "none" else ""
    if inner and r.optimizer.inner_warmup:
        inner += f", from {r.optimizer.inner_warmup_from:g} of it over {r.optimizer.inner_warmup:.0%}"
    mode = r.mode if r.trains == "all" else f"{r.mode}, {r.trains}"
    return f"| `{name}` | {mode} | {r.sequence:,} | {r.batch} | {steps} | {r.optimizer.lr:g} | {inner} |"


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
