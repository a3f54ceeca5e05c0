"""Where the compiled kernels cannot be had, reading goes on without them, and the reason is told."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import torch

from ttt_docs.kernels import dispatch
from ttt_docs.kernels.backends import CPU
from ttt_docs.kernels.native import build

AMX, AVX_512 = build.TARGETS


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A processor that has everything, an empty cache and no compiler; returns the folder where one would be found."""
    monkeypatch.setattr(build, "cpu_features", lambda: set(AMX.features))
    monkeypatch.setenv("TTT_DOCS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CXX", raising=False)
    (tmp_path / "bin").mkdir()
    return tmp_path / "bin"


def compiler(folder: Path, script: str, name: str = "c++") -> str:
    """A compiler that prints a version and otherwise runs `script`, in which $out is the file to be made."""
    path = folder / name
    path.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo "{name} 1.0" && exit 0\nfor out in "$@"; do :; done\n{script}\n'
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def fresh() -> build.Native:
    return build.native_library.__wrapped__()


def test_another_processor(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "cpu_features", lambda: AMX.features - {"avx512_bf16"})
    assert fresh() == (None, "the processor has no avx512_bf16")


def test_flags_are_for_what_the_processor_has(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler(machine, 'echo "error: $*" >&2; exit 1')
    assert "-mamx-bf16" in fresh().reason
    monkeypatch.setattr(build, "cpu_features", lambda: AMX.features - {"amx_bf16"})
    assert "-mavx512bf16" in fresh().reason and "amx" not in fresh().reason


def test_a_process_that_is_not_given_amx_goes_without(
    machine: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiler(machine, "exit 1")
    compiled: list[str] = []

    class Library:
        def __init__(self, path: str) -> None:
            compiled.append(Path(path).read_text())

        def allow_tiles(self) -> int:
            return 0 if compiled[-1] == "AVX-512" else -1

    monkeypatch.setattr(build, "compiled_path", lambda compiler, target: tmp_path / target.name)
    monkeypatch.setattr(build, "compile_library", lambda compiler, target, path: path.write_text(target.name))
    monkeypatch.setattr(build.ctypes, "CDLL", Library)
    native = fresh()
    assert compiled == ["AMX", "AVX-512"] and native.loaded is not None and native.reason.endswith("for AVX-512")


def test_no_compiler(machine: Path) -> None:
    library, reason = fresh()
    assert library is None and "no C++ compiler" in reason


def test_a_compiler_that_fails_leaves_nothing(machine: Path, tmp_path: Path) -> None:
    compiler(machine, 'echo "half" > "$out"; echo "a.cpp:1: error: unknown option -mamx-tile" >&2; exit 1')
    assert fresh() == (None, "c++ failed: a.cpp:1: error: unknown option -mamx-tile")
    assert list((tmp_path / "cache" / "kernels").iterdir()) == []


def test_a_compiler_that_makes_nothing_of_use(machine: Path) -> None:
    compiler(machine, 'echo "no library" > "$out"')
    library, reason = fresh()
    assert library is None and "loading failed" in reason


def test_a_cache_that_cannot_be_written(machine: Path, tmp_path: Path) -> None:
    compiler(machine, 'echo "no library" > "$out"')
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert fresh().loaded is None


def test_the_compiler_that_cxx_names_comes_first(
    machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler(machine, "exit 1")
    monkeypatch.setenv("CXX", compiler(machine, "exit 1", name="mine"))
    assert fresh().reason == "mine failed: exit code 1"


def test_what_was_compiled_is_found_again_and_other_flags_are_another_file(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = compiler(machine, "exit 1")
    path = build.compiled_path(own, AMX)
    assert path == build.compiled_path(own, AMX)
    assert path != build.compiled_path(own, AVX_512)
    assert path != build.compiled_path(compiler(machine, "exit 1", name="other"), AMX)


def test_reading_takes_the_pytorch_path_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "native_library", lambda: build.Native(None, "no compiler"))
    monkeypatch.delenv("TTT_DOCS_KERNELS", raising=False)
    assert dispatch.kernels_for(torch.device("cpu")) is CPU
