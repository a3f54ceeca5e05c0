"""The example runs from training to figure."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from training_files import write_books

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.long
def test_the_example_makes_its_figure(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TTT_DOCS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("toy_figure", ROOT / "examples" / "toy_figure.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    books = write_books(tmp_path / "books.jsonl", (600, 700))
    changes = ["steps=1", "batch=4", "compute.micro_batch=4", "compute.recompute=none"]
    arguments = ["toy_figure.py", *map(str, (books, books, *changes)), "--sequences", "4"]
    monkeypatch.setattr(example, "NAIVE_RATES", (0.1,))
    monkeypatch.setattr(sys, "argv", [*arguments, "--only", "no-attention-b=16"])
    example.main()
    runs = tmp_path / "runs" / "toy"
    assert [path.name for path in runs.iterdir() if path.is_dir()] == ["no-attention-b=16"]
    trained = (runs / "no-attention-b=16" / "log.jsonl").read_bytes()
    monkeypatch.setattr(sys, "argv", [*arguments, "--json", "t.json", "--figure", "t.png"])
    example.main()
    assert (runs / "no-attention-b=16" / "log.jsonl").read_bytes() == trained
    curves = json.loads((tmp_path / "t.json").read_text())["curves"]
    names = "no TTT", "TTT-naive b=16", "TTT-naive b=1", "TTT-E2E b=16", "TTT-E2E b=1"
    assert curves.keys() == {f"{kind}, {name}" for kind in ("no attention", "attention") for name in names}
    assert all(len(curve["nll"]) == 128 and len(curve["quarters"]) == 4 for curve in curves.values())
    assert (tmp_path / "t.png").stat().st_size > 1000 and "| no attention, TTT-E2E b=16 |" in capsys.readouterr().out
    for kind, attends in (("no-attention", False), ("attention", True)):
        state = load_file(runs / f"{kind}-naive" / "model" / "model.safetensors")
        assert bool(state["blocks.0.attention.wo.weight"].any()) == attends
