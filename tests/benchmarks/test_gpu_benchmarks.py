"""The GPU benchmarks run end to end on a tiny model, without a GPU; kernels compile ahead of time."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def run_main(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    importlib.import_module(name).main()


def test_prefill(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "prefill.json"
    run_main("gpu_prefill", monkeypatch, "--smoke", "--fp8", "--rounds", "1", "--json", str(out))
    figures = json.loads(out.read_text())
    (result,) = figures["results"]
    assert set(result["ms_per_1k"]) == {"ttt", "window", "full", "ttt fp8"}
    assert result["loss"]["bf16"] == pytest.approx(result["loss"]["fp8"], abs=0.1)
    assert "| tiny | 64 |" in capsys.readouterr().out


def test_train(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("ttt_docs.training.outer")
    out = tmp_path / "train.json"
    run_main("gpu_train", monkeypatch, "--smoke", "--rounds", "1", "--json", str(out))
    (result,) = json.loads(out.read_text())["results"]
    assert set(result["seconds"]) == {"meta", "full"}


def test_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from ttt_docs.kernels.triton import attention

    small = {256: attention.Tiles(16, 16, 4, 1)}
    monkeypatch.setattr(attention, "TILES", dict.fromkeys(attention.TILES, small))
    out = tmp_path / "kernels.json"
    run_main("kernels", monkeypatch, "--smoke", "--rounds", "1", "--only", "RMSNorm", "--json", str(out))
    results = json.loads(out.read_text())["results"]
    assert {result["pass"] for result in results} == {"forward", "backward", "second"}


@pytest.mark.skipif(sys.platform != "linux", reason="Triton's compiler comes with Linux")
@pytest.mark.parametrize(("only", "targets"), [("head_dim 80", "90"), ("SwiGLU (760m)", "80")])
def test_kernels_compile_ahead_of_time(only: str, targets: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {
        "PYTHONPATH": f"{BENCHMARKS.parent}{os.pathsep}{environment.get('PYTHONPATH', '')}",
        "TRITON_CACHE_DIR": str(tmp_path),
    }
    command = [sys.executable, str(BENCHMARKS / "compile_kernels.py"), "--only", only, "--targets", targets]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 with a stack frame or an error" in done.stdout


def test_floors_grow_with_what_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    shared = importlib.import_module("gpu_shared")
    config, reading = shared.config_of("760m")
    assert shared.keys_seen(8, None) == pytest.approx(4.5) and shared.keys_seen(8, 2) == pytest.approx(1.875)
    one, two = (shared.prefill_operations(config, reading, n, "full") for n in (65_536, 131_072))
    assert two - one == pytest.approx(4 * 32_768 * 16 * 96 * 24, rel=1e-6)
    window, ttt = (shared.prefill_operations(config, reading, 131_072, s) for s in ("window", "ttt"))
    assert window < ttt < 2 * window
    assert torch.isfinite(torch.tensor(shared.update_bytes(config, reading)))
