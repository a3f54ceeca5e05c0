"""Named objects in a folder or at an fsspec URL. A writer replaces an object whole; a reader sees the old or the new.

On a local disk that is a temporary file and a rename. An object store shows an object once its upload is complete and
answers one request from one version of it, so an object is written with one put and read with one get. Elsewhere (SFTP,
network shares, ...) a temporary object is moved into place.
"""

from __future__ import annotations

import io
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ttt_docs.documents.origin import is_url
from ttt_docs.errors import StoreError, TTTDocsError, UsageError
from ttt_docs.io import replacing

#: Schemes whose put shows the whole object or nothing, and whose get reads one version of it.
_SINGLE_PUT = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "oci", "memory"}
TEMPORARY = ".tmp"


class Stamp(NamedTuple):
    """What tells one version of an object from another without reading it. `version` is None where nothing does."""

    nbytes: int
    modified: float  # seconds since the epoch; 0 where unknown
    version: object


@contextmanager
def _saying_why(place: object) -> Iterator[None]:
    """What a disk, a network or a storage library raises becomes a StoreError; a missing object stays what it is."""
    try:
        yield
    except (TTTDocsError, FileNotFoundError):
        raise
    except PermissionError as error:
        raise StoreError(f"no permission for the store {place}: {error}. Check its rights or credentials.") from error
    except ImportError as error:
        raise StoreError(f"the store {place} needs a package that is not installed: {error}. Install it.") from error
    except ValueError as error:
        raise StoreError(f"{place} cannot be the place of a store: {error}. Give a folder or an fsspec URL.") from error
    except Exception as error:  # each fsspec backend brings errors of its own (credentials, DNS, timeouts)
        raise StoreError(
            f"the store {place} cannot be used ({type(error).__name__}: {error}). Check the place, the network and "
            "credentials, then retry."
        ) from error


class Folder:
    """Files of one local folder, which need not exist yet."""

    def __init__(self, folder: Path) -> None:
        self.place = folder

    def stamps(self) -> dict[str, Stamp]:
        """All objects by name, temporary ones included."""
        with _saying_why(self.place):
            try:
                entries = list(os.scandir(self.place))
            except FileNotFoundError:
                return {}
            found = {}
            for entry in entries:
                with suppress(FileNotFoundError):  # replaced or removed meanwhile
                    if entry.is_file():
                        status = entry.stat()
                        version = (status.st_mtime_ns, status.st_ino)
                        found[entry.name] = Stamp(status.st_size, status.st_mtime, version)
            return found

    def has(self, name: str) -> bool:
        """Whether there is such an object."""
        return (self.place / name).is_file()

    def open(self, name: str, nbytes: int | None = None) -> BinaryIO:
        """One version of an object, whole, or at least its first `nbytes`. Raises FileNotFoundError."""
        with _saying_why(self.place):
            return (self.place / name).open("rb")

    @contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        """A file to write; on leaving the block it is the object."""
        with _saying_why(self.place):
            self.place.mkdir(parents=True, exist_ok=True)
        with replacing(self.place / name) as file:
            yield file

    def remove(self, name: str) -> bool:
        """False if there was no such object."""
        with _saying_why(self.place):
            try:
                os.unlink(self.place / name)
            except FileNotFoundError:
                return False
            return True


class Bucket:
    """Objects under one URL of any scheme that fsspec knows. The methods are those of `Folder`."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        import fsspec

        with _saying_why(url):
            # Listings that fsspec remembers would hide what other processes wrote.
            self.system, root = fsspec.core.url_to_fs(url, **{"use_listings_cache": False, **options})
        self.place, self.root = url, root.rstrip("/")
        protocols = self.system.protocol
        protocols = {protocols} if isinstance(protocols, str) else set(protocols)
        self.single_put = bool(protocols & _SINGLE_PUT)

    def stamps(self) -> dict[str, Stamp]:
        with _saying_why(self.place):
            self.system.invalidate_cache()
            try:
                listing = self.system.ls(self.root, detail=True)
            except FileNotFoundError:
                return {}
            files = (info for info in listing if info["type"] == "file")
            return {info["name"].rsplit("/", 1)[-1]: _stamp(info) for info in files}

    def has(self, name: str) -> bool:
        with _saying_why(self.place):
            self.system.invalidate_cache()
            return bool(self.system.exists(self._path(name)))

    def open(self, name: str, nbytes: int | None = None) -> BinaryIO:
        with _saying_why(self.place):
            return io.BytesIO(self.system.cat_file(self._path(name), start=None, end=nbytes))

    @contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        with tempfile.TemporaryDirectory(prefix="ttt-docs-") as folder:
            local = Path(folder) / "object"
            with replacing(local) as file:
                yield file
            self._upload(str(local), name)

    def _upload(self, local: str, name: str) -> None:
        with _saying_why(self.place):
            if self.single_put:
                self.system.put_file(local, self._path(name))
                return
            temporary = self._path(f".ttt-{secrets.token_hex(8)}{TEMPORARY}")
            self.system.makedirs(self.root, exist_ok=True)
            try:
                self.system.put_file(local, temporary)
                self.system.mv(temporary, self._path(name))
            except BaseException:
                with suppress(Exception):
                    self.system.rm_file(temporary)
                raise

    def remove(self, name: str) -> bool:
        with _saying_why(self.place):
            if not self.has(name):
                return False
            with suppress(FileNotFoundError):
                self.system.rm_file(self._path(name))
            return True

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"


def objects_at(location: str | os.PathLike[str], options: dict[str, Any]) -> Folder | Bucket:
    """The objects in a folder or at a URL."""
    where = os.fspath(location)
    if not where:
        raise UsageError("a store needs a place: give a folder or a URL such as s3://bucket/memories")
    if is_url(where) and not where.startswith("file://"):
        return Bucket(where, options)
    return Folder(Path(where.removeprefix("file://")).expanduser())


def _stamp(info: dict[str, Any]) -> Stamp:
    changed = next((info[key] for key in ("LastModified", "last_modified", "mtime", "created") if info.get(key)), 0)
    modified = changed.timestamp() if hasattr(changed, "timestamp") else changed
    version = next((info[key] for key in ("ETag", "etag", "md5Hash") if info.get(key)), changed or None)
    return Stamp(info["size"], modified if isinstance(modified, (int, float)) else time.time(), version)
