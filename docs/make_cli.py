"""Writes docs/cli.md from the commands' own help, and from the fields of `--json` in docs/cli_fields.json.

python docs/make_cli.py
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "cli")]

import click  # noqa: E402
from ttt_docs_cli.main import cli  # noqa: E402

#: What --json prints: {command: {field: meaning}}. The tests compare the commands with it.
FIELDS: dict[str, dict[str, str]] = json.loads((HERE / "cli_fields.json").read_text("utf-8"))

INTRODUCTION = """\
# The command line

<!-- Made by docs/make_cli.py from the commands' own help; change that, then run it. -->

Results go to standard output; progress, notes and errors to standard error. With `--json` a command prints exactly one
JSON object, on one line, and nothing else to standard output.

| Exit code | Meaning |
| --- | --- |
| 0 | done |
| 1 | failed: a document, memory or model that cannot be used; standard error says why |
| 2 | wrong usage: an option or argument that cannot work; nothing was written |
| 130 | interrupted with Ctrl-C |

| Environment variable | Meaning |
| --- | --- |
| `TTT_DOCS_CACHE` | folder for models and for the memories of documents; `ttt-docs env` shows which it is |
| `TTT_DOCS_KERNELS` | which implementation computes: `auto`, `cpu` (none compiled), `reference`, `triton`, `flash` |
| `TTT_DOCS_DEBUG` | `1`: errors come with a traceback |
"""


def page() -> str:
    """The whole of docs/cli.md. Formatted here and not by click, whose layout differs between its versions."""
    return "\n".join([INTRODUCTION, *(section for section in _sections(cli, "ttt-docs"))])


def _sections(command: click.Command, path: str) -> Iterator[str]:
    yield f"{'##' if path.count(' ') < 2 else '###'} {path}\n"
    yield inspect.cleandoc(command.help or "").replace("\b\n", "") + "\n"
    example, _, after = inspect.cleandoc(command.epilog or "").replace("\b\n", "").partition("\n\n")
    lines = [line.strip() for line in example.splitlines() if line.strip() != "Example:"]
    yield "\n".join(["```console", *(f"$ {line}" for line in lines), "```\n"])
    if after and path != "ttt-docs":
        yield after + "\n"
    rows = [_row(option) for option in command.params if isinstance(option, click.Option)]
    if rows:
        yield "\n".join(["| Option | Meaning |", "| --- | --- |", *rows]) + "\n"
    shape = FIELDS.get(path.removeprefix("ttt-docs "))
    if shape:
        fields = [f"| `{name}` | {_cell(meaning)} |" for name, meaning in shape.items()]
        yield "\n".join(["| Field of `--json` | Meaning |", "| --- | --- |", *fields]) + "\n"
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from _sections(child, f"{path} {name}")


def _row(option: click.Option) -> str:
    names = ", ".join(f"`{name}`" for name in option.opts)
    if isinstance(option.type, click.Choice):
        names += " " + _cell(" | ".join(option.type.choices))
    elif option.metavar and not option.is_flag:
        names += f" {option.metavar}"
    known = isinstance(option.default, (str, int, float)) and not option.is_flag
    default = f" [default: {option.default}]" if known else ""
    return f"| {names} | {_cell(' '.join((option.help or '').split()))}{default} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    (HERE / "cli.md").write_text(page(), "utf-8")
