from __future__ import annotations

import os

import pytest
from cli_commands import FIELDS, SMALL, TEXT

from ttt_docs.memory import inspect_memory, memories_equal


def test_reads_a_document_beside_it(book, run, load):
    result = run("ingest", book, *SMALL)
    memory = load("book.ttt")
    assert memory.text == TEXT and memory.model == "smollm2-135m@bf16"
    assert (memory.reading.window, memory.reading.chunk, memory.reading.learn) == (64, 32, True)
    assert f"{len(memory.tokens):,} tokens" in result.stdout and "nats per token" in result.stdout
    assert result.stderr == ""  # no progress bar where there is no terminal
    assert {path.name for path in book.parent.iterdir()} == {"book.txt", "book.ttt"}


def test_json(book, run_json):
    result = run_json("ingest", book, "-o", "x.ttt", *SMALL)
    assert result.keys() == FIELDS["ingest"].keys()
    assert result["status"] == "read" and result["output"] == "x.ttt" and result["documents"][0]["name"] == "book.txt"
    assert result["new_tokens"] == result["tokens"] and result["tokens_per_second"] > 0 and result["loss"] > 0
    assert result["bytes"] == os.path.getsize("x.ttt")
    again = run_json("ingest", book, "-o", "x.ttt", *SMALL)
    assert again.keys() == FIELDS["ingest"].keys()
    assert (again["status"], again["new_tokens"], again["seconds"]) == ("already read", 0, None)


def test_options_reach_the_reading(book, run, load):
    options = ["--inner-rule", "sgd", "--inner-lr", "0.5", "--precision", "bfloat16", "--no-text", "--quiet"]
    assert run("ingest", book, *SMALL, *options).output == ""
    memory = load("book.ttt")
    assert (memory.reading.inner_rule, memory.reading.inner_lr, memory.text) == ("sgd", 0.5, None)
    assert inspect_memory("book.ttt")["precision"] == "bfloat16"
    run("ingest", book, "-o", "still.ttt", *SMALL, "--no-learn")
    assert load("still.ttt").fast == {} and not load("still.ttt").reading.learn


def test_several_documents_are_read_one_after_the_other(book, home, run, load):
    (home / "b.txt").write_text("Then the wind came.", "utf-8")
    run("ingest", book, "b.txt", "-o", "both.ttt", *SMALL)
    run("ingest", book, *SMALL)
    result = run("ingest", "b.txt", "--memory", "book.ttt", "-o", "after.ttt", "--dtype", "float32")
    both, after = load("both.ttt"), load("after.ttt")
    assert memories_equal(both, after) and [d.name for d in both.documents] == ["book.txt", "b.txt"]
    assert both.text == TEXT + "\n\nThen the wind came." == after.text
    assert "book.txt, b.txt" in result.stdout
    # the first is the beginning of what is asked for: only the second is read
    result = run("ingest", book, "b.txt", "-o", "book.ttt", *SMALL)
    assert "goes on" in result.stderr and memories_equal(load("book.ttt"), both)


def test_standard_input(run, load):
    run("ingest", "-", "-o", "in.ttt", *SMALL, stdin="A line from a pipe.")
    assert load("in.ttt").text == "A line from a pipe." and load("in.ttt").documents[0].name == "standard input"


def test_read_again_only_with_force(book, memory, run):
    before = memory.stat().st_mtime_ns
    assert "Already read" in run("ingest", book, *SMALL).stdout
    assert memory.stat().st_mtime_ns == before
    assert "Read " in run("ingest", book, *SMALL, "--force").stdout
    assert memory.stat().st_mtime_ns > before


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--window", "128"), "other parameters (window 64)"),
        (("--inner-lr", "0.1"), "other parameters (inner_lr 0.3)"),
        (("--no-learn",), "other parameters (learn True)"),
        (("--precision", "bfloat16"), "stored with float32"),
        (("--no-text",), "its text"),
    ],
)
def test_output_read_otherwise_is_kept(book, memory, fails, options, why):
    message = fails("ingest", book, *SMALL, *options, code=2)
    assert why in message and "--force" in message and "another -o" in message


def test_text_only(book, home, run, run_json, fails, load):
    assert "nothing was read" in run("ingest", book, "-o", "text.ttt", "--text-only", *SMALL).stdout
    memory = load("text.ttt")
    assert memory.unread and memory.text == TEXT and memory.documents[0].complete
    assert run_json("ingest", book, "-o", "text.ttt", "--text-only", *SMALL)["status"] == "already read"
    assert "holds only the text" in fails("ingest", book, "-o", "text.ttt", *SMALL, code=2)
    assert "nothing to keep" in fails("ingest", book, "-o", "x.ttt", "--text-only", "--no-text", code=2)
    assert "nothing of it was read" in fails("ask", "text.ttt", "Why?", "--route", "memory", code=2)
    result = run_json("ask", "text.ttt", "What is the number of waves on day 37?", "--route", "lookup")
    for found in result["evidence"]:
        assert found["quote"] == TEXT[found["start"] : found["end"]]


