"""A write that fails, at any point, leaves the old file as it was and nothing beside it."""

from __future__ import annotations

import builtins
import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from memory_files import make_memory

from ttt_docs.errors import TTTDocsError, UsageError
from ttt_docs.memory import Memory, memories_equal

OLD, NEW = make_memory(0), make_memory(1)


@pytest.fixture
def path(tmp_path) -> Path:
    return OLD.save(tmp_path / "book.ttt")


def fail_at(step: str, error: BaseException, monkeypatch, after: int = 0) -> None:
    """Let the (`after` + 1)-th write, the fsync or the rename of a file raise `error`."""

    def fail(*_, **__):
        raise error

    if step != "write":
        monkeypatch.setattr(os, step, fail)
        return
    opened = builtins.open

    class Failing:
        def __init__(self, file):
            self.file, self.left = file, after

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            self.left -= 1
            if self.left < 0:
                raise error
            return self.file.write(data)

    def open_failing(name, mode="r", **options):
        file = opened(name, mode, **options)
        return Failing(file) if mode == "xb" else file

    monkeypatch.setattr(builtins, "open", open_failing)


STEPS = [("write", 0), ("write", 1), ("write", 9), ("fsync", 0), ("replace", 0)]


@pytest.mark.parametrize(("step", "after"), STEPS)
@pytest.mark.parametrize(
    ("error", "raised", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), TTTDocsError, "disk is full.*Nothing was changed"),
        (OSError(errno.EDQUOT, "Quota exceeded"), TTTDocsError, "disk is full"),
        (OSError(errno.EIO, "Input/output error"), TTTDocsError, "Input/output error"),
        (PermissionError(errno.EACCES, "Permission denied"), TTTDocsError, "no permission"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
        (MemoryError(), MemoryError, None),
    ],
)
def test_a_failing_write_leaves_the_old_file(path, monkeypatch, step, after, error, raised, words):
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        fail_at(step, error, patch, after)
        with pytest.raises(raised, match=words) as caught:
            NEW.save(path)
    assert words is None or "book.ttt" in str(caught.value)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["book.ttt"]


def test_a_failing_first_write_leaves_nothing(tmp_path, monkeypatch):
    fail_at("fsync", OSError(errno.ENOSPC, "No space left on device"), monkeypatch)
    with pytest.raises(TTTDocsError, match="disk is full"):
        NEW.save(tmp_path / "book.ttt")
    assert not os.listdir(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="has no file size limit")
def test_a_limit_of_the_system_itself(path):
    """No fake: the kernel refuses the bytes after the first 1,000 (EFBIG)."""
    script = (
        "import resource, sys; from memory_files import make_memory; from ttt_docs.errors import TTTDocsError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: make_memory(1).save(sys.argv[1])\n"
        "except TTTDocsError as error: print(error)"
    )
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parents[1])])}
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], env=environment, capture_output=True, text=True, check=True
    )
    assert "disk is full" in done.stdout
    assert memories_equal(Memory.load(path), OLD) and os.listdir(path.parent) == ["book.ttt"]


def test_a_memory_with_nan_leaves_the_old_file(path):
    broken = make_memory()
    broken.fast[2]["w3"][0, 0] = torch.nan  # found when half the file is written
    with pytest.raises(TTTDocsError, match="smaller inner_lr"):
        broken.save(path)
    assert memories_equal(Memory.load(path), OLD) and os.listdir(path.parent) == ["book.ttt"]


def test_targets_that_cannot_be_files(tmp_path):
    with pytest.raises(UsageError, match="is a folder"):
        OLD.save(tmp_path)
    with pytest.raises(UsageError, match="does not exist; create it first"):
        OLD.save(tmp_path / "no" / "book.ttt")
    (tmp_path / "file").touch()
    with pytest.raises(TTTDocsError, match="is a file, not a folder"):
        OLD.save(tmp_path / "file" / "book.ttt")
    with pytest.raises(UsageError, match="not an ordinary file"):
        OLD.save(os.devnull)
    with pytest.raises(UsageError, match="another name"):
        OLD.save("a\0b")
    with pytest.raises(TTTDocsError, match="another name or folder"):
        OLD.save(tmp_path / ("x" * 300))
    assert os.listdir(tmp_path) == ["file"]


def test_the_longest_name_that_the_system_allows(tmp_path):
    name = "x" * 251 + ".ttt"
    assert memories_equal(Memory.load(OLD.save(tmp_path / name)), OLD)


def test_a_write_protected_file_stays(path, monkeypatch):
    path.chmod(0o444)
    monkeypatch.setattr(os, "access", lambda *_: False)  # tests may run as root, who is always allowed
    with pytest.raises(TTTDocsError, match="no permission"):
        NEW.save(path)
    assert memories_equal(Memory.load(path), OLD)


def test_the_file_is_flushed_before_it_is_renamed_and_the_folder_after(path, monkeypatch):
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def folder_or_file(descriptor: int) -> None:
        calls.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        fsync(descriptor)

    def rename(*names) -> None:
        calls.append("rename")
        replace(*names)

    monkeypatch.setattr(os, "fsync", folder_or_file)
    monkeypatch.setattr(os, "replace", rename)
    NEW.save(path)
    if os.path.exists("/proc/self/fd"):
        assert calls == ["file", "rename", "folder"]


def test_two_writers_and_a_reader_at_once(path):
    """Every load sees one whole memory, and no temporary file stays."""
    failures: list[BaseException] = []

    def write(memory: Memory) -> None:
        try:
            for _ in range(20):
                memory.save(path)
        except BaseException as error:
            failures.append(error)

    writers = [threading.Thread(target=write, args=(memory,)) for memory in (OLD, NEW)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        loaded = Memory.load(path)
        assert memories_equal(loaded, OLD) or memories_equal(loaded, NEW)
    for writer in writers:
        writer.join()
    assert not failures and os.listdir(path.parent) == ["book.ttt"]
