"""`ttt-docs train`: runs, estimates, errors before anything starts."""

from __future__ import annotations

import json

import pytest
from cli_commands import FIELDS

TINY = (
    "sequence=64", "reading.chunk=16", "reading.window=32", "batch=2", "steps=2", "compute.dtype=float32",
    "compute.device=cpu", "model.suffix_blocks=1", "output=run",
)  # fmt: skip


def test_the_default_model_is_adapted_and_reads_with_its_adapter(run, run_json, book, home):
    result = run_json("train", "smollm2-135m-adapt", "data.train=book.txt", *TINY)
    assert result.keys() == FIELDS["train"].keys() and (result["steps"], result["tokens"]) == (2, 256)
    assert result["exported"] == "run/adapter.safetensors" and result["valid_loss"] is None
    read = run_json("ingest", "book.txt", "-m", "run/adapter.safetensors", "-o", "book.ttt", "--dtype", "float32")
    assert read["model"] == "run/adapter.safetensors"
    shown = run_json("inspect", "book.ttt")
    assert shown["reading"]["chunk"] == 16 and shown["reading"]["inner_rule"] == "balanced"
    packed = run_json("models", "pack-adapter", "run/adapter.safetensors", "-o", "small.safetensors")
    assert packed["bytes"] < packed["bytes_before"] and packed["file"] == "small.safetensors"
    assert "instead of" in run("models", "pack-adapter", "run/adapter.safetensors", "-o", "small.safetensors").stdout
    assert run_json("ingest", "book.txt", "-m", "small.safetensors", "-o", "small.ttt")["tokens"] == read["tokens"]
    again = run("train", "smollm2-135m-adapt", "data.train=book.txt", *TINY)
    assert "2 steps, 256 tokens" in again.stderr and "0 documents are shorter" in again.stderr
    assert "going on after step 2" in again.stderr and again.stdout.startswith(
        "run/adapter.safetensors: 2 steps, loss "
    )


def test_estimates_print_without_data(run, run_json, home):
    facts = run_json("train", "pretrain-3b", "--dry-run")
    assert facts["tokens"] == 52_000 * 128 * 8192 and facts["parameters"] == facts["trained"] == 2_897_722_880
    assert facts["memory"]["total"] == sum(v for k, v in facts["memory"].items() if k != "total")
    assert facts["flops"] == pytest.approx(facts["tokens"] * facts["flops_per_token"])
    baseline = run_json("train", "full-pretrain-3b", "--dry-run")
    assert baseline["fast"] == 0 and baseline["flops_per_token"] < facts["flops_per_token"]
    text = run("train", "smollm2-135m-adapt", "--dry-run").stdout
    assert "memory per GPU" in text and "one epoch" in text
    assert list(home.iterdir()) == []


def test_recipes_are_listed_and_shown(run, run_json):
    assert "pretrain-3b" in run("train", "--list").stdout.split()
    assert "toy" in run_json("train", "--list")["recipes"]
    assert run_json("train", "pretrain-3b", "steps=5", "--show")["steps"] == 5
    assert "steps: 5" in run("train", "pretrain-3b", "steps=5", "--show").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "give a recipe"),
        (("nothing",), 2, "no recipe 'nothing'"),
        (("pretrain-3b", "stps=3"), 2, "unknown key stps, did you mean steps"),
        (("pretrain-3b",), 2, "data.train"),
        (("smollm2-135m-adapt", "compute.device=tpu"), 2, "compute.device: Input should be 'auto', 'cpu' or 'cuda'"),
        (("smollm2-135m-adapt", "data.train=missing.jsonl", "output=book.txt"), 2, "book.txt is not a folder"),
        (("smollm2-135m-adapt", "data.train=missing.jsonl", "output=book.txt/run"), 2, "book.txt is not a folder"),
        (("smollm2-135m-adapt", "data.train=missing.jsonl"), 2, "no training data at missing.jsonl"),
        (("smollm2-135m-adapt", "data.train=book.txt"), 1, "no document of book.txt has 8,193 tokens"),
    ],
)
def test_errors_are_sentences_and_leave_nothing(fails, book, tmp_path_factory, arguments, code, message):
    data = tmp_path_factory.mktemp("data")
    more = (f"data.folder={data}", "data.tokenizer=bytes") if arguments else ()
    assert message in fails("train", *arguments, *more, code=code)


def test_a_json_lines_file_without_text(fails, home):
    (home / "a.jsonl").write_text(json.dumps({"body": "x"}) + "\n")
    message = fails("train", "smollm2-135m-adapt", "data.train=a.jsonl", code=1)
    assert "a.jsonl: line 1 has no text under 'text' (there are: body); set data.field" in message
