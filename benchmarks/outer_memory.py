"""Memory and time of one meta-training step against the number of chunks.

    python benchmarks/outer_memory.py --json outer_memory.json
    python benchmarks/outer_memory.py --model smollm2-135m --chunk 128 --window 256 --recompute chunks,logarithmic

Every step runs in a process of its own; its memory is the peak resident memory less what was resident before the step
(model, code). Beside it stand the fast weights of one sequence and the keys and values of one chunk, in all blocks:
what memory may grow by for each chunk. `small` is a random model of 8 blocks, 2 of them with prime MLPs, in which the
fast weights outweigh a chunk's activations as they do in the published sizes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from ingest import numbers, peak_bytes
from outer_step import train_primes_and_norms
from shared import add_common, facts

from ttt_docs import TTTReader
from ttt_docs.model.config import ModelConfig, ReadingConfig
from ttt_docs.model.decoder import Decoder
from ttt_docs.ttt.outer_loop import outer_loss

SMALL = ModelConfig(
    name="small",
    vocab_size=8192,
    blocks=8,
    dim=256,
    heads=4,
    kv_heads=4,
    head_dim=64,
    mlp_dim=512,
    prime_mlp_dim=2048,
    suffix_blocks=2,
    post_norm=True,
    qk_norm=True,
)


def decoder_of(options: argparse.Namespace) -> Decoder:
    dtype = getattr(torch, options.dtype)
    if options.model != SMALL.name:
        settings = {"dtype": options.dtype, "window": options.window, "chunk": options.chunk}
        return TTTReader.from_pretrained(options.model, adapter=None, **settings).model
    model = Decoder(SMALL).initialize(torch.Generator().manual_seed(0))
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.float() if ".prime_mlp." in name else parameter.data.to(dtype)
    return model


def resident_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))


def step_of(options: argparse.Namespace) -> dict[str, Any]:
    """One step of `--chunks-of` chunks, after one of two chunks that warms everything up."""
    torch.set_num_threads(options.threads)
    model = decoder_of(options)
    train_primes_and_norms(model)
    sinks = model.config.sinks
    reading = ReadingConfig(chunk=options.chunk, window=options.window, sinks=sinks, guard=None)
    chunks = options.chunks_of
    tokens = torch.randint(0, model.config.vocab_size, (1, options.chunk * chunks + 1))
    warm = tokens[:, : 2 * options.chunk + 1]
    outer_loss(model, warm, reading, recompute=options.recompute).loss.backward()
    before, began = resident_bytes(), time.perf_counter()
    outer_loss(model, tokens, reading, recompute=options.recompute).loss.backward()
    seconds = time.perf_counter() - began
    config = model.config
    width = torch.finfo(model.dtype).bits // 8
    return {
        "chunks": chunks,
        "recompute": options.recompute,
        "step_bytes": peak_bytes() - before,
        "seconds": seconds,
        "fast_bytes": 4 * model.fast_layout.size,
        "cache_bytes": 2 * config.blocks * options.chunk * config.kv_heads * config.head_dim * width,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common(parser)
    parser.set_defaults(model=SMALL.name, window=128)
    parser.add_argument("--chunk", type=int, default=64)
    parser.add_argument("--counts", type=numbers, default="4,8,16,32,64", help="chunks (default 4,8,16,32,64)")
    parser.add_argument("--recompute", default="none,chunks,logarithmic", help="comma-separated")
    parser.add_argument("--chunks-of", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.chunks_of:
        print(json.dumps(step_of(options)))
        return 0
    rows = []
    for recompute in options.recompute.split(","):
        for count in options.counts:
            own = ["--chunks-of", str(count), "--recompute", recompute]
            program = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], *own]
            done = subprocess.run(program, stdout=subprocess.PIPE, text=True, check=True, env=os.environ)
            rows.append(json.loads(done.stdout))
            print(f"  {rows[-1]}", file=sys.stderr, flush=True)
    growth = {}
    for recompute in options.recompute.split(","):
        of = [row for row in rows if row["recompute"] == recompute]
        if len(of) > 1:
            growth[recompute] = (of[-1]["step_bytes"] - of[0]["step_bytes"]) / (of[-1]["chunks"] - of[0]["chunks"])
    result = {
        "facts": facts(options, "random tokens"),
        "chunk": options.chunk,
        "steps": rows,
        "growth_bytes_per_chunk": growth,
        "allowed_bytes_per_chunk": rows[0]["fast_bytes"] + rows[0]["cache_bytes"],
    }
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
