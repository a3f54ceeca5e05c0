"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

DEFAULT_MODEL = "smollm2-135m"

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for programs.")
quiet_option = click.option("-q", "--quiet", is_flag=True, help="No progress and no notes, only errors.")
password_option = click.option("--password", metavar="TEXT", help="Opens an encrypted PDF.")

model_option = click.option(
    "-m",
    "--model",
    metavar="MODEL",
    help=f"Registry name, folder, .gguf file or Hugging Face id.  [default: the memory's, else {DEFAULT_MODEL}]",
)
device_option = click.option("--device", metavar="DEVICE", default="cpu", show_default=True, help="cpu, cuda, cuda:1.")
dtype_option = click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    help="Numbers of the products.  [default: what the hardware is best at]",
)
cache_option = click.option(
    "--no-cache", is_flag=True, help="Read the document anew, and keep no memory of it in the cache folder."
)


def options(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several decorators as one; help lists them in this order."""

    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


model_options = options(model_option, device_option, dtype_option)
#: Those that are not given are None.
reading_options = options(
    click.option("--window", type=click.IntRange(min=1), metavar="TOKENS", help="How far attention sees back."),
    click.option(
        "--chunk", type=click.IntRange(min=1), metavar="TOKENS", help="Tokens per update of the fast weights."
    ),
    click.option("--inner-rule", type=click.Choice(["sgd", "normalized", "balanced"]), help="How an update is made."),
    click.option("--inner-lr", type=click.FloatRange(0, 1000), metavar="NUMBER", help="Learning rate of the updates."),
    click.option(
        "--no-learn",
        "learn",
        is_flag=True,
        callback=lambda ctx, parameter, value: False if value else None,
        help="Read with the window alone, never update.",
    ),
)


def route_option(help: str) -> Callable[[Command], Command]:
    routes = click.Choice(["auto", "memory", "lookup"])
    return click.option("--route", type=routes, default="auto", show_default=True, help=help)
