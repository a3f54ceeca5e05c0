"""Processes of their own that do not each import torch."""

from __future__ import annotations

import multiprocessing
import os
import sys

import pytest


@pytest.fixture(scope="session")
def processes():
    """A context whose processes are forked from one that has imported everything; SIGKILL ends them like any other."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["crash_reading"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # where the server finds what to import
        process = context.Process(target=int)
        process.start()
        process.join()
    return context
