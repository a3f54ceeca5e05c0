"""A way to run commands, and the tiny models and text they work on."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner, Result
from tiny_checkpoint import TEXT, write_model, write_tokenizer
from ttt_docs_cli.main import cli

#: What `--json` of each command prints, as docs/cli.md shows it.
FIELDS: dict[str, dict[str, str]] = json.loads(
    Path(__file__).parents[2].joinpath("docs", "cli_fields.json").read_text("utf-8")
)

__all__ = ["FIELDS", "SMALL", "TEXT", "command", "snapshot", "write_model", "write_tokenizer"]

#: Small chunks, so that a short document has many.
SMALL = ("--window", "64", "--chunk", "32", "--dtype", "float32")


def command(*arguments: str | Path, code: int = 0, stdin: str | bytes | None = None) -> Result:
    """Runs `ttt-docs`; any other exit code than `code` fails the test."""
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments], input=stdin)
    assert result.exit_code == code, f"{arguments}: {result.exit_code}\n{result.stdout}\n{result.stderr}"
    assert "Traceback" not in result.stderr
    return result


def snapshot() -> dict[Path, bytes | None]:
    """Every file of the working folder."""
    return {path: path.read_bytes() if path.is_file() else None for path in Path().rglob("*")}
