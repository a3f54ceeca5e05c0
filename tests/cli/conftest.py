"""The tiny model stands in the cache under the default model's name; each test works in a folder of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_commands import SMALL, TEXT, command, snapshot, write_model
from click.testing import Result

from ttt_docs import Memory


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """The user's cache folder, with a tiny model under the default model's name."""
    folder = tmp_path_factory.mktemp("cache")
    write_model(folder / "checkpoints" / "smollm2-135m", seed=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TTT_DOCS_CACHE", str(folder))
        patch.delenv("TTT_DOCS_DEBUG", raising=False)
        patch.delenv("TTT_DOCS_KERNELS", raising=False)
        yield folder


@pytest.fixture(autouse=True)
def home(cache, tmp_path, monkeypatch):
    """Each test works in a folder of its own, which it may name relatively, and finds no memories in the cache."""
    shutil.rmtree(cache / "memories", ignore_errors=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def other_model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "other", seed=1)


@pytest.fixture
def book(home) -> Path:
    path = home / "book.txt"
    path.write_text(TEXT, "utf-8")
    return path


@pytest.fixture(scope="session")
def read_book(cache, tmp_path_factory) -> Path:
    """book.ttt as one uninterrupted `ingest` makes it, for tests that copy or compare it."""
    folder = tmp_path_factory.mktemp("read")
    (folder / "book.txt").write_text(TEXT, "utf-8")
    command("ingest", str(folder / "book.txt"), *SMALL)
    return folder / "book.ttt"


@pytest.fixture
def memory(read_book, home) -> Path:
    return Path(shutil.copy(read_book, home / "book.ttt"))


@pytest.fixture
def run() -> Callable[..., Result]:
    return command


@pytest.fixture
def run_json() -> Callable[..., dict]:
    """Runs a command with --json: standard output must be one JSON object and nothing else."""

    def run_json(*arguments: str | Path, code: int = 0, stdin: str | None = None) -> dict:
        result = command(*arguments, "--json", code=code, stdin=stdin)
        parsed = json.loads(result.stdout)
        assert isinstance(parsed, dict) and result.stdout.count("\n") == 1
        return parsed

    return run_json


@pytest.fixture
def fails() -> Callable[..., str]:
    """Runs a command that must fail: says so on standard error alone, and no file appears or changes."""

    def fails(*arguments: str | Path, code: int, stdin: str | None = None) -> str:
        before = snapshot()
        result = command(*arguments, code=code, stdin=stdin)
        assert snapshot() == before
        assert result.stdout == "" and "Error: " in result.stderr
        return result.stderr

    return fails


@pytest.fixture
def load() -> Callable[[str | Path], Memory]:
    return Memory.load
