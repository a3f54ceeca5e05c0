"""SIGKILL at any moment: the same call goes on from what was kept, to the same bits as an uninterrupted reading."""

from __future__ import annotations

import multiprocessing
import random
import signal
import sys
import time

import crash_reading
import pytest

from ttt_docs import MemoryStore
from ttt_docs.memory import memories_equal

KILLS = 50


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_killed_fifty_times(tmp_path):
    """Every kill ends a process of its own; those that finish first are checked, and their work is thrown away."""
    whole, moments = crash_reading.read(None), random.Random(6)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["crash_reading"])  # torch is imported once for all
    store = MemoryStore(tmp_path)
    kills, finished, kept, longest = 0, 0, set(), 0.1
    while kills < KILLS:
        started = context.Event()
        process = context.Process(target=crash_reading.read, args=(str(tmp_path), started))
        process.start()
        began = time.monotonic()
        while not started.is_set() and process.is_alive():
            time.sleep(0.001)
        process.join(moments.uniform(0, longest))
        process.kill()
        process.join(60)
        for part in map(store.part, store.parts()):
            assert part is not None, "a part that cannot be used"
            assert 0 < part.position < whole.position and not part.documents[0].complete
            kept.add(part.position)
        if process.exitcode == -signal.SIGKILL:
            kills += 1
            continue
        assert process.exitcode == 0
        (key,) = store.keys()
        memory = store.get(key)
        assert memory is not None and memories_equal(memory, whole) and memory.text == whole.text
        assert memory.documents == whole.documents
        store.delete(key)
        finished += 1
        longest = min(longest, time.monotonic() - began)
    memory = crash_reading.read(str(tmp_path))
    assert memories_equal(memory, whole) and memory.documents == whole.documents and store.parts() == {}
    assert len(kept) > 5, "the kills came at too few places to mean anything"
