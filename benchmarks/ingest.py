"""Speed and memory of reading, side by side in one run.

    python benchmarks/ingest.py --json ingest.json
    python benchmarks/ingest.py --lengths 8192 --runs 3 --skip-transformers --profile

For every length: tokens per second of reading with TTT, of the same model forward only (every token scored, no update),
and of transformers' prefill with full attention over the same weights (SDPA, pieces of 2,048 tokens, logits of the last
token only). The systems take turns, so that a busy machine slows all alike; figures are medians, ratios are medians of
the rounds' ratios. Then peak memory and the speed late in a long document, each length in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from decode import transformers_model
from profile_chunk import GROUPS, profile_chunks
from shared import add_common, book_of, facts, tokens_of
from torch import Tensor

from ttt_docs import TTTReader
from ttt_docs.model.config import ReadingConfig
from ttt_docs.ttt.state import ReadingState

PIECE = 2048  # tokens that transformers gets at once
PART = 16_384  # tokens whose speed is compared, early and late


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def read(reader: TTTReader, reading: ReadingConfig, tokens: Tensor) -> float:
    """Tokens per second."""
    state = ReadingState(reader.model, reading)
    began = time.perf_counter()
    for _ in state.read_whole(tokens):
        pass
    return state.position / (time.perf_counter() - began)


@torch.inference_mode()
def prefill(model: Any, tokens: Tensor) -> float:
    """Tokens per second of transformers."""
    from transformers import DynamicCache

    ids, cache = tokens[:, :-1], DynamicCache(config=model.config)
    began = time.perf_counter()
    for piece in ids.split(PIECE, dim=1):
        model(piece, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return ids.shape[1] / (time.perf_counter() - began)


def ratio(a: list[float], b: list[float]) -> float:
    return median(x / y for x, y in zip(a, b, strict=False))


def speeds(reader: TTTReader, text: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    if not options.lengths:
        return []
    forward_only = reader.reading.model_copy(update={"learn": False})
    model = None if options.skip_transformers else transformers_model(reader)
    if model is not None:
        assert model.config._attn_implementation == "sdpa"
    # Weights that asked for gradient would cost reading time that it does not take otherwise.
    assert not any(parameter.requires_grad for parameter in reader.model.parameters())
    warm = tokens_of(reader, text, 2 * options.chunk)
    read(reader, reader.reading, warm), read(reader, forward_only, warm)
    if model is not None:
        prefill(model, warm)
    rows = []
    for length in options.lengths:
        tokens = tokens_of(reader, text, length)
        count = options.runs_transformers or (3 if length < 32_768 else 1)
        ttt: list[float] = []
        forward: list[float] = []
        theirs: list[float] = []
        for run in range(options.runs):
            ttt.append(read(reader, reader.reading, tokens))
            forward.append(read(reader, forward_only, tokens))
            if model is not None and run < count:
                theirs.append(prefill(model, tokens))
            print(f"  {length:,} tokens: round {run + 1} of {options.runs}", file=sys.stderr, flush=True)
        rows.append(
            {
                "tokens": length,
                "runs": options.runs,
                "ttt_tokens_per_second": median(ttt),
                "forward_tokens_per_second": median(forward),
                "ttt_to_forward": ratio(ttt, forward),
                "runs_transformers": len(theirs),
                "transformers_tokens_per_second": median(theirs) if theirs else None,
                "ttt_to_transformers": ratio(ttt, theirs) if theirs else None,
                "all": {"ttt": ttt, "forward": forward, "transformers": theirs},
            }
        )
    return rows


def peak_bytes() -> int:
    """Peak resident memory of this process. On Linux `ru_maxrss` starts at the parent's, so its own count is better."""
    try:
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def memory_of(options: argparse.Namespace) -> dict[str, Any]:
    """Run in a process of its own: reads once with TTT."""
    _, text = book_of(options)
    reader = reader_of(options)
    length = options.memory_of
    tokens = tokens_of(reader, text, length)
    state = ReadingState(reader.model, reader.reading)
    seconds = [result.seconds for result in state.read_whole(tokens)]
    size = min(PART, length // 4) // options.chunk
    early, late = seconds[size : 2 * size], seconds[-size:]
    speed = {"part_tokens": size * options.chunk}
    if size:
        speed |= {name: size * options.chunk / sum(part) for name, part in (("second", early), ("last", late))}
    return {"tokens": length, "peak_bytes": peak_bytes(), "tokens_per_second": speed}


def reader_of(options: argparse.Namespace) -> TTTReader:
    return TTTReader.from_pretrained(options.model, dtype=options.dtype, window=options.window, chunk=options.chunk)


def memory_rows(options: argparse.Namespace) -> dict[str, Any]:
    rows = []
    for length in options.memory_lengths:
        program = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], "--memory-of", str(length)]
        done = subprocess.run(program, stdout=subprocess.PIPE, text=True, check=True, env=os.environ)
        rows.append(json.loads(done.stdout))
        print(f"  memory for {length:,} tokens measured", file=sys.stderr, flush=True)
    result: dict[str, Any] = {"lengths": rows}
    if rows:
        result["ratio"] = rows[-1]["peak_bytes"] / rows[0]["peak_bytes"]
        speed = rows[-1]["tokens_per_second"]
        if "last" in speed:
            result["last_to_second"] = speed["last"] / speed["second"]
    return result


