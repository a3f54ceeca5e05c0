"""Loss with and without TTT, by inner rule: docs/method.md section 6 on one book.

    python benchmarks/rules.py --books valid.jsonl.zst --id ID --json rules.json
    python benchmarks/rules.py --rows "no TTT" "sgd 1.0 b=1024" --tokens 8192

Nats per token over all and by quarter of the book's first tokens, each token predicted before anything is learned from
it. The first row is the same model with the window alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

import torch
from shared import add_common, book_of, facts, tokens_of

from ttt_docs import TTTReader
from ttt_docs.ttt.state import ReadingState

ROWS: dict[str, dict[str, Any]] = {
    "no TTT": {"learn": False},
    "sgd 1.0 b=1024": {"inner_rule": "sgd", "inner_lr": 1.0},
    "sgd 0.3 b=1024": {"inner_rule": "sgd", "inner_lr": 0.3},
    "normalized 0.3 b=1024": {"inner_rule": "normalized", "inner_lr": 0.3},
    "normalized 0.3 b=512": {"inner_rule": "normalized", "inner_lr": 0.3, "chunk": 512},
    "normalized 0.3 b=512, 15 blocks": {
        "inner_rule": "normalized", "inner_lr": 0.3, "chunk": 512, "suffix_blocks": 15,
    },
}  # fmt: skip


def measure(name: str, options: argparse.Namespace, text: str) -> dict[str, Any]:
    settings = {"dtype": options.dtype, "window": options.window} | ROWS[name]
    reader = TTTReader.from_pretrained(options.model, adapter=None, **settings)
    tokens = tokens_of(reader, text, options.tokens)
    state = ReadingState(reader.model, reader.reading)
    began = time.perf_counter()
    results = list(state.read_whole(tokens))
    seconds = time.perf_counter() - began
    nll = torch.cat([result.nll[0] for result in results]).double()
    return {
        "name": name,
        "reading": reader.reading.model_dump(),
        "suffix_blocks": reader.model.config.suffix_blocks,
        "tokens": len(nll),
        "loss": float(nll.mean()),
        "quarters": [float(quarter.mean()) for quarter in nll.chunk(4)],
        "skipped": sum(int(result.skipped[0]) for result in results),
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common(parser)
    parser.add_argument("--tokens", type=int, default=32_768, help="how many of the book's first (default 32768)")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="NAME", help=", ".join(ROWS))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    title, text = book_of(options)
    rows = []
    for name in options.rows:
        print(f"  {name} ...", file=sys.stderr, flush=True)
        rows.append(measure(name, options, text))
    print(f"{title}, first {options.tokens:,} tokens, window {options.window:,}; nats per token\n")
    print("| rule | all | 1st quarter | 2nd | 3rd | 4th | updates refused |\n|---|---|---|---|---|---|---|")
    for row in rows:
        losses = " | ".join(f"{loss:.3f}" for loss in [row["loss"], *row["quarters"]])
        print(f"| {row['name']} | {losses} | {row['skipped']} |")
    if options.json:
        result = facts(options, title) | {"tokens": options.tokens, "rows": rows}
        options.json.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
