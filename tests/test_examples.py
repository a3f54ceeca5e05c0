"""The examples do what their first lines say: with a tiny model, and with the real one."""

from __future__ import annotations

import re
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_checkpoint import TEXT, write_model

from ttt_docs import Memory
from ttt_docs.memory import memories_equal

EXAMPLES = Path(__file__).parent.parent / "examples"
QUESTION = "How many waves did the captain count on day 37?"


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory) -> str:
    return str(write_model(tmp_path_factory.mktemp("model") / "tiny", seed=0))


@pytest.fixture(params=["tiny", pytest.param("smollm2-135m", marks=pytest.mark.real)])
def model(request, tiny_model) -> str:
    return tiny_model if request.param == "tiny" else request.param


@pytest.fixture
def book(tmp_path) -> Path:
    path = tmp_path / "log.txt"
    path.write_text("\n".join(TEXT.splitlines()[:30]), "utf-8")
    return path


@pytest.fixture
def run(model, monkeypatch, capsys) -> Callable[..., str]:
    def run(name: str, *arguments: object) -> str:
        """What the example prints."""
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments), "--model", model])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_read_and_resume(run, book, tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    stopped = run("read_and_resume", book, tmp_path / "book.ttt", "--stop-after", 1)
    signal.signal(signal.SIGINT, handler)  # the example ends with Ctrl-C switched off
    assert "the same command goes on" in stopped
    assert "read: " in run("read_and_resume", book, tmp_path / "book.ttt")
    run("read_and_resume", book, tmp_path / "whole.ttt")
    assert memories_equal(Memory.load(tmp_path / "book.ttt"), Memory.load(tmp_path / "whole.ttt"))


def test_a_second_ctrl_c_ends_reading_at_once(run, book, tmp_path, monkeypatch):
    once = signal.raise_signal
    monkeypatch.setattr(signal, "raise_signal", lambda number: (once(number), once(number)))
    with pytest.raises(SystemExit) as ended:
        run("read_and_resume", book, tmp_path / "book.ttt", "--stop-after", 1)
    assert ended.value.code == 130 and not (tmp_path / "book.ttt").exists()


def test_ask_with_evidence(run, book):
    said = run("ask_with_evidence", book, QUESTION, "--route", "lookup")
    assert "(lookup: " in said and "on day 37" in said and "13 waves" in said  # what the text says of that day
    assert "(memory: " in run("ask_with_evidence", book, QUESTION, "--route", "memory")


def test_compare_books(run, book, tmp_path):
    other = tmp_path / "farm.txt"
    other.write_text("The farm lies on a hill, and its old well is dry. " * 60, "utf-8")
    table = run("compare_books", book, other, "--ending", 400)
    assert re.search(r"ending of log\.txt +\d\.\d{3} +\d\.\d{3}\nending of farm\.txt +\d\.\d{3} +\d\.\d{3}", table)


def test_corpus(run, book, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    book.rename(folder / "log.txt")
    (folder / "empty.txt").touch()
    said = run("corpus", folder, tmp_path / "memories", QUESTION)
    assert "left out: " in said and "log.txt: " in said and "13 waves" in said
    assert run("corpus", folder, tmp_path / "memories", QUESTION) == said


def test_langchain_chain(run, book, tmp_path):
    said = run("langchain_chain", book, QUESTION, "--store", tmp_path / "memories")
    assert "The book says (lookup)" in said and "Answer from these passages." in said
    assert "ask_the_document answers: " in said