def show(result: dict[str, Any]) -> None:
    if result["speed"]:
        print("| tokens | TTT, tokens/s | forward only | TTT / forward | transformers (runs) | TTT / transformers |")
        print("|---|---|---|---|---|---|")
    for row in result["speed"]:
        theirs = row["transformers_tokens_per_second"]
        beside = "- | -" if theirs is None else (
            f"{theirs:,.0f} ({row['runs_transformers']}) | {row['ttt_to_transformers']:.2f}"
        )  # fmt: skip
        print(
            f"| {row['tokens']:,} | {row['ttt_tokens_per_second']:,.0f} | {row['forward_tokens_per_second']:,.0f} "
            f"| {row['ttt_to_forward']:.2f} | {beside} |"
        )
    memory = result["memory"]
    if memory["lengths"]:
        print("\n| tokens read | peak memory, MiB |\n|---|---|")
        for row in memory["lengths"]:
            print(f"| {row['tokens']:,} | {row['peak_bytes'] / 2**20:,.0f} |")
        print(f"\nPeak memory, longest / shortest: {memory['ratio']:.3f}")
    if "last_to_second" in memory:
        speed = memory["lengths"][-1]["tokens_per_second"]
        print(
            f"Speed of the second and the last {speed['part_tokens']:,} tokens of {memory['lengths'][-1]['tokens']:,}: "
            f"{speed['second']:,.0f} and {speed['last']:,.0f} tokens/s ({memory['last_to_second']:.3f})"
        )
    chunk = result.get("profile")
    if chunk:
        print("\n| part of a chunk | ms |\n|---|---|")
        for name in GROUPS:
            print(f"| {name} | {chunk['groups_ms'][name]:.1f} |")
        print(f"| sum (with profiler) | {chunk['chunk_ms_profiled']:.1f} |")
        print(f"| a chunk without profiler | {chunk['chunk_ms']:.1f} |")
        print(
            f"\nFloor: {chunk['gflop_per_chunk']:.1f} GFLOP of products at {chunk['product_tflops']:.2f} TFLOP/s: "
            f"{chunk['floor_ms']:.1f} ms, {chunk['share_of_floor']:.0%} of a chunk's time"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common(parser)
    parser.add_argument("--chunk", type=int, default=1024, help="tokens per update (default 1024)")
    parser.add_argument("--runs", type=int, default=5, help="rounds per length (default 5)")
    parser.add_argument("--lengths", type=numbers, default=[8192, 16384, 32768], metavar="N,N")
    parser.add_argument("--memory-lengths", type=numbers, default=[16384, 131072], metavar="N,N", help="'' for none")
    parser.add_argument("--skip-transformers", action="store_true")
    parser.add_argument("--runs-transformers", type=int, help="at most (default 3, and 1 from 32,768 tokens on)")
    parser.add_argument("--profile", action="store_true", help="where the time of a chunk goes")
    parser.add_argument("--profile-chunks", type=int, default=8)
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)  # what the process for one length does
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print(json.dumps(memory_of(options)))
        return
    title, text = book_of(options)
    result = facts(options, title) | {"chunk": options.chunk, "memory": memory_rows(options)}  # before this one grows
    reader = reader_of(options)
    result["speed"] = speeds(reader, text, options)
    if options.profile:
        warm = -(-options.window // options.chunk) + 2  # the window is full, and so are the sinks' places
        tokens = tokens_of(reader, text, (warm + options.profile_chunks) * options.chunk)
        result["profile"] = profile_chunks(reader.model, reader.reading, tokens, warm, options.profile_chunks)
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
