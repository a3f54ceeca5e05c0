"""Documents read together against one by one, side by side.

    python benchmarks/corpus.py --books valid.jsonl.zst --json corpus.json
    python benchmarks/corpus.py --books valid.jsonl.zst --lengths 600,2049 --chunks 1024,256 --runs 5

For every length and chunk, as many documents as the batch has, of that many tokens each and from different books:
tokens per second one by one, as one batch, and shared out to threads or processes of one torch thread each. The ways
take turns, so that a busy machine slows all alike; figures are medians, ratios medians of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import torch
from books import books
from ingest import numbers, ratio
from shared import add_common, facts

from ttt_docs import TTTReader
from ttt_docs.model.config import ReadingConfig
from ttt_docs.reading.chunks import Track, batch_state, read_batch


def read(reader: TTTReader, reading: ReadingConfig, documents: list[list[int]]) -> None:
    tracks = []
    for ids in documents:
        track = Track(reader._checked(None))
        track.tokens.extend(ids)
        tracks.append(track)
    read_batch(batch_state(reader.model, reading, len(tracks)), tracks)


def one_by_one(reader: TTTReader, reading: ReadingConfig, documents: list[list[int]], threads: int) -> None:
    for ids in documents:
        read(reader, reading, [ids])


def together(reader: TTTReader, reading: ReadingConfig, documents: list[list[int]], threads: int) -> None:
    read(reader, reading, documents)


def in_threads(reader: TTTReader, reading: ReadingConfig, documents: list[list[int]], threads: int) -> None:
    """Each thread of Python reads its share of the documents, one after the other, with one thread of torch."""

    def work(share: list[list[int]]) -> None:
        torch.set_num_threads(1)
        one_by_one(reader, reading, share, 1)

    workers = [threading.Thread(target=work, args=(documents[i::threads],)) for i in range(threads)]
    torch.set_num_threads(1)
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    torch.set_num_threads(threads)


_pool: ProcessPoolExecutor | None = None
_theirs: TTTReader | None = None


def _open(settings: dict[str, Any]) -> None:
    """In a process of the pool: one thread of torch, and a reader of its own."""
    global _theirs
    torch.set_num_threads(1)
    _theirs = TTTReader.from_pretrained(**settings)


def _work(reading: ReadingConfig, share: list[list[int]]) -> None:
    assert _theirs is not None
    one_by_one(_theirs, reading, share, 1)


def in_processes(reader: TTTReader, reading: ReadingConfig, documents: list[list[int]], threads: int) -> None:
    """The same with processes, each of which holds the model."""
    global _pool
    if _pool is None:
        settings = {"name": reader.name, "dtype": reader.model.dtype, "window": reader.reading.window}
        context = multiprocessing.get_context("spawn")
        _pool = ProcessPoolExecutor(threads, context, initializer=_open, initargs=(settings,))
    for done in [_pool.submit(_work, reading, documents[i::threads]) for i in range(threads)]:
        done.result()


WAYS = {"one by one": one_by_one, "together": together, "in threads": in_threads, "in processes": in_processes}


def measure(reader: TTTReader, ids: list[list[int]], length: int, chunk: int, options: Any) -> dict[str, Any]:
    reading = reader.reading.model_copy(update={"chunk": chunk})
    documents = [one[:length] for one in ids]
    ways = {name: WAYS[name] for name in ["one by one", *options.ways]}
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for run in range(options.runs + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            way(reader, reading, documents, options.threads)
            if run:  # the first round only warms up
                speeds[name].append(length * len(documents) / (time.perf_counter() - began))
    return {
        "tokens": length,
        "chunk": chunk,
        "tokens_per_second": {name: median(found) for name, found in speeds.items()},
        "to_one_by_one": {name: ratio(found, speeds["one by one"]) for name, found in speeds.items()},
        "all": speeds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common(parser)
    parser.add_argument("--batch", type=int, default=4, help="documents read together (default 4)")
    parser.add_argument("--lengths", type=numbers, default=[600, 2049], metavar="N,N", help="tokens of each document")
    parser.add_argument("--chunks", type=numbers, default=[1024, 256], metavar="N,N")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS)[1:], default=list(WAYS)[1:], help="beside one by one")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.books is None:
        parser.error("--books is needed")
    reader = TTTReader.from_pretrained(options.model, dtype=options.dtype, window=options.window)
    longest = max(options.lengths)
    ids = []
    for book in books(options.books):
        ids.append(reader.tokenizer.encode(book["text"][20_000 : 20_000 + 12 * longest])[:longest])
        if len(ids) == options.batch:
            break
    rows = []
    for length in options.lengths:
        for chunk in options.chunks:
            rows.append(measure(reader, ids, length, chunk, options))
            print(f"  {length} tokens, chunk {chunk}: {rows[-1]['to_one_by_one']}", file=sys.stderr, flush=True)
    names = ["one by one", *options.ways]
    print(f"| tokens each | chunk | {names[0]}, tokens/s | {' | '.join(names[1:])} |\n|---|---|{'---|' * len(names)}")
    for row in rows:
        speed, gain = row["tokens_per_second"], row["to_one_by_one"]
        others = " | ".join(f"{speed[name]:,.0f} ({gain[name]:.2f}x)" for name in names[1:])
        print(f"| {row['tokens']:,} | {row['chunk']:,} | {speed['one by one']:,.0f} | {others} |")
    if options.json:
        result = facts(options, f"{options.batch} books") | {"batch": options.batch, "rows": rows}
        Path(options.json).write_text(json.dumps(result, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
