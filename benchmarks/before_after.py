"""Reading, decoding and a meta-training step of two checkouts, in turns in one run: what a change does to speed.

    git worktree add ../before COMMIT
    python benchmarks/before_after.py ../before --rounds 3 --json before-after.json

Each round runs `ingest.py`, `decode.py` and `outer_step.py` of both checkouts, each in a process of its own. Figures
are medians of the rounds; a ratio is the median of the rounds' ratios, after over before. Run it with nothing else
running.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parents[1]


def run(checkout: Path, script: str, *arguments: str) -> str:
    """What a benchmark of a checkout prints, with that checkout's own code."""
    folders = (checkout, checkout / "cli", checkout / "integrations", checkout / "benchmarks")
    command = [sys.executable, "-P", f"benchmarks/{script}", *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))}
    return subprocess.run(command, cwd=checkout, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


def with_file(checkout: Path, script: str, *arguments: str) -> Any:
    """What a benchmark writes with `--json FILE`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        run(checkout, script, *arguments, "--json", str(path))
        return json.loads(path.read_text("utf-8"))


def measure(checkout: Path, options: argparse.Namespace) -> dict[str, float]:
    """Tokens per second of one run of each benchmark."""
    lengths = "--lengths", str(options.tokens), "--memory-lengths", "", "--runs", "1", "--skip-transformers"
    (read,) = with_file(checkout, "ingest.py", *lengths)["speed"]
    decoded = json.loads(run(checkout, "decode.py", "--runs", "1", "--new", "64", "--json").splitlines()[-1])
    step = with_file(checkout, "outer_step.py", "--baselines", "", "--runs", "1", "--chunks", str(options.chunks))
    return {
        "reading": read["ttt_tokens_per_second"],
        "forward only": read["forward_tokens_per_second"],
        "decoding": decoded["ours_tokens_per_second"],
        "meta-training step": step["tokens_per_second"]["meta"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("before", type=Path, help="checkout to compare this one with")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=8192, help="tokens that are read (default 8192)")
    parser.add_argument("--chunks", type=int, default=8, help="chunks of the meta-training step (default 8)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    rounds: dict[str, list[dict[str, float]]] = {"before": [], "after": []}
    for i in range(options.rounds):
        sides = (("before", options.before.resolve()), ("after", HERE))
        for side, checkout in sides if i % 2 == 0 else reversed(sides):
            rounds[side].append(measure(checkout, options))
            print(side, rounds[side][-1], file=sys.stderr, flush=True)
    print("| tokens/s | before | after | ratio |\n|---|---|---|---|")
    for name in rounds["after"][0]:
        before, after = ([result[name] for result in rounds[side]] for side in ("before", "after"))
        ratio = median(b / a for a, b in zip(before, after, strict=True))
        print(f"| {name} | {median(before):,.1f} | {median(after):,.1f} | {ratio:.3f} |")
    if options.json:
        options.json.write_text(json.dumps(rounds, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
