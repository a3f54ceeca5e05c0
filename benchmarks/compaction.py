"""How close a compact memory is to the exact one: loss on the tokens after it, book by book.

    python benchmarks/compaction.py --books valid.jsonl.zst --json compaction.json
    python benchmarks/compaction.py --books valid.jsonl.zst --limit 3 --bytes 1000000,4000000,12000000

Each book's first tokens are read; then its next tokens are read on from the exact memory and from compact ones of
several sizes, which go through their files. The gap is the mean difference of the losses in nats per token. A book
whose figures stand in the JSON file already is not measured again, so that a long run can be made in parts.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from books import books
from ingest import numbers
from shared import add_common, facts
from torch import Tensor

from ttt_docs import Memory, TTTReader
from ttt_docs.memory import ReadDocument
from ttt_docs.reading.chunks import Track
from ttt_docs.reading.restoring import state_of
from ttt_docs.ttt.state import ReadingState


def read(reader: TTTReader, ids: list[int], text: str) -> Memory:
    """The memory of the whole chunks of `ids`, with the text they come from."""
    state, track = ReadingState(reader.model, reader.reading), Track(reader._checked(None))
    track.tokens.extend(ids)
    for result in state.read_whole(torch.tensor(ids).unsqueeze(0)):
        track.note(result.index * reader.reading.chunk, result.nll[0])
    track.text.append(text)
    memory = track.finish(state)
    return memory.__class__(**{**vars(memory), "documents": (ReadDocument("book", 0, len(text), "00" * 32),)})


def losses(reader: TTTReader, memory: Memory, tokens: Tensor) -> Tensor:
    """Nats per token [n] of the tokens after `memory`."""
    results = list(state_of(reader.model, memory).read_whole(tokens))
    return torch.cat([result.nll[0] for result in results]).double()


def measure(reader: TTTReader, book: dict[str, str], options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    count = options.tokens + options.after + 1
    ids = reader.tokenizer.encode(book["text"][: 12 * count])[:count]
    tokens = torch.tensor(ids).unsqueeze(0)
    text = reader.tokenizer.decode(ids[: options.tokens + 1])
    memory = read(reader, ids[: options.tokens + 1], text)
    exact = losses(reader, memory, tokens)
    row = {"id": book["id"], "title": book["title"], "loss": float(exact.mean()), "compact": []}
    for limit in options.bytes:
        began = time.perf_counter()
        path = memory.compact(reader, limit).save(folder / "compact.ttt")
        made = time.perf_counter()
        whole = reader.expand(Memory.load(path))
        expanded = time.perf_counter()
        gap = losses(reader, whole, tokens) - exact
        row["compact"].append(
            {
                "max_bytes": limit,
                "file_bytes": path.stat().st_size,
                "gap": float(gap.mean()),
                "gap_by_quarter": [float(part.mean()) for part in gap.chunk(4)],
                "seconds_to_make": made - began,
                "seconds_to_expand": expanded - made,
            }
        )
    row["exact_file_bytes"] = memory.save(folder / "exact.ttt").stat().st_size
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common(parser)
    parser.add_argument("--tokens", type=int, default=16_384, help="read before (default 16384)")
    parser.add_argument("--after", type=int, default=8192, help="read after, and compared (default 8192)")
    parser.add_argument("--bytes", type=numbers, default=[12_000_000], metavar="N,N", help="sizes (default 12000000)")
    parser.add_argument("--limit", type=int, help="how many books are to be measured in all")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.books is None:
        parser.error("--books is needed")
    reader = TTTReader.from_pretrained(options.model, dtype=options.dtype, window=options.window)
    done = json.loads(options.json.read_text("utf-8")) if options.json and options.json.exists() else {"books": []}
    rows = done["books"]
    with tempfile.TemporaryDirectory() as folder:
        for book in books(options.books):
            if options.limit is not None and len(rows) >= options.limit:
                break
            if any(row["id"] == book["id"] for row in rows):
                continue
            rows.append(measure(reader, book, options, Path(folder)))
            print(f"  {book['title']}: {rows[-1]['compact']}", file=sys.stderr, flush=True)
            if options.json:
                result = facts(options, f"{len(rows)} books") | {"tokens": options.tokens, "after": options.after}
                options.json.write_text(json.dumps(result | {"books": rows}, indent=2) + "\n", "utf-8")
    print("| file at most, bytes | file, bytes | mean gap, nats | largest gap of a book |\n|---|---|---|---|")
    for index, limit in enumerate(options.bytes):
        found = [row["compact"][index] for row in rows]
        gaps = [entry["gap"] for entry in found]
        size = max(entry["file_bytes"] for entry in found)
        print(f"| {limit:,} | {size:,} | {sum(gaps) / len(gaps):.4f} | {max(gaps):.4f} |")


if __name__ == "__main__":
    main()
