"""What a corpus is made of: the documents of a folder, of a pattern, or of a list."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from pathlib import Path

from ttt_docs.documents.load import SUFFIXES
from ttt_docs.documents.origin import is_url
from ttt_docs.errors import UsageError


def corpus_sources(corpus: str | os.PathLike[str]) -> list[str]:
    """Paths and URLs of the documents that `corpus` names, in a fixed order, each once.

    A folder stands for the documents in it and below it that have a known suffix; a text file for the paths and URLs
    in its lines (relative ones start at its folder; empty lines and those with # are left out); anything else is a
    pattern such as "books/**/*.epub".

    Raises UsageError when that are none.
    """
    place = os.fspath(corpus)
    path = Path(place).expanduser()
    if path.is_dir():
        found = sorted(str(p) for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        what = f"no document ({', '.join(SUFFIXES)}) in the folder"
    elif path.suffix.lower() == ".txt" and path.is_file():
        found = list(_listed(path))
        what = "no line with a path or URL in the list"
    else:
        found = sorted(p for p in glob.glob(str(path), recursive=True) if os.path.isfile(p))
        what = "no file of the pattern"
    if not found:
        raise UsageError(f"there is {what} {place}")
    return list(dict.fromkeys(found))


def _listed(path: Path) -> Iterator[str]:
    for line in path.read_text("utf-8").splitlines():
        name = line.strip()
        if name and not name.startswith("#"):
            yield name if is_url(name) else str(path.parent / Path(name).expanduser())
