"""What the trained adapter costs: reading and decoding with it and without, in turns: medians, and the median of
the rounds' ratios.

python benchmarks/adapter_speed.py --json benchmarks/results/adapter-speed.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
from shared import add_common, book_of, facts, tokens_of

from ttt_docs import TTTReader
from ttt_docs.ttt.state import ReadingState


def reading_seconds(reader: TTTReader, tokens: torch.Tensor) -> float:
    began = time.perf_counter()
    list(ReadingState(reader.model, reader.reading).read_whole(tokens))
    return time.perf_counter() - began


def decoding_seconds(reader: TTTReader, count: int) -> float:
    memory = reader.ingest(text="The ship lay still, and nobody spoke of land. " * 40, progress=False)
    began = time.perf_counter()
    reader.continue_text(memory, max_new_tokens=count, temperature=0.0)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common(parser)
    parser.add_argument("--tokens", type=int, default=4096, help="read in each round (default 4096)")
    parser.add_argument("--decoded", type=int, default=100, help="written in each round (default 100)")
    parser.add_argument("--rounds", type=int, default=11)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = {"dtype": options.dtype, "window": options.window}
    readers = {
        "adapter": TTTReader.from_pretrained(options.model, **settings),
        "retrofit": TTTReader.from_pretrained(options.model, adapter=None, **settings),
    }
    title, text = book_of(options)
    tokens = tokens_of(readers["adapter"], text, options.tokens)
    times: dict[str, dict[str, list[float]]] = {name: {"reading": [], "decoding": []} for name in readers}
    for round_ in range(options.rounds + 1):  # the first warms up
        for name, reader in list(readers.items())[:: -1 if round_ % 2 else 1]:
            measured = reading_seconds(reader, tokens), decoding_seconds(reader, options.decoded)
            if round_:
                for kind, seconds in zip(("reading", "decoding"), measured, strict=True):
                    times[name][kind].append(seconds)
    found: dict[str, dict[str, float]] = {}
    for kind, count in (("reading", options.tokens), ("decoding", options.decoded)):
        own, other = (times[name][kind] for name in readers)
        found[kind] = {name: count / statistics.median(times[name][kind]) for name in readers}
        found[kind]["ratio"] = statistics.median(b / a for a, b in zip(own, other, strict=True))
        print(f"{kind}, tokens/s: " + ", ".join(f"{name} {value:,.3f}" for name, value in found[kind].items()))
    if options.json:
        options.json.write_text(json.dumps(facts(options, title) | {"seconds": times} | found, indent=1) + "\n")


if __name__ == "__main__":
    main()
