"""summarize, ask and continue, with a reader whose answers are known: what is tested is the way to it and back."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from cli_commands import FIELDS, SMALL, TEXT

from ttt_docs import Answer, Evidence, Memory, TTTReader
from ttt_docs.generation.results import SummarySection, SummarySentence
from ttt_docs.generation.summary import SummaryStream
from ttt_docs.memory import memories_equal
from ttt_docs.weights.loading import best_dtype

CALLS: list[tuple] = []
#: A question that makes the command read.
WHO = ("Who?", "--route", "memory")
QUOTE = Evidence("the captain,\n who had\x1b[31m not slept", "3", 5, 40, 0.5, chapter="II", document="book.txt")


def summarize(reader, memory, length="paragraph", focus=None, *, seed=0, stream=False, progress=None):
    assert stream
    CALLS.append((reader, memory, length, focus, seed))
    told = SummarySentence("A ship waits.", (QUOTE, replace(QUOTE, page="9")), True)
    sections = [
        SummarySection("CHAPTER I", "A ship waits.", "3 to 9", (told,)),
        SummarySection("", "Nobody knows why.", None, (SummarySentence("Nobody knows why."),)),
    ]
    return SummaryStream(iter(sections), reader.tokenizer, "A <note>.")


def ask(reader, memories, question, route="auto", *, top_k=None, max_context=None):
    (memory,) = memories
    CALLS.append((reader, memory, question, route, top_k, max_context))
    return Answer("Nobody knows.", "lookup", (QUOTE, replace(QUOTE, page=None)), 0.25, "because", True, 0.6)


def continue_text(reader, memory, max_new_tokens=200, *, stream=False, learn=True, **sampling):
    assert stream
    CALLS.append((reader, memory, max_new_tokens, learn, sampling))
    return iter(["And ", "then ", "the wind came."])


@pytest.fixture(autouse=True)
def answers(monkeypatch):
    CALLS.clear()
    for method in (summarize, ask, continue_text):
        monkeypatch.setattr(TTTReader, method.__name__, method, raising=False)


def asked_memory() -> Memory:
    return CALLS[-1][1]


def test_summarize(memory, run, run_json, load):
    result = run("summarize", memory)
    assert result.stdout == "A ship waits.\n\nNobody knows why. [not found in the text]\n" and "<note>" in result.stderr
    assert CALLS[-1][2:] == ("paragraph", None, 0) and memories_equal(asked_memory(), load(memory))
    cited = run("summarize", memory, "--length", "chapters", "--cite").stdout
    assert cited.startswith("CHAPTER I\nA ship waits. (page 3, page 9)\n\n")
    result = run_json("summarize", memory, "--length", "page", "--seed", "7", "--focus", "Why?")
    assert CALLS[-1][2:] == ("page", "Why?", 7)
    assert result.keys() == FIELDS["summarize"].keys() and result["documents"] == ["book.txt"]
    assert [one["supported"] for one in result["sentences"]] == [True, False]
    assert result["sections"][0]["sentences"][0]["evidence"][0] == vars(QUOTE)


def test_summaries_in_files(memory, run, tmp_path):
    for name in ("summary.md", "summary.html"):
        result = run("summarize", memory, "-o", tmp_path / name)
        assert result.stdout == "" and name in result.stderr
    page, text = ((tmp_path / name).read_text("utf-8") for name in ("summary.html", "summary.md"))
    assert page.count('href="#q') == page.count('<p id="q') == 2 and "A &lt;note&gt;." in page
    assert "page 3" in page and "not found in the text" in page and "\x1b" not in page + text
    assert text.count("[^1]") == text.count("[^2]") == 2 and "*A \\<note\\>.*" in text
    assert "page 3: “the captain, who had" in text
    assert ".md or .html" in run("summarize", memory, "-o", tmp_path / "summary.doc", code=2).stderr


def test_how_likely_summaries_are(memory, book, run, run_json, tmp_path):
    ours = tmp_path / "ours.txt"
    ours.write_text("A ship lay still.", "utf-8")
    result = run_json("eval", "summary", memory, ours, book)
    assert result.keys() == FIELDS["eval summary"].keys()
    first, second = result["summaries"]
    assert first["summary"] == str(ours) and second["tokens"] > first["tokens"] > 0
    assert all(one["nothing"] > 0 and one["memory"] != one["nothing"] for one in (first, second))
    printed = float(run("eval", "summary", memory, ours).stdout.split()[-1])
    assert printed == pytest.approx(first["memory"], rel=1e-2)  # alone, and in bfloat16


def test_ask(memory, run, run_json):
    result = run("ask", memory, "Who slept?", "--dtype", "float32")
    quote = "“the captain, who had\\x1b[31m not slept”"
    assert result.stdout == f"Nobody knows.  (likely)\n\n  page 3: {quote}\n\n  II: {quote}\n"
    assert CALLS[-1][2:] == ("Who slept?", "auto", None, None) and CALLS[-1][0].model.dtype == torch.float32
    answer = run_json("ask", memory, "Who slept?", "--route", "lookup", "--top-k", "3", "--max-context", "99")
    assert CALLS[-1][2:] == ("Who slept?", "lookup", 3, 99)
    assert answer.keys() == FIELDS["ask"].keys() and (answer["question"], answer["verified"]) == ("Who slept?", True)
    assert answer["evidence"] == [vars(QUOTE), vars(QUOTE) | {"page": None}]


def test_looking_up_in_a_document_reads_nothing(book, cache, run, monkeypatch):
    genuine, learned = TTTReader.ingest, []
    monkeypatch.setattr(
        TTTReader, "ingest", lambda *a, learn=True, **k: learned.append(learn) or genuine(*a, learn=learn, **k)
    )
    for question, *options in (("Who slept?", "--route", "lookup"), ("On which day did the ship lie still?",)):
        run("ask", book, question, *options)
        assert asked_memory().unread and asked_memory().text == TEXT
    run("ask", book, "What is it about, all in all?", "--route", "memory")
    assert learned == [False, False, True] and not asked_memory().unread
    run("ask", book, "Who slept?", "--route", "lookup")  # the memory that is there will do
    assert len(learned) == 3 and not asked_memory().unread


def test_several_sources_are_asked_together(book, memory, home, run, run_json, monkeypatch):
    asked: list[list[str]] = []

    def ask_all(reader, memories, question, *_, **__):
        asked.append([document.name for one in memories for document in one.documents])
        return Answer("Nobody.", "lookup", (replace(QUOTE, memory=1, document="b.md"),), 0.1, "", True, 0.9)

    monkeypatch.setattr(TTTReader, "ask", ask_all)
    (home / "folder").mkdir()
    (home / "folder" / "a.txt").write_text("One captain.", "utf-8")
    (home / "folder" / "b.md").write_text("# Two\n\nAnother captain.", "utf-8")
    result = run("ask", "folder", "Who?")
    assert asked[-1] == ["a.txt", "b.md"] and "b.md, page 3" in result.stdout and "(sure)" in result.stdout
    run("ask", memory, "folder/b.md", "Who?")
    assert asked[-1] == ["book.txt", "b.md"]
    assert run_json("ask", "folder", book, "Who?")["documents"] == ["a.txt", "b.md", "book.txt"]


def test_what_a_document_does_not_say(memory, run, monkeypatch):
    answer = Answer("The document does not say.", "lookup", (QUOTE,), 0.1, "", False, 0.9, False)
    monkeypatch.setattr(TTTReader, "ask", lambda *_, **__: answer)
    shown = run("ask", memory, "Who?").stdout
    assert shown.startswith("The document does not say.\n\nThe nearest passages:\n") and "sure" not in shown


def test_continue_streams(memory, run, run_json):
    assert run("continue", memory).stdout == "And then the wind came.\n"
    assert CALLS[-1][2:] == (200, True, {})
    sampling = ("--temperature", "0", "--top-p", "0.9", "--top-k", "5", "--repetition-penalty", "1.2", "--seed", "3")
    run("continue", memory, "--tokens", "9", "--no-learn", *sampling, "--stop", "End", "--stop", "\n\n")
    expected = dict(temperature=0, top_p=0.9, top_k=5, repetition_penalty=1.2, seed=3, stop=("End", "\n\n"))
    assert CALLS[-1][2:] == (9, False, expected)
    result = run_json("continue", memory)
    assert result.keys() == FIELDS["continue"].keys() and result["text"] == "And then the wind came."


def test_ctrl_c_while_it_writes(memory, run, monkeypatch):
    def interrupted(*_, **__):
        yield "And "
        raise KeyboardInterrupt

    monkeypatch.setattr(TTTReader, "continue_text", interrupted)
    result = run("continue", memory, code=130)
    assert result.stdout == "And " and "Interrupted" in result.stderr


def test_a_document_is_read_once(book, cache, home, run, monkeypatch):
    first = run("summarize", book)
    assert "Reading book.txt" in first.stderr and str(cache / "memories") in first.stderr
    memory = asked_memory()
    assert memory.text == TEXT and len(os.listdir(cache / "memories")) == 1
    ingest, reads = TTTReader.ingest, []
    monkeypatch.setattr(TTTReader, "ingest", lambda *a, **k: reads.append(1) or ingest(*a, **k))
    (home / "copy.txt").write_text(TEXT, "utf-8")
    for arguments in (["summarize", book], ["ask", "copy.txt", *WHO], ["continue", "-"]):
        result = run(*arguments, stdin=TEXT)
        assert result.stderr.count("read before") == 1 and memories_equal(asked_memory(), memory)
    assert not reads and run("ask", book, *WHO, "-q").stderr == ""
    assert run("ask", book, *WHO, "--no-cache").stderr.count("memories") == 0 and reads == [1]
    other = "float32" if best_dtype(torch.device("cpu")) == torch.bfloat16 else "bfloat16"
    run("ask", book, *WHO, "--dtype", other)  # other numbers: read anew, in place of the other
    assert reads == [1, 1] and len(os.listdir(cache / "memories")) == 1
    assert {path.name for path in home.iterdir()} == {"book.txt", "copy.txt"}


def test_a_broken_cache_is_read_anew(book, cache, run):
    run("summarize", book)
    (path,) = (cache / "memories").iterdir()
    intact = path.read_bytes()
    path.write_bytes(intact[:-5])
    assert "Warning: " in run("summarize", book).stderr
    assert len(path.read_bytes()) == len(intact)


def test_an_unusable_cache_costs_only_a_warning(book, cache, run):
    (cache / "memories").write_text("in the way")
    try:
        result = run("summarize", book)
    finally:
        (cache / "memories").unlink()
    assert "Warning: the memory will not be kept" in result.stderr and result.stdout.startswith("A ship waits.\n")


def test_interrupted_reading_goes_on(home, interrupt, run):
    (home / "long.txt").write_text(TEXT * 2, "utf-8")
    interrupt(after=3)
    result = run("ask", "long.txt", *WHO, code=130)
    assert "the same command goes on" in result.stderr and not CALLS
    assert "Going on with long.txt" in run("ask", "long.txt", *WHO).stderr
    memory = asked_memory()
    run("ask", "long.txt", *WHO, "--no-cache")
    assert memories_equal(memory, asked_memory()) and memory.documents[-1].complete


def test_the_cache_is_a_store_with_room_for_the_newest(home, cache, run, run_json, fails, monkeypatch):
    """Everything that `summarize` and the others keep is seen and cleared with `ttt-docs store`."""
    (cache / "memories").mkdir()
    old = cache / "memories" / ("ab" * 16 + ".ttt")  # as release 0.1.0 kept them
    old.write_bytes(bytes(1000))
    os.utime(old, (1e9, 1e9))
    for name in ("a.txt", "b.txt"):
        (home / name).write_text(TEXT[: 400 + ord(name[0])], "utf-8")
        run("summarize", name)
    listed = run_json("store", "list")
    assert listed["store"] == str(cache / "memories") and len(listed["entries"]) == 2
    shown = run("store", "list")
    assert (
        "a.txt" in shown.stdout and "b.txt" in shown.stdout and "20" in shown.stdout and "2 memories, " in shown.stderr
    )
    assert run_json("store", "prune", "--older-than", "30d", "--dry-run")["removed"] == [old.name] and old.exists()
    pruned = run_json("store", "prune", "--older-than", "30d")
    assert pruned.keys() == FIELDS["store prune"].keys() and not old.exists()
    assert len(run_json("store", "list")["entries"]) == 2

    first = listed["entries"][0]
    os.utime(cache / "memories" / f"{first['key']}.ttt", (1e9, 1e9))
    monkeypatch.setenv("TTT_DOCS_MEMORIES_SIZE", str(int(first["nbytes"] * 2.5)))
    (home / "c.txt").write_text(TEXT[:500], "utf-8")
    assert "oldest memories were removed" in run("summarize", "c.txt").stderr
    names = [entry["documents"][0]["name"] for entry in run_json("store", "list")["entries"]]
    assert names == ["b.txt", "c.txt"]

    gone = run_json("store", "rm", run_json("store", "list", "--name", "c.txt")["entries"][0]["key"][:20])
    assert gone.keys() == FIELDS["store rm"].keys() and len(gone["removed"]) == 1
    assert run("store", "prune", "--max-size", "1KB").stdout.endswith("1 were removed\n")
    run("summarize", "a.txt")
    assert "1 were removed" in run("store", "rm", "--all").stdout and os.listdir(cache / "memories") == []
    for wrong in (["prune"], ["prune", "--max-size", "much"], ["prune", "--older-than", "old"], ["rm"], ["rm", "zz"],
                  ["rm", "--all", "a", "b"], ["show"]):  # fmt: skip
        fails("store", *wrong, code=2)
    monkeypatch.setenv("TTT_DOCS_MEMORIES_SIZE", "plenty")
    assert "no size" in fails("store", "list", code=2)


def test_memory_of_a_local_model(book, other_model, run, fails, monkeypatch):
    """The path in a file is never followed: it may come from a stranger."""
    run("ingest", book, "-m", other_model, *SMALL)
    assert str(other_model) in fails("ask", "book.ttt", "Who?", code=2)
    run("ask", "book.ttt", "Who?", "-m", other_model)
    assert "another model" in fails("ask", "book.ttt", "Who?", "-m", "smollm2-135m", code=1)


def test_memory_of_another_retrofit(book, home, run):
    """Made with the library, with fewer fast weights than the command would give the model."""
    reader = TTTReader.from_pretrained(suffix_blocks=1, sinks=2, window=64, chunk=32, dtype="float32")
    reader.ingest(book).save("one.ttt")
    run("ask", "one.ttt", "Who?")
    assert len(asked_memory().fast) == 1


def test_a_memory_is_known_by_its_content(memory, home, run):
    os.rename(memory, home / "book.mem")
    assert run("ask", "book.mem", "Who?").stderr == ""


@pytest.mark.parametrize("command", [["summarize"], ["ask", "Who?"], ["continue"]])
def test_sources_that_cannot_be_opened(command, memory, home, fails):
    (home / "empty.txt").touch()
    (home / "empty.ttt").touch()
    (home / "broken.ttt").write_bytes(memory.read_bytes()[:-1])
    (home / "folder.ttt").mkdir()
    name, rest = command[0], command[1:]
    for source in ("missing.ttt", "missing.txt", "empty.ttt", "empty.txt", "broken.ttt"):
        assert source in fails(name, source, *rest, code=1)
    for folder in ("folder.ttt", "."):  # a folder can be asked, if a document is in it
        message = fails(name, folder, *rest, code=2 if (name, folder) == ("ask", "folder.ttt") else 1)
        assert folder in message or folder == "."
    assert not CALLS


@pytest.mark.parametrize(
    "arguments",
    [
        ("summarize", "book.ttt", "--length", "novel"),
        ("summarize", "book.ttt", "--seed", "x"),
        ("summarize", "book.ttt", "--focus", " "),
        ("summarize", "book.ttt", "--device", "cuda:77"),
        ("ask", "book.ttt"),
        ("ask", "book.ttt", "  "),
        ("ask", "book.ttt", "Who?", "--route", "guess"),
        ("ask", "book.ttt", "Who?", "--top-k", "0"),
        ("continue", "book.ttt", "--tokens", "0"),
        ("continue", "book.ttt", "--temperature", "-1"),
        ("continue", "book.ttt", "--top-p", "0"),
        ("continue", "book.ttt", "--stop", ""),
        ("continue",),
    ],
)
def test_bad_arguments(memory, fails, arguments):
    fails(*arguments, code=2)
    assert not CALLS
