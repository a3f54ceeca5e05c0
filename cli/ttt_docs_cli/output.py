"""How the commands speak: results on standard output, everything else on standard error."""

from __future__ import annotations

import functools
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import click

from ttt_docs.io import readable_bytes

# Names and quotes come from files that strangers wrote: what could steer a terminal is shown as an escape.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for programs.")


class Result(NamedTuple):
    """What a command has to say."""

    facts: Any  # for --json
    words: str | Callable[[], object] = ""  # for people: a text, or a function that prints; may be empty
    exit_code: int = 0


def with_json(command: Callable[..., Result]) -> Callable[..., None]:
    """Prints the Result of a command, and adds the option --json to it."""

    @json_option
    @functools.wraps(command)
    def run(as_json: bool, **values: Any) -> None:
        facts, words, exit_code = command(**values)
        if as_json:
            say_json(facts)
        elif callable(words):
            words()
        elif words:
            say(words)
        click.get_current_context().exit(exit_code)

    return run


def plain(text: object) -> str:
    """`text` without control characters other than tab and line break."""
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], str(text))


def say(text: object = "", newline: bool = True) -> None:
    """A result, to standard output."""
    click.echo(plain(text), nl=newline)


def say_json(facts: Any) -> None:
    """One JSON object on a line. Dataclasses and models become objects, paths and dates become text."""
    click.echo(json.dumps(facts, allow_nan=False, default=_as_json))


def _as_json(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    return os.fspath(value) if isinstance(value, os.PathLike) else vars(value)


def details(facts: object, name: str = "") -> Iterator[tuple[str, object]]:
    """The facts of --json for `table`: a row for each value, under the names that lead to it."""
    if isinstance(facts, dict):
        for key, value in facts.items():
            yield from details(value, f"{name} {key}".strip())
    elif isinstance(facts, (list, tuple)):
        for value in facts:
            yield from details(value, name)
    elif isinstance(facts, bool):
        yield name, "yes" if facts else "no"
    elif isinstance(facts, int):
        yield name, readable_bytes(facts) if name.endswith("bytes") else f"{facts:,}"
    elif facts is None or isinstance(facts, (str, float)):
        yield name, "-" if facts is None else facts
    else:
        yield from details(_as_json(facts), name)


def quiet() -> bool:
    """Whether the command that runs was given --quiet."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get("quiet"))


def progress() -> bool | None:
    """For `progress=` of the library: no bar with --quiet, else one if there is a terminal."""
    return False if quiet() else None


def note(text: object) -> None:
    """A word to the person at the terminal, to standard error; none with --quiet."""
    if not quiet():
        warn(text)


def warn(text: object) -> None:
    """What nobody may miss, to standard error."""
    click.echo(plain(text), err=True)


class LogNotes(logging.Handler):
    """What the library logs, as notes and warnings."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            warn(f"Warning: {record.getMessage()}")
        else:
            note(record.getMessage())


def table(rows: Iterable[Sequence[object]], indent: str = "", numbers: bool = False) -> None:
    """Columns as wide as their widest cell. With `numbers` all but the first are flush right."""
    cells = [[plain(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for first, *others in cells:
        aligned = (f"{cell:{'>' if numbers else '<'}{width}}" for cell, width in zip(others, widths[1:], strict=True))
        say("  ".join([f"{indent}{first:<{widths[0]}}", *aligned]).rstrip())


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
