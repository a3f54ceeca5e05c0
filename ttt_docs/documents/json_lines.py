"""Rows of JSON lines, plain or compressed with zstd: collections for evaluations and training."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ttt_docs.errors import DocumentError, UsageError


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Number (from 1) and content of each line of a .jsonl or .jsonl.zst file that is not empty.

    Raises:
        DocumentError: a file that cannot be read or is damaged; a line that is not JSON.
        UsageError: zstandard is not installed.
    """
    damage: tuple[type[Exception], ...] = ()
    with ExitStack() as stack:
        try:
            lines: Any = stack.enter_context(path.open("rb"))
            if path.name.lower().endswith(".zst"):
                try:
                    import zstandard
                except ImportError:
                    raise UsageError(
                        'this data needs zstandard: pip install zstandard, or "ttt-docs[train]" with all of them'
                    ) from None
                damage = (zstandard.ZstdError,)
                stream = zstandard.ZstdDecompressor().stream_reader(lines, read_across_frames=True)
                lines = stack.enter_context(io.BufferedReader(stack.enter_context(stream)))
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise DocumentError(f"{path.name}, line {number} is not JSON: {error}") from error
                yield number, row
        except damage as error:
            raise DocumentError(f"{path.name} is not intact zstd: {error}") from error
        except OSError as error:
            raise DocumentError(f"{path} cannot be read: {error.strerror or error}") from error
