"""Tokens per second of a corpus on a local Ray cluster, with one and with two workers.

    python benchmarks/corpus_ray.py --books valid.jsonl.zst --json corpus-ray.json

The beginnings of several books, one document a task, go into a store in a temporary folder. Time is that of the whole
call, starting the cluster and loading the model included: outcomes come in groups, so a clock between them would not be
fair. Workers share the cores evenly. The numbers of workers take turns.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from books import books
from ingest import numbers, ratio
from shared import add_common, facts

from ttt_docs import MemoryStore, TTTReader
from ttt_docs.corpus.batches import Settings
from ttt_docs.corpus.ingestion import ingest_corpus


def open_reader(options: argparse.Namespace) -> TTTReader:
    return TTTReader.from_pretrained(options.model, dtype=options.dtype, window=options.window)


def speed(sources: list[str], folder: Path, workers: int, options: argparse.Namespace) -> float:
    """Tokens per second of the whole call."""
    report = ingest_corpus(
        sources,
        MemoryStore(folder),
        partial(open_reader, options),
        engine="ray",
        workers=workers,
        settings=Settings(batch=1),
        progress=False,
    )
    assert report.count("read") == len(sources), report.failed
    return report.tokens / report.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common(parser)
    parser.add_argument("--documents", type=int, default=8)
    parser.add_argument("--characters", type=int, default=5000, help="of each document (default 5000)")
    parser.add_argument("--workers", type=numbers, default=[1, 2], metavar="N,N")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    if options.books is None:
        parser.error("--books is needed")
    speeds: dict[int, list[float]] = {workers: [] for workers in options.workers}
    with tempfile.TemporaryDirectory() as folder:
        sources = []
        for number, book in enumerate(books(options.books)):
            if number == options.documents:
                break
            path = Path(folder) / f"{number}.txt"
            path.write_text(book["text"][20_000 : 20_000 + options.characters], "utf-8")
            sources.append(str(path))
        for run in range(options.runs):
            for workers in options.workers:
                speeds[workers].append(speed(sources, Path(folder) / f"{run}-{workers}", workers, options))
                print(f"  {workers} workers: {speeds[workers][-1]:,.0f} tokens/s", file=sys.stderr, flush=True)
    rows: list[dict[str, Any]] = [
        {
            "workers": workers,
            "tokens_per_second": median(found),
            "to_first": ratio(found, speeds[options.workers[0]]),
            "all": found,
        }
        for workers, found in speeds.items()
    ]
    print("| workers | tokens/s | to the first |\n|---|---|---|")
    for row in rows:
        print(f"| {row['workers']} | {row['tokens_per_second']:,.0f} | {row['to_first']:.2f}x |")
    if options.json:
        result = facts(options, f"{len(sources)} books") | {"characters": options.characters, "rows": rows}
        options.json.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
