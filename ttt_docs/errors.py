"""Every error a user can meet. Each message says what was wrong and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class TTTDocsError(Exception):
    """Base of all errors raised on purpose: the command line prints it, no traceback, and exits with `exit_code`."""

    exit_code = 1


class UsageError(TTTDocsError, ValueError):
    """An argument that cannot work (a window smaller than the chunk, an empty question, ...)."""

    exit_code = 2


class DocumentError(TTTDocsError):
    """A document that cannot be read: missing, empty, encrypted, broken, too large, not text."""


class CheckpointError(TTTDocsError):
    """Weights that cannot be found, downloaded, verified or understood."""


class MemoryFormatError(TTTDocsError):
    """A file that is not an intact memory of a version and model this reader can use."""


class MemoryMismatchError(MemoryFormatError):
    """An intact memory that belongs to another model or to other reading parameters."""


class StoreError(TTTDocsError):
    """A store of memories that cannot be reached, read or written."""


class ReadingInterrupted(KeyboardInterrupt):
    """Ctrl-C while reading. `memory` holds what was read until then; ingesting the same document goes on from it."""

    def __init__(self, memory: Any) -> None:
        """`memory` is a `ttt_docs.Memory`; this file knows none."""
        super().__init__(f"reading was interrupted after {memory.position:,} tokens")
        self.memory = memory


@contextmanager
def naming_the_values() -> Iterator[None]:
    """Turns what pydantic finds wrong with values into a UsageError that names each."""
    from pydantic import ValidationError

    try:
        yield
    except ValidationError as error:
        wrong = []
        for one in error.errors():
            name, said = ".".join(map(str, one["loc"])), one["msg"].removeprefix("Value error, ")
            wrong.append(f"{name}={one['input']!r}: {said}" if name else said)
        raise UsageError("; ".join(wrong)) from error
