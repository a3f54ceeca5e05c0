"""The GPU benchmarks run end to end on a tiny model, without a GPU; kernels compile ahead of time."""

import importlib
import json
import os
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def run_main(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    monkeypatch.delitem(sys.modules, name, raising=False)  # a folder of the tests may have the same name
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
    pytest.importorskip("ttt_docs.ttt.outer_loop")
    out = tmp_path / "train.json"
    run_main("gpu_train", monkeypatch, "--smoke", "--rounds", "1", "--json", str(out))
    (result,) = json.loads(out.read_text())["results"]
    assert set(result["seconds"]) == {"meta", "full"}


def test_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from ttt_docs.kernels.attention import triton_tiles as attention

    small = {256: attention.Tiles(16, 16, 4, 1)}
    monkeypatch.setattr(attention, "TILES", dict.fromkeys(attention.TILES, small))
    out = tmp_path / "kernels.json"
    run_main("kernels", monkeypatch, "--smoke", "--rounds", "1", "--only", "RMSNorm", "--json", str(out))
    results = json.loads(out.read_text())["results"]
    assert {result["pass"] for result in results} == {"forward", "backward", "second"}


def launched_kernels() -> set[str]:
    """Names of all kernels that are launched; what they call begins with an underscore or lives in a shared module."""
    from triton.runtime import JITFunction
    from triton.runtime.interpreter import InterpretedFunction

    import ttt_docs.kernels as kernels

    packages = pkgutil.walk_packages(kernels.__path__, "ttt_docs.kernels.")
    shared = "triton_common", "triton_tiles"
    names = [m.name for m in packages if m.name.split(".")[-1].startswith("triton")]
    modules = [name for name in names if not name.endswith(shared)]
    members = [
        (name, value, module)
        for module in (importlib.import_module(m) for m in modules)
        for name, value in vars(module).items()
    ]
    return {
        name
        for name, value, module in members
        if isinstance(value, (JITFunction, InterpretedFunction))
        and not name.startswith("_")
        and value.fn.__module__ == module.__name__
    }


def run_with_compiler(cache: Path, name: str, *arguments: str) -> str:
    """What a benchmark prints where kernels are compiled, not interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {
        "PYTHONPATH": f"{BENCHMARKS.parent}{os.pathsep}{environment.get('PYTHONPATH', '')}",
        "TRITON_CACHE_DIR": str(cache),
    }
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


with_compiler = pytest.mark.skipif(sys.platform != "linux", reason="Triton's compiler comes with Linux")


@with_compiler
@pytest.mark.long
def test_kernels_compile_ahead_of_time(tmp_path: Path) -> None:
    """Every one for both targets, each in one shape (`compile_kernels.py` without arguments does all that ship)."""
    out = tmp_path / "compiled.json"
    command = ["compile_kernels", "--json", str(out)]
    for case in ("head_dim 16", "dim 576", "SwiGLU (760m)", "128,256", "inner step, bf16", "RoPE and sinks"):
        command += ["--only", case]
    assert "0 that spill, are serialized or do not compile" in run_with_compiler(tmp_path, *command)
    compiled = {(report["kernel"], report["target"]) for report in json.loads(out.read_text())["kernels"]}
    assert compiled == {(name, target) for name in launched_kernels() for target in ("sm_80", "sm_90")}


@with_compiler
@pytest.mark.long
def test_tiles_are_judged_by_their_machine_code(tmp_path: Path) -> None:
    shape = ["--rows", "64", "--keys", "32", "--warps", "4", "--stages", "1,2"]
    printed = run_with_compiler(tmp_path, "tiles", "forward_rows", "--head-dim", "32", *shape)
    rows = [line.split("|")[1:-1] for line in printed.splitlines() if line.startswith("| 64, 32, 4")]
    assert len(rows) == 2
    for _, registers, _, issue, special, product, total, _ in rows:
        # Two products of 64 by 32 by 32 at 2,048 a cycle and multiprocessor, and an exponential for each score.
        assert float(product) == pytest.approx(1000 * 2 * 32 / 2048, abs=1)
        assert float(special) == pytest.approx(1000 / 16, rel=0.2)
        assert 16 < int(registers) <= 255 and float(issue) > float(product)
        assert float(total) == pytest.approx(float(issue) + float(special) + float(product), abs=2)


@with_compiler
def test_passes_are_counted_on_tensors_without_memory(tmp_path: Path) -> None:
    printed = run_with_compiler(tmp_path, "gpu_passes", "--models", "125m", "--top", "40")
    cells = [line.split("|") for line in printed.splitlines() if line.startswith("|")]
    rows = {(row[1].strip(), row[2].strip()): row[3:5] for row in cells}
    # 9 prefix blocks in groups of 4 chunks: qkv of 3 * 768 read and written, and the angles.
    launches, size = (float(cell.replace(",", "")) for cell in rows["prefix", "heads_forward"])
    assert launches == pytest.approx(9 / 4, abs=0.06)
    assert size == pytest.approx(9 * 2 * 3 * 768 * 1024 * 2 / 2**20, rel=0.1)
    assert float(rows["suffix", "update"][0]) == 1


@with_compiler
def test_both_training_steps_are_counted(tmp_path: Path) -> None:
    arguments = "--models", "125m", "--training", "2048", "--recompute", "chunks"
    printed = run_with_compiler(tmp_path, "gpu_passes", *arguments)
    # 16 tiles a chunk, and again for the one of two chunks that an update follows.
    assert "| step, backward | logit_gradients | 24.0 |" in printed
    sums = {line.split(":")[0]: line for line in printed.splitlines() if line.startswith(("meta", "full"))}
    for line in sums.values():
        parts, total = line.removesuffix(" ms").split(" passes ")[1].split(" = ")
        assert sum(map(float, parts.split(" + "))) == pytest.approx(float(total), abs=0.03)
    ratio = float(printed.rsplit(":", 1)[1])
    assert 1.5 < ratio < 4


def test_floors_grow_with_what_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    floors = importlib.import_module("gpu_floors")
    config, reading = floors.config_of("760m")
    assert floors.keys_seen(8, None) == pytest.approx(4.5) and floors.keys_seen(8, 2) == pytest.approx(1.875)
    one, two = (floors.prefill_operations(config, reading, n, "full") for n in (65_536, 131_072))
    assert two - one == pytest.approx(4 * 32_768 * 16 * 96 * 24, rel=1e-6)
    window, ttt = (floors.prefill_operations(config, reading, 131_072, s) for s in ("window", "ttt"))
    assert window < ttt < 2 * window
    assert floors.update_bytes(config, reading) == 14 * config.suffix_blocks * 3 * 1536 * 3328 / 1024
    plain = floors.plain_config("760m")
    meta = [floors.training_operations(config, reading.window, n) for n in (8192, 131_072)]
    full = [floors.training_operations(plain, None, n) for n in (8192, 131_072)]
    assert meta[0] > full[0] and meta[1] < full[1]
    weights = floors.block_weights(plain)
    plainly = 6 * ((weights["attention"] + weights["mlp"]) * plain.blocks + plain.vocab_size * plain.dim)
    assert full[0] == pytest.approx(plainly + 14 * 4096.5 * plain.heads * plain.head_dim * plain.blocks)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.long
def test_one_command_for_all(tmp_path: Path) -> None:
    """The checks are found without the tests' conftest.py, as on a machine with torch, Triton and little else."""

    def script(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHON": sys.executable, "OUT": str(tmp_path)}
        command = ["bash", str(BENCHMARKS / "gpu.sh"), "--smoke", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    done = script("checks")
    assert done.returncode == 0 and "tests/ttt/test_device.py" in done.stdout, done.stdout + done.stderr
    done = script("nonsense")
    assert done.returncode == 2 and "no step nonsense" in done.stderr


def test_floors_need_no_device(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run_main("gpu_floors", monkeypatch)
    printed = capsys.readouterr().out
    assert "| 760m | 14.13 / 9.33, 1.51 |" in printed
    assert "| 3b | window attention, head_dim 80 |" in printed
