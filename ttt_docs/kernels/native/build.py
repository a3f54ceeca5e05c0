"""Compiles the C++ sources of the kernels, once per machine, and loads them.

The library lies in the user's cache folder. Its name is made of everything it depends on: sources, flags and compiler.
On another processor, or without a working compiler, `native_library` says why there is none. Reading then goes on
without it, more slowly.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

from ttt_docs.io import cache_folder

KERNELS = Path(__file__).parents[1]
SOURCES = sorted(path for kind in ("h", "cpp") for path in KERNELS.glob(f"*/*.{kind}"))
FLAGS = (
    "-std=c++17", "-O2", "-fPIC", "-shared", "-fno-math-errno", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq",
    "-mavx512vl", "-mavx512bf16",
)  # fmt: skip
#: What the flags need, as Linux names it.
FEATURES = frozenset({"fma", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16"})
COMPILERS, COMPILE_SECONDS = ("c++", "g++", "clang++"), 120

logger = logging.getLogger(__name__)


class Target(NamedTuple):
    """A kind of processor."""

    name: str
    flags: tuple[str, ...]
    features: frozenset[str]


#: Best first.
TARGETS = (
    Target("AMX", (*FLAGS, "-mamx-tile", "-mamx-bf16"), FEATURES | {"amx_tile", "amx_bf16"}),
    Target("AVX-512", FLAGS, FEATURES),
)


class Native(NamedTuple):
    loaded: ctypes.CDLL | None
    reason: str  # why there is none, or where it came from


@cache
def native_library() -> Native:
    """The compiled kernels, or why this process goes without them. Tried once per process; never raises."""
    try:
        native = _load()
    except subprocess.CalledProcessError as error:
        said = [line for line in error.stderr.splitlines() if "error" in line] or [f"exit code {error.returncode}"]
        native = Native(None, f"{Path(error.cmd[0]).name} failed: {said[0]}")
    except (OSError, subprocess.SubprocessError) as error:
        native = Native(None, f"compiling or loading failed: {error}")
    else:
        logger.debug("native kernels: %s", native.reason)
        return native
    logger.warning("reading goes on without compiled kernels, several times slower: %s", native.reason)
    return native


def _load() -> Native:
    features = cpu_features()
    targets = [target for target in TARGETS if target.features <= features]
    if not targets:
        return Native(None, f"the processor has no {min(FEATURES - features)}")
    compiler = next(filter(None, map(shutil.which, [os.environ.get("CXX", ""), *COMPILERS])), None)
    if compiler is None:
        return Native(None, "no C++ compiler (c++, g++ or clang++, or the one that CXX names)")
    for target in targets:
        path = compiled_path(compiler, target)
        if not path.exists():
            compile_library(compiler, target, path)
        library = ctypes.CDLL(str(path))
        if library.allow_tiles() == 0:  # the operating system may keep AMX from a process
            break
    return Native(library, f"compiled with {Path(compiler).name} for {target.name}")


def cpu_features() -> set[str]:
    """What this processor and its Linux can do; empty on other systems."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return set()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return set(next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), []))


def compiled_path(compiler: str, target: Target) -> Path:
    """Where the library of these sources, flags and this compiler belongs."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True, timeout=10).stdout
    digest = hashlib.sha256(repr((version, target.flags)).encode())
    for source in SOURCES:
        digest.update(source.read_bytes())
    return cache_folder() / "kernels" / f"native-{digest.hexdigest()[:16]}.so"


def compile_library(compiler: str, target: Target, path: Path) -> None:
    """Raises OSError or SubprocessError. Processes that do this at the same time all succeed: the last rename stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sources = [str(path) for path in SOURCES if path.suffix == ".cpp"]
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        command = [compiler, *target.flags, f"-I{KERNELS / 'native'}", *sources, "-o", str(made)]
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=COMPILE_SECONDS)
        made.replace(path)
