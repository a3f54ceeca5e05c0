"""`ingest_corpus`: the one way in, whatever engine does the work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from tqdm import tqdm

from ttt_docs.corpus.work import CorpusReport, Outcome, Settings, read_sources
from ttt_docs.errors import UsageError
from ttt_docs.reader import TTTReader
from ttt_docs.store.store import MemoryStore

Engine = Literal["local", "ray"]


def ingest_corpus(
    sources: Sequence[str],
    store: MemoryStore,
    open_reader: Callable[[], TTTReader],
    *,
    engine: Engine = "local",
    workers: int = 2,
    settings: Settings | None = None,
    address: str | None = None,
    progress: bool | None = None,
    on_outcome: Callable[[Outcome], None] | None = None,
) -> CorpusReport:
    """Reads many documents into a store, and tells of each what became of it.

    `open_reader` makes the reader: once here, or once in each of the `workers` of Ray, where it must be something that
    pickles. `address` is that of a Ray cluster; without it a local one is started. `on_outcome` hears of each document
    when it is done. A document that cannot be read ends up in the report's `failed`, and the work goes on.

    Raises:
        UsageError: settings that cannot work, or Ray is not installed.
        StoreError: the store cannot be used.
    """
    settings = settings or Settings()
    if settings.batch < 1 or workers < 1:
        raise UsageError("batch and workers must be at least 1")
    began = time.perf_counter()
    report = CorpusReport()
    disable = None if progress is None else not progress
    with tqdm(total=len(sources), unit="doc", disable=disable, desc="corpus") as bar:
        for outcome in _outcomes(sources, store, open_reader, engine, workers, settings, address):
            report.outcomes.append(outcome)
            bar.update()
            bar.set_postfix(failed=len(report.failed), refresh=False)
            if on_outcome is not None:
                on_outcome(outcome)
    report.seconds = time.perf_counter() - began
    return report


def _outcomes(
    sources: Sequence[str],
    store: MemoryStore,
    open_reader: Callable[[], TTTReader],
    engine: Engine,
    workers: int,
    settings: Settings,
    address: str | None,
) -> Iterator[Outcome]:
    if engine == "local":
        return read_sources(open_reader(), store, sources, settings)
    from ttt_docs.corpus.on_ray import read_on_ray

    return read_on_ray(sources, store, open_reader, workers, settings, address)
