"""Where the bytes come from: a path, standard input, a file object or any fsspec URL, always with a limit on size."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from ttt_docs.errors import DocumentError

#: Bytes that one document may have: 512 MiB.
DEFAULT_MAX_BYTES = 512 * 1024 * 1024

#: Read at a time, in bytes or characters.
PIECE = 1 << 20

_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+(?:::[A-Za-z][A-Za-z0-9+.-]+)*://")


def is_url(source: object) -> bool:
    """Whether `source` is a str such as "s3://bucket/key"; "C:\\book.pdf" is a path."""
    return isinstance(source, str) and bool(_URL.match(source))


def source_name(source: object) -> str:
    """A name for people: the last part of a path or URL, or "standard input", or "stream"."""
    if isinstance(source, str) and source == "-":
        return "standard input"
    if isinstance(source, str) and is_url(source):
        parts = urlsplit(source.rsplit("::", 1)[-1])
        return unquote(parts.path).rstrip("/").rsplit("/", 1)[-1] or parts.netloc or source
    if isinstance(source, (str, os.PathLike)):
        return Path(source).name or str(source)
    inner = getattr(source, "name", None)
    return Path(inner).name if isinstance(inner, str) and inner and not inner.startswith("<") else "stream"


@contextmanager
def open_source(source: Any, name: str) -> Iterator[IO[Any]]:
    """Opens `source` for reading: binary, except that a text file object stays one. Closes only what it opened.

    Raises DocumentError when it is missing, a folder, not permitted, or a URL that cannot be opened.
    """
    if isinstance(source, str) and source == "-":
        yield getattr(sys.stdin, "buffer", sys.stdin)
    elif isinstance(source, (str, os.PathLike)):
        with _open(source) as file:
            yield file
    elif callable(getattr(source, "read", None)):
        yield source
    else:
        raise DocumentError(
            f"{name}: cannot read a document from {type(source).__name__}. Give a path, a URL, '-' for standard input, "
            "or an open file."
        )


def read_source(source: Any, name: str, max_bytes: int) -> bytes | str:
    """Everything in `source`: bytes, or a str for a text file object.

    Raises DocumentError as `open_source` does, and when there are more than `max_bytes` (of UTF-8, for a str).
    """
    pieces: list[Any] = []
    with open_source(source, name) as file:
        total = 0
        for piece in read_pieces(file, name, PIECE):
            total += len(piece.encode("utf-8", "surrogatepass")) if isinstance(piece, str) else len(piece)
            check_size(total, name, max_bytes)
            pieces.append(piece)
    return (b"" if not pieces or isinstance(pieces[0], bytes) else "").join(pieces)


def read_pieces(file: IO[Any], name: str, size: int) -> Iterator[Any]:
    """Pieces of up to `size` bytes or characters until the end. Raises DocumentError when reading fails."""
    while True:
        try:
            piece = file.read(size)
        except UnicodeDecodeError as error:
            raise DocumentError(
                f"{name}: the open text file is not {error.encoding}. Open it in binary mode, or with its encoding."
            ) from None
        except Exception as error:  # closed files, torn connections; each fsspec backend has errors of its own
            raise DocumentError(f"{name}: reading failed ({error}). Check the file or connection, retry.") from error
        if not piece:  # a non-blocking stream's None also ends here
            return
        yield bytes(piece) if isinstance(piece, (bytearray, memoryview)) else piece


def check_size(size: int, name: str, max_bytes: int) -> None:
    """Raises DocumentError when `size` is above `max_bytes`."""
    if size > max_bytes:
        raise DocumentError(
            f"{name}: larger than the limit of {max_bytes} bytes ({max_bytes / 2**20:.4g} MiB). "
            "Split the file, or raise the limit (max_bytes)."
        )


def _open(source: str | os.PathLike[str]) -> IO[Any]:
    url = is_url(source)
    try:
        if url:
            import fsspec

            return fsspec.open(source, "rb").open()
        path = Path(source).expanduser()
        if path.is_dir():
            os.scandir(path).close()  # a folder that may not be read: that is the reason to name
        return open(path, "rb")
    except FileNotFoundError:
        problem = (
            "there is nothing at this address. Check the URL." if url else "there is no such file. Check the path."
        )
    except IsADirectoryError:
        problem = "this is a folder. Give one file inside it."
    except PermissionError:
        problem = f"no permission to read this. {'Check your credentials' if url else 'Change its permissions'}."
    except ImportError as error:
        problem = (
            f"reading this needs a package that is not installed ({error}). Install it with pip, or download the file "
            "and give its path."
        )
    except Exception as error:  # each fsspec backend brings errors of its own (credentials, DNS, timeouts)
        reason = f"{type(error).__name__}: {error}"
        check = "the URL and its scheme, your network and your credentials" if url else "the path"
        problem = f"cannot open this ({reason}). Check {check}."
    raise DocumentError(f"{source}: {problem}")
