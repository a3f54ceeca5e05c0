"""A sample of the mutants of `hostile.py`, in a process of its own so that its memory can be measured."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path

import hostile
import pytest


def test_mutants_are_refused_quickly_and_in_little_memory():
    program = [sys.executable, str(Path(hostile.__file__)), "--files", "400", "--seed", "7"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(program, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert result["refused"] > 300 and result["loaded"] > 0
    assert result["growth_bytes"] <= hostile.GROWTH_BYTES


@pytest.mark.parametrize(
    "seed",
    [
        pytest.param(11, marks=pytest.mark.long, id="fixed"),
        pytest.param(secrets.randbelow(2**31), marks=pytest.mark.fuzz, id="new"),
    ],
)
def test_many_mutants(seed):
    """`pytest -m fuzz tests/memory` makes other mutants in every run; the message of a failure names the seed."""
    for number in range(2):
        result = hostile.attack(10_000, seed + number)
        assert result["longest_seconds"] <= hostile.SECONDS and result["growth_bytes"] <= hostile.GROWTH_BYTES, result
