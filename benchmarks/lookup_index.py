"""How long the index over a text's passages takes to build and to load, per million characters, and a search in it.

python benchmarks/lookup_index.py --books ../shared/books/valid.jsonl.zst --json lookup-index.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
from shared import add_common, book_of, facts

from ttt_docs.evaluation.needle import NOISE, TASKS, sample
from ttt_docs.lookup.question import understand
from ttt_docs.lookup.search import search
from ttt_docs.text.index import build, packed, unpacked

MILLION = 1_000_000


def seconds(function, *arguments) -> float:  # type: ignore[no-untyped-def]
    """CPU time: all of this runs in one thread, so it is what a quiet machine takes, whatever else runs here."""
    began = time.process_time()
    function(*arguments)
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common(parser)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    title, text = book_of(options)
    texts = {
        "prose": (text * (MILLION // len(text) + 1))[:MILLION],
        "noise": (f"{NOISE}\n" * (MILLION // len(NOISE)))[:MILLION],
        "needles": sample(TASKS["multikey_3"], MILLION, 0.5, None, len, 0).text,
    }
    rows = []
    for name, content in texts.items():
        built = [seconds(build, content) for _ in range(options.rounds)]
        index = build(content)
        query = understand("What is the special magic number for quiet-harbor?", index.language)
        asked = [seconds(search, index, query) for _ in range(options.rounds)]
        stored = packed(index)
        loaded = [seconds(unpacked, stored, content) for _ in range(options.rounds)]
        row = {
            "text": name,
            "characters": len(content),
            "passages": len(index),
            "terms": len(index.vocabulary),
            "build_seconds": statistics.median(built),
            "search_seconds": statistics.median(asked),
            "load_seconds": statistics.median(loaded),
            "stored_bytes": len(stored),
        }
        rows.append(row)
        print(
            " ".join(
                f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
            )
        )
    if options.json:
        options.json.write_text(json.dumps(facts(options, title) | {"results": rows}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
