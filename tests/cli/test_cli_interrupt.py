"""Ctrl-C: what was read is kept, and the same command ends with the same memory."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from cli_commands import FIELDS, SMALL, TEXT

from ttt_docs.memory import inspect_memory, memories_equal

ROOT = Path(__file__).parents[2]


def test_the_same_command_goes_on(book, read_book, interrupt, run, load):
    interrupt(after=20)
    result = run("ingest", book, *SMALL, code=130)
    assert "Interrupted after " in result.stderr and "% of book.txt" in result.stderr and result.stdout == ""
    part = load("book.ttt")
    assert not part.documents[-1].complete and 0 < len(part.tokens) < len(load(read_book).tokens)
    result = run("ingest", book, *SMALL)
    assert f"first {len(part.tokens):,} tokens" in result.stderr
    memory = load("book.ttt")
    assert memories_equal(memory, load(read_book)) and memory.documents == load(read_book).documents
    assert "Already read" in run("ingest", book, *SMALL).stdout


def test_json_says_how_far(book, interrupt, run_json):
    interrupt(after=30)
    result = run_json("ingest", book, *SMALL, code=130)
    assert result.keys() == FIELDS["ingest"].keys()
    assert result["status"] == "interrupted" and result["documents"][0]["complete"] is False
    resumed = run_json("ingest", book, *SMALL)
    assert resumed["status"] == "resumed" and resumed["new_tokens"] == resumed["tokens"] - result["tokens"]


def test_what_is_kept_is_exact_whatever_the_final_form(book, interrupt, run, load):
    form = (*SMALL, "--precision", "bfloat16", "--no-text")
    run("ingest", book, "-o", "whole.ttt", *form)
    interrupt(after=40)
    run("ingest", book, *form, code=130)
    assert inspect_memory("book.ttt")["precision"] == "float32" and inspect_memory("book.ttt")["text"]
    run("ingest", book, *form)
    assert inspect_memory("book.ttt")["precision"] == "bfloat16" and not inspect_memory("book.ttt")["text"]
    assert memories_equal(load("book.ttt"), load("whole.ttt"))


def test_in_the_second_of_two_documents(book, home, interrupt, run, load):
    book.write_text(TEXT[: len(TEXT) // 3], "utf-8")
    (home / "b.txt").write_text(TEXT[: len(TEXT) // 2].replace("captain", "boatswain"), "utf-8")
    both = ("ingest", book, "b.txt", *SMALL, "-o")
    run(*both, "whole.ttt")
    chunks = load("whole.ttt").chunks
    interrupt(after=chunks * 3 // 4)
    assert "% of b.txt" in run(*both, "part.ttt", code=130).stderr
    assert [document.complete for document in load("part.ttt").documents] == [True, False]
    run(*both, "part.ttt")
    assert memories_equal(load("part.ttt"), load("whole.ttt"))
    assert load("part.ttt").documents == load("whole.ttt").documents


def test_reading_on_after_a_part(book, read_book, interrupt, run, load):
    """--memory with an interrupted memory goes on in the middle, as the same command would."""
    interrupt(after=20)
    run("ingest", book, "-o", "part.ttt", *SMALL, code=130)
    interrupt(after=20)
    read_on = ("ingest", book, "--memory", "part.ttt", "-o", "rest.ttt", "--dtype", "float32")
    run(*read_on, code=130)
    run(*read_on)
    assert memories_equal(load("rest.ttt"), load(read_book))
    assert "Already read" in run(*read_on).stdout


def test_force_says_that_it_starts_anew(book, memory, interrupt, run):
    interrupt(after=20)
    assert "without --force" in run("ingest", book, *SMALL, "--force", code=130).stderr


def test_nothing_is_written_before_there_is_a_memory(book, home, run, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("ttt_docs.reader.TTTReader.ingest", interrupted)
    assert "Interrupted" in run("ingest", book, *SMALL, code=130).stderr
    assert list(home.iterdir()) == [book]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_ctrl_c_at_a_terminal(book, read_book, run, load):
    """A process of its own, interrupted from outside once its progress bar moves."""
    import fcntl
    import pty
    import termios

    arguments = ["ingest", "book.txt", *SMALL]
    terminal, its_end = pty.openpty()
    fcntl.ioctl(its_end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))  # no size, no bar
    path = os.pathsep.join([str(ROOT), str(ROOT / "cli")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-m", "ttt_docs_cli", *arguments]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=its_end, env=environment)
    os.close(its_end)
    shown = b""
    while b"tok/s" not in shown:
        shown += os.read(terminal, 4096)
    process.send_signal(signal.SIGINT)
    while True:
        try:
            piece = os.read(terminal, 4096)
        except OSError:  # how a pseudo-terminal says that the other end is closed
            break
        if not piece:
            break
        shown += piece
    assert process.wait(30) == 130 and process.stdout is not None and process.stdout.read() == b""
    process.stdout.close()
    os.close(terminal)
    assert b"tok/s" in shown and b"Interrupted after" in shown and b"Traceback" not in shown
    assert not load("book.ttt").documents[-1].complete
    run(*arguments)
    assert memories_equal(load("book.ttt"), load(read_book))
