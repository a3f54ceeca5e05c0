"""Options that several commands share, and how commands are put together from them."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ttt_docs.errors import UsageError
from ttt_docs.io import check_writable

Command = Callable[..., Any]
Decorator = Callable[[Command], Command]

DEFAULT_MODEL = "smollm2-135m"


def examples(*calls: str, more: str = "") -> str:
    """The end of a command's help: calls to copy, and what is to be said after them."""
    return "\n".join(["\b\nExample:", *(f"  {call}" for call in calls)]) + (f"\n\n{more}" if more else "")


def number(name: str, help: str, least: int = 1, metavar: str = "N", **settings: Any) -> Decorator:
    """An option that is a whole number of at least `least`."""
    return click.option(name, type=click.IntRange(min=least), metavar=metavar, help=help, **settings)


def output_file(*names: str, help: str, metavar: str = "FILE", **settings: Any) -> Decorator:
    """An option that is a file to write. One that cannot be written is refused before any work is done."""

    def checked(context: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
        if path is not None:
            check_writable(path)
        return path

    kind = click.Path(path_type=Path)
    return click.option(*names, type=kind, metavar=metavar, help=help, callback=checked, **settings)


def keep_sources(target: str | Path | None, *sources: str | Path | None) -> None:
    """Raises UsageError if writing `target` would replace one of the files that are to be read."""
    for source in sources:
        if target is None or source is None or not os.path.exists(target) or not os.path.exists(source):
            continue
        if os.path.samefile(target, source):
            raise UsageError(f"{target} is what is to be read: it would be replaced. Give another name")


def gathered(name: str, *options: Decorator) -> Decorator:
    """Several options as one. A command gets those that were given as a dict, the argument `name`."""

    def decorate(command: Command) -> Command:
        def bare() -> None: ...

        for option in reversed(options):
            option(bare)
        parameters: list[click.Parameter] = bare.__click_params__  # type: ignore[attr-defined]

        @functools.wraps(command)
        def run(**values: Any) -> Any:
            found = {parameter.name: values.pop(parameter.name) for parameter in parameters if parameter.expose_value}
            given = {key: value for key, value in found.items() if value not in (None, ())}
            return command(**values, **{name: given})

        run.__click_params__ = [*getattr(command, "__click_params__", ()), *parameters]  # type: ignore[attr-defined]
        return run

    return decorate


quiet_option = click.option(
    "-q",
    "--quiet",
    is_flag=True,
    expose_value=False,
    callback=lambda context, parameter, value: context.meta.update(quiet=value),
    help="No progress and no notes, only errors.",
)
password_option = click.option("--password", metavar="TEXT", help="Opens an encrypted PDF.")
model_option = click.option(
    "-m",
    "--model",
    metavar="MODEL",
    help=f"Registry name, folder, .gguf file or Hugging Face id.  [default: the memory's, else {DEFAULT_MODEL}]",
)
dtype_option = click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    help="Number format of the products.  [default: what the hardware is best at]",
)
#: For `opening.open_reader` and `opening.open_memory`.
opening_options = gathered(
    "opening",
    model_option,
    click.option("--device", metavar="DEVICE", default="cpu", help="cpu, cuda, cuda:1."),
    dtype_option,
)
#: For `TTTReader.from_pretrained`.
reading_options = gathered(
    "reading",
    number("--window", "How far attention sees back.", metavar="TOKENS"),
    number("--chunk", "Tokens per update of the fast weights.", metavar="TOKENS"),
    click.option("--inner-rule", type=click.Choice(["sgd", "normalized", "balanced"]), help="Rule of the updates."),
    click.option("--inner-lr", type=click.FloatRange(0, 1000), metavar="NUMBER", help="Learning rate of the updates."),
    click.option(
        "--no-learn",
        "learn",
        is_flag=True,
        callback=lambda context, parameter, value: False if value else None,
        help="Read with the window alone, never update.",
    ),
)

ROUTES = click.Choice(["auto", "lookup", "whole", "memory"])
