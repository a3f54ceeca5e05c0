"""What all commands have in common: help, version, errors, pipes; and the page made of their help."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from cli_commands import FIELDS
from click.testing import CliRunner
from ttt_docs_cli.main import cli
from ttt_docs_cli.output import duration, plain

from ttt_docs import __version__
from ttt_docs.io import readable_bytes

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "cli")])}


def commands(group: click.Group = cli, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Command]]:
    found: list[tuple[tuple[str, ...], click.Command]] = [(path, group)]
    for name, command in group.commands.items():
        at = (*path, name)
        found += commands(command, at) if isinstance(command, click.Group) else [(at, command)]
    return found


@pytest.mark.parametrize(("path", "command"), [pytest.param(*case, id="-".join(case[0])) for case in commands()])
def test_help(path, command, run):
    text = run(*path, "--help").stdout
    assert "Example" in text and f"ttt-docs {' '.join(path)}".strip() in text
    assert run(*path, "-h").stdout == text
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{parameter.name} of {path} has no help"


def test_every_command_is_documented(run):
    with_json = {" ".join(path) for path, command in commands() if any("--json" in p.opts for p in command.params)}
    leaves = {" ".join(path) for path, command in commands() if not isinstance(command, click.Group)}
    assert with_json == leaves == FIELDS.keys()


def test_the_page_of_the_command_line_is_current():
    spec = importlib.util.spec_from_file_location("make_cli", ROOT / "docs" / "make_cli.py")
    make_cli = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_cli)
    page = (ROOT / "docs" / "cli.md").read_text("utf-8")
    assert page == make_cli.page(), "run: python docs/make_cli.py"


def test_version(run):
    assert run("--version").stdout == f"ttt-docs, version {__version__}\n" == run("-V").stdout


def test_usage_errors(fails):
    fails("no-such-command", code=2)
    fails("--no-such-option", code=2)
    fails("models", "no-such-command", code=2)


def test_help_needs_no_torch():
    program = """if 1:
        import sys
        from ttt_docs_cli.main import cli
        for command in (["--help"], ["ingest", "--help"], ["models", "pull", "--help"]):
            cli(command, standalone_mode=False)
        heavy = {"torch", "numpy", "transformers", "pydantic", "tqdm"} & set(sys.modules)
        sys.exit(f"imported {heavy}" if heavy else 0)"""
    subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, stdout=subprocess.DEVNULL, check=True)


def test_a_reader_of_the_output_may_leave():
    """As in `ttt-docs env | head -0`."""
    reading, writing = os.pipe()
    os.close(reading)
    program = [sys.executable, "-m", "ttt_docs_cli", "models", "list"]
    result = subprocess.run(program, env=ENVIRONMENT, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert result.returncode == 1 and result.stderr == b""


def test_unexpected_errors_take_two_lines(monkeypatch):
    def broken():
        raise ZeroDivisionError("one by zero")

    monkeypatch.setattr("ttt_docs.weights.registry.list_models", broken)
    result = CliRunner().invoke(cli, ["models", "list"])
    assert result.exit_code == 1 and result.stdout == ""
    assert result.stderr == (
        "Error: ZeroDivisionError: one by zero\nSet TTT_DOCS_DEBUG=1 to see where this came from.\n"
    )
    monkeypatch.setenv("TTT_DOCS_DEBUG", "1")
    assert "Traceback" in CliRunner().invoke(cli, ["models", "list"]).stderr


def test_errors_of_the_system_name_the_file(book, fails, monkeypatch):
    monkeypatch.setattr("ttt_docs.weights.registry.list_models", lambda: (book / "cache").mkdir())
    assert fails("models", "list", code=1).startswith(f"Error: {book / 'cache'}: Not a directory\n")


def test_errors_on_purpose_have_a_traceback_too_if_asked(monkeypatch):
    monkeypatch.setenv("TTT_DOCS_DEBUG", "1")
    result = CliRunner().invoke(cli, ["inspect", "missing.ttt"])
    assert result.exit_code == 1 and "Traceback" in result.stderr and "Error: missing.ttt" in result.stderr


def test_what_the_library_logs_is_shown_once_on_standard_error(run, monkeypatch):
    """Before there was a handler, the library itself printed; a log without a handler loses what is not a warning."""
    logger = logging.getLogger("ttt_docs.weights.fetch")
    monkeypatch.setattr("ttt_docs.weights.registry.resolve", lambda name: logger.info("downloading %s ...", name))
    for _ in range(2):
        result = run("models", "pull", "a\x1bb")
        assert result.stderr == "downloading a\\x1bb ...\n" and "downloading" not in result.stdout


def test_ctrl_c_anywhere(run, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("ttt_docs.weights.registry.list_models", interrupted)
    assert run("models", "list", code=130).stderr.strip() == "Interrupted."


def test_words_for_numbers():
    assert [readable_bytes(n) for n in (0, 999, 1000, 132_200_000, 5e9)] == [
        "0 bytes",
        "999 bytes",
        "1.0 KB",
        "132.2 MB",
        "5.0 GB",
    ]
    assert [duration(s) for s in (0.04, 59, 61, 3700)] == ["0.0 s", "59.0 s", "1 min 1 s", "1 h 1 min"]
    assert plain("a\tb\nc\x1b[0m\ud800\xa0é") == "a\tb\nc\\x1b[0m\\ud800\xa0é"
