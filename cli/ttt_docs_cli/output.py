"""How the commands speak: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from typing import Any

import click

# Names and quotes come from files that strangers wrote: what could steer a terminal is shown as an escape.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def plain(text: object) -> str:
    """`text` without control characters other than tab and line break."""
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], str(text))


def say(text: object = "", newline: bool = True) -> None:
    """A result, to standard output."""
    click.echo(plain(text), nl=newline)


def say_json(result: Mapping[str, Any]) -> None:
    """The one JSON object of a command called with --json."""
    click.echo(json.dumps(result, allow_nan=False))


def note(text: object, quiet: bool = False) -> None:
    """A word to the person at the terminal, to standard error."""
    if not quiet:
        click.echo(plain(text), err=True)


class LogNotes(logging.Handler):
    """What the library logs, as notes."""

    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())


def table(rows: list[tuple[str, object]], indent: str = "") -> None:
    """Names and values in two columns."""
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        say(f"{indent}{name:<{width}}  {value}")


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
