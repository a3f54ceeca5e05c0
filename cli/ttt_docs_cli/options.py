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