def test_output_of_something_else_is_kept(book, memory, home, other_model, fails):
    (home / "b.txt").write_text("Another story.", "utf-8")
    assert "something else (book.txt)" in fails("ingest", "b.txt", "-o", memory, *SMALL, code=2)
    assert "another model" in fails("ingest", book, "-m", other_model, *SMALL, code=2)
    (home / "notes.md").write_text("# Notes", "utf-8")
    assert "not an intact memory" in fails("ingest", book, "-o", "notes.md", *SMALL, code=2)
    memory.write_bytes(memory.read_bytes()[:-1])
    assert "not an intact memory" in fails("ingest", book, *SMALL, code=2)


def test_force_replaces_whatever_is_there(book, memory, read_book, run, load):
    memory.write_bytes(b"broken")
    run("ingest", book, *SMALL, "--force")
    assert memories_equal(load(memory), load(read_book))


def test_unfit_outputs_are_found_before_reading(book, home, fails, monkeypatch):
    monkeypatch.setattr("ttt_docs.documents.load_document", lambda *_, **__: pytest.fail("it began to read"))
    (home / "folder").mkdir()
    assert "is a folder" in fails("ingest", book, "-o", "folder", code=2)
    assert "does not exist" in fails("ingest", book, "-o", "no/such/book.ttt", code=2)
    assert "is a file, not a folder" in fails("ingest", book, "-o", "book.txt/x.ttt", code=1)
    assert "would be replaced" in fails("ingest", book, "-o", "./book.txt", "--force", code=2)
    os.link(book, home / "same.txt")
    assert "would be replaced" in fails("ingest", book, "-o", "same.txt", "--force", code=2)
    assert "say with -o" in fails("ingest", book, "same.txt", code=2)
    assert "say with -o" in fails("ingest", "-", code=2)
    assert "say with -o" in fails("ingest", "https://example.org/a.txt", code=2)
    assert "only once" in fails("ingest", "-", "-", "-o", "x.ttt", code=2)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_write_protected_output(book, home, fails):
    (home / "closed").mkdir(mode=0o500)
    assert "no permission" in fails("ingest", book, "-o", "closed/book.ttt", code=1)


def test_documents_that_cannot_be_read(book, home, fails):
    (home / "empty.txt").write_bytes(b"")
    (home / "binary.txt").write_bytes(bytes(range(256)) * 20)
    (home / "folder").mkdir()
    assert "no such file" in fails("ingest", "missing.pdf", "-o", "x.ttt", code=1)
    assert "is empty" in fails("ingest", "empty.txt", "-o", "x.ttt", code=1)
    assert "binary.txt" in fails("ingest", "binary.txt", "-o", "x.ttt", code=1)
    assert "is a folder" in fails("ingest", "folder", "-o", "x.ttt", code=1)
    assert "larger than the limit" in fails("ingest", book, "-o", "x.ttt", "--max-bytes", "100", code=1)
    assert "is empty" in fails("ingest", book, "empty.txt", "-o", "x.ttt", code=1)  # found before book.txt is read
    assert "is empty" in fails("ingest", "-", "-o", "x.ttt", code=1, stdin="")


def test_a_memory_is_not_a_document(memory, fails):
    assert "--memory" in fails("ingest", memory, "-o", "x.ttt", code=2)


def test_reading_on_keeps_the_old_memory_and_its_parameters(memory, home, other_model, fails):
    (home / "b.txt").write_text("More.", "utf-8")
    read_on = ("ingest", "b.txt", "--memory", memory)
    assert "would be replaced" in fails(*read_on, "-o", memory, "--force", code=2)
    assert "leave --chunk out" in fails(*read_on, "--chunk", "16", code=2)
    assert "leave --no-learn out" in fails(*read_on, "--no-learn", code=2)
    assert "another model" in fails(*read_on, "-m", other_model, code=1)
    assert "does not exist" in fails("ingest", "b.txt", "--memory", "missing.ttt", code=1)


@pytest.mark.parametrize(
    "options",
    [
        ("--window", "0"),
        ("--chunk", "-1"),
        ("--window", "9" * 22),
        ("--chunk", "many"),
        ("--window", "16", "--chunk", "32"),
        ("--inner-lr", "nan"),
        ("--inner-lr", "-1"),
        ("--inner-rule", "adam"),
        ("--dtype", "int8"),
        ("--precision", "int4"),
        ("--device", "toaster"),
        ("--device", "cuda:99"),
        ("--max-bytes", "0"),
        ("--no-such-option",),
    ],
)
def test_bad_option_values(book, fails, options):
    fails("ingest", book, *options, code=2)


def test_reading_parameters_are_explained(book, fails):
    message = fails("ingest", book, "--chunk", "4096", code=2)
    assert message.startswith("Error: window (2048) must be at least the chunk (4096): use a larger window=")
    assert "Error: window=" in fails("ingest", book, "--window", "9" * 22, code=2)


def test_no_document_is_an_error(fails):
    assert "DOCUMENT" in fails("ingest", code=2)


def test_unknown_model(book, fails):
    assert "did you mean smollm2-135m" in fails("ingest", book, "-m", "smolm2-135m", code=1)
    assert "not a model" in fails("ingest", book, "-m", book, code=1)
