"""A corpus: which documents it is made of, and `ingest_corpus`, which reads them whatever engine does the work."""

from __future__ import annotations

import glob
import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from ttt_docs.corpus.batches import CorpusReport, Outcome, Settings, read_sources
from ttt_docs.documents.load import SUFFIXES
from ttt_docs.documents.origin import is_url
from ttt_docs.errors import UsageError
from ttt_docs.reader import TTTReader
from ttt_docs.store.store import MemoryStore

logger = logging.getLogger(__name__)
#: Files of a folder that are named when they are left out.
NAMED = 5


def corpus_sources(corpus: str | os.PathLike[str]) -> list[str]:
    """Paths and URLs of the documents that `corpus` names, in a fixed order, each once.

    A folder stands for the documents in it and below it that have a known suffix; a text file for the paths and URLs
    in its lines (relative ones start at its folder; empty lines and those with # are left out); anything else is a
    pattern such as "books/**/*.epub". Files and folders that cannot be read are among the sources, so that they are
    listed as failed. Files of a folder with another suffix are logged.

    Raises UsageError when there are none, or the list is not text.
    """
    path = Path(corpus).expanduser()
    if path.is_dir():
        found, what = _in_folder(path), f"no document ({', '.join(SUFFIXES)}) in the folder"
    elif path.suffix.lower() == ".txt" and path.is_file():
        found, what = _in_list(path), "no line with a path or URL in the list"
    else:
        found, what = sorted(filter(_is_file, glob.glob(str(path), recursive=True))), "no file of the pattern"
    if not found:
        raise UsageError(f"there is {what} {os.fspath(corpus)}")
    return list(dict.fromkeys(found))


def _in_folder(folder: Path) -> list[str]:
    found: list[str] = []
    others: list[str] = []
    for parent, _, names in os.walk(folder, onerror=lambda error: found.append(str(error.filename))):
        for path in (os.path.join(parent, name) for name in names if not name.startswith(".")):
            if os.path.splitext(path)[1].lower() not in SUFFIXES:
                others.append(os.path.relpath(path, folder))
            elif _is_file(path):
                found.append(path)
    if others:
        named = ", ".join(sorted(others)[:NAMED]) + (", ..." if len(others) > NAMED else "")
        logger.warning(
            "%s: %d left out, with a suffix that is none of %s: %s", folder, len(others), ", ".join(SUFFIXES), named
        )
    return sorted(found)


def _in_list(path: Path) -> list[str]:
    try:
        lines = (line.strip() for line in path.read_text("utf-8-sig").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: a list is a UTF-8 text file with one path or URL a line ({error})") from error
    names = (line for line in lines if line and not line.startswith("#"))
    return [name if is_url(name) else str(path.parent / Path(name).expanduser()) for name in names]


def _is_file(path: str) -> bool:
    """Also true of what cannot be looked at, such as a link to nothing."""
    return os.path.isfile(path) or not os.path.exists(path)


def ingest_corpus(
    sources: Sequence[str],
    store: MemoryStore,
    open_reader: Callable[[], TTTReader],
    *,
    engine: Literal["local", "ray"] = "local",
    workers: int = 2,
    settings: Settings | None = None,
    address: str | None = None,
    progress: bool | None = None,
    on_outcome: Callable[[Outcome], object] = lambda outcome: None,
) -> CorpusReport:
    """Reads many documents into a store, and reports what became of each.

    `open_reader` makes the reader: once here, or once in each of the `workers` of Ray, for which it must pickle.
    `address` is that of a Ray cluster; without it a local one is started. `on_outcome` is called for each document when
    it is done. A document that cannot be read or stored is in the report's `failed`, and the work goes on.

    Raises:
        UsageError: settings that cannot work, or Ray is not installed.
        StoreError: the store cannot be used.
        TTTDocsError: no Ray cluster answers, or none of its processes can be started.
    """
    settings = settings or Settings()
    if settings.batch < 1 or workers < 1:
        raise UsageError("batch and workers must be at least 1")
    began = time.perf_counter()
    report = CorpusReport()
    disable = None if progress is None else not progress
    with tqdm(total=len(sources), unit="doc", disable=disable, desc="corpus") as bar:
        if engine == "local":
            outcomes = read_sources(open_reader(), store, sources, settings)
        else:
            from ttt_docs.corpus.on_ray import read_on_ray

            outcomes = read_on_ray(sources, store, open_reader, workers, settings, address)
        for outcome in outcomes:
            report.outcomes.append(outcome)
            bar.update()
            bar.set_postfix(failed=len(report.failed), refresh=False)
            on_outcome(outcome)
    report.seconds = time.perf_counter() - began
    return report
