"""Reading, decoding and a meta-training step of two checkouts, in turns in one run: what a change does to speed.

    git worktree add ../before COMMIT
    python benchmarks/before_after.py ../before --rounds 9 --json before-after.json

Each checkout runs in one process with its own code. The process loads its models once and waits for its turns. A turn
takes seconds, so a machine whose speed drifts slows both alike. Figures are medians of the rounds. A ratio is the
median of the rounds' ratios, after over before. Run it with nothing else running.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parents[1]
NAMES = ("reading", "forward only", "decoding", "meta-training step")
#: The program of a checkout's process: reads a name a line, and answers with tokens per second.
WORKER = """
import sys, time
sys.path.insert(0, "benchmarks")
import torch
torch.set_num_threads(int(sys.argv[1]))
import decode, outer_step
from importlib import import_module
from ttt_docs import TTTReader
ReadingState = import_module(sys.argv[2]).ReadingState
text = open("examples/portrait.txt", encoding="utf-8").read()
reader = TTTReader.from_pretrained("smollm2-135m", adapter=None)
ids = torch.tensor([reader.tokenizer.encode(text)[: 6 * 1024 + 1]])
prompt = ids[0, :1900].tolist()
trained = TTTReader.from_pretrained("smollm2-135m", adapter=None)
parameters = outer_step.train_primes_and_norms(trained.model)

def read(learn):
    state = ReadingState(reader.model, reader.reading.model_copy(update={"learn": learn}))
    began = time.perf_counter()
    while state.position < 6 * 1024:
        end = state.position + state.slots_left * 1024
        list(state.read(ids[:, state.position : end + 1]))
    return 6 * 1024 / (time.perf_counter() - began)

def train():
    step = lambda: outer_step.outer_loss(trained.model, ids[:, : 3 * 1024 + 1], trained.reading).loss
    return 3 * 1024 / outer_step.seconds_of(step, parameters)[0]

turns = {
    "reading": lambda: read(True),
    "forward only": lambda: read(False),
    "decoding": lambda: decode.ours(reader, prompt, 48)[0],
    "meta-training step": train,
}
for line in sys.stdin:
    print(turns[line.strip()](), flush=True)
"""


def start(checkout: Path, threads: int) -> subprocess.Popen[str]:
    """A checkout's process, with that checkout's own code."""
    folders = (checkout, checkout / "cli", checkout / "integrations", checkout / "benchmarks")
    rooms = "ttt" if (checkout / "ttt_docs" / "ttt" / "state.py").is_file() else "model"
    command = [sys.executable, "-P", "-c", WORKER, str(threads), f"ttt_docs.{rooms}.state"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))}
    return subprocess.Popen(
        command, cwd=checkout, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def turn(process: subprocess.Popen[str], name: str) -> float:
    """Tokens per second."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(name + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise SystemExit(f"a checkout's process ended while it measured {name}: its message stands above")
    return float(answer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="checkout to compare this one with")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--only", choices=NAMES, action="append", help="only these (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    names = options.only or NAMES
    processes = [start(checkout, options.threads) for checkout in (options.before.resolve(), HERE)]
    for name in names:  # warms everything up
        for process in processes:
            turn(process, name)
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for i in range(options.rounds):
        for name in names:
            sides = (0, 1) if i % 2 == 0 else (1, 0)
            measured = {side: turn(processes[side], name) for side in sides}
            rounds[name].append((measured[0], measured[1]))
            print(f"round {i + 1}: {name} {measured[0]:.1f} {measured[1]:.1f}", file=sys.stderr, flush=True)
    for process in processes:
        process.communicate()
    print("| tokens/s | before | after | ratio |\n|---|---|---|---|")
    for name, pairs in rounds.items():
        before, after, ratio = (median(values) for values in zip(*((a, b, b / a) for a, b in pairs), strict=True))
        print(f"| {name} | {before:,.1f} | {after:,.1f} | {ratio:.3f} |")
    if options.json:
        options.json.write_text(json.dumps(rounds, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
