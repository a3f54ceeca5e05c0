"""The example runs from training to figure."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

from training_files import write_books

ROOT = Path(__file__).resolve().parents[2]


def test_the_example_makes_its_figure(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TTT_DOCS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("toy_figure", ROOT / "examples" / "toy_figure.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    books = write_books(tmp_path / "books.jsonl", (600, 700))
    changes = ["steps=1", "batch=4", "compute.micro_batch=4", "compute.recompute=none"]
    arguments = [books, books, *changes, "--sequences", 4, "--attention", "off", "--json", "t.json"]
    monkeypatch.setattr(sys, "argv", ["toy_figure.py", *map(str, arguments), "--figure", "t.png"])
    monkeypatch.setattr(example, "NAIVE_RATES", (0.1,))
    example.main()
    curves = json.loads((tmp_path / "t.json").read_text())["curves"]
    names = "no TTT", "TTT-naive b=16", "TTT-naive b=1", "TTT-E2E b=16", "TTT-E2E b=1"
    assert curves.keys() == {f"no attention, {name}" for name in names}
    assert all(len(curve["nll"]) == 128 and len(curve["quarters"]) == 4 for curve in curves.values())
    assert (tmp_path / "t.png").stat().st_size > 1000 and "| no attention, TTT-E2E b=16 |" in capsys.readouterr().out
    attended = next((tmp_path / "runs").rglob("model"))
    from safetensors.torch import load_file

    assert not load_file(attended / "model.safetensors")["blocks.0.attention.wo.weight"].any()
