"""The file system and the keyboard: files replaced whole, the cache folder, Ctrl-C that waits for the chunk's end."""

from __future__ import annotations

import errno
import json
import os
import secrets
import signal
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

import platformdirs

from ttt_docs.errors import TTTDocsError, UsageError

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a new file for writing; on leaving the block it takes the place of `path` in one step.

    The bytes go to a temporary file in the same folder, which is flushed to the disk and renamed. If anything raises
    (KeyboardInterrupt included) the temporary file is removed and `path` stays as it was. A symbolic link is followed;
    a file that is replaced passes its permission bits on.

    Raises:
        UsageError: `path` is a folder, a device or the like, or its folder does not exist.
        TTTDocsError: no permission, a full disk, or another failure of the system.
    """
    with _saying_why(path):
        target, mode = _check_target(path)
        # A short name of its own: two writers never share one, and a long target name leaves room for it.
        temporary = target.parent / f".ttt-{secrets.token_hex(8)}.tmp"
        try:
            with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode or 0o666)) as file:
                if mode is not None:
                    os.chmod(temporary, mode)  # os.open alone would subtract the umask
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        _flush_folder(target.parent)


def write_json(path: Path, content: Any, indent: int | None = None) -> None:
    """`replacing`, with `content` as JSON and a line break."""
    with replacing(path) as file:
        file.write(json.dumps(content, indent=indent).encode() + b"\n")


def check_writable(path: Path) -> None:
    """Raises what `replacing` would raise, as far as that can be known before there is anything to write.

    A file is made beside `path` and removed: no question about permissions covers every file system.
    """

    class Enough(Exception):
        pass

    with suppress(Enough), replacing(path):
        raise Enough


def _check_target(path: Path) -> tuple[Path, int | None]:
    """The file to replace, links followed, and its permission bits (None: there is no such file yet)."""
    target = Path(os.path.realpath(path))
    try:
        status = os.stat(target)
    except FileNotFoundError:
        if not target.parent.is_dir():
            raise UsageError(
                f"cannot write {path}: the folder {target.parent} does not exist; create it first"
            ) from None
        return target, None
    if stat.S_ISDIR(status.st_mode):
        raise UsageError(f"cannot write {path}: it is a folder; give the name of a file, such as {path / 'book.ttt'}")
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(f"cannot write {path}: it is not an ordinary file; give another name")
    if not os.access(target, os.W_OK):  # a rename would replace even a file that is write-protected
        raise PermissionError(errno.EACCES, "the file is write-protected")
    return target, stat.S_IMODE(status.st_mode)


def _flush_folder(folder: Path) -> None:
    # Makes the rename outlast a power cut. Not every file system can; old and new file are whole either way.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _saying_why(path: Path) -> Iterator[None]:
    """Turn the system's errors into sentences."""
    try:
        yield
    except ValueError as error:  # a null byte in the name
        if isinstance(error, TTTDocsError) or "null" not in str(error):
            raise
        raise UsageError(f"cannot write {str(path)!r}: {error}; give another name") from error
    except OSError as error:
        if error.errno in _NO_SPACE:
            advice = "the disk is full; free some space or choose another disk. Nothing was changed"
        elif isinstance(error, PermissionError):
            advice = "no permission; choose another folder, or change the permissions of this one"
        elif isinstance(error, NotADirectoryError):
            advice = "a part of its path is a file, not a folder; choose another folder"
        else:
            advice = f"{error.strerror or error}; choose another name or folder"
        raise TTTDocsError(f"cannot write {path}: {advice}") from error


def cache_folder() -> Path:
    """`TTT_DOCS_CACHE`, or the user's cache folder of this system."""
    chosen = os.environ.get("TTT_DOCS_CACHE")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("ttt-docs"))


def readable_bytes(count: float) -> str:
    """A number of bytes for people: 999 bytes, 1.0 KB, 132.2 MB."""
    for unit in ("bytes", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


class Interrupt:
    """Inside the `with`, the first SIGINT only sets `requested`; the second raises KeyboardInterrupt at once.

    In threads other than the main one signals never arrive, and nothing is changed.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: Any = None

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
