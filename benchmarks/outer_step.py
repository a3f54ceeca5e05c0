"""One meta-training step beside one ordinary step of the same trained parameters, in one run.

    python benchmarks/outer_step.py --json outer_step.json

The default model with prime MLPs and all norms trained, 8 chunks of 1,024 tokens, window 2,048, bfloat16 products. The
ordinary step trains the same parameters on the same tokens with full attention and no inner updates; it is done in
every way of --baselines and the fastest one counts. A step is the loss and its gradient. The systems take turns;
figures are medians, the ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from shared import add_common, book_of, facts, tokens_of
from torch import Tensor

from ttt_docs import TTTReader
from ttt_docs.kernels.attention.definition import Sinks
from ttt_docs.kernels.backends import CPU, Kernels
from ttt_docs.model.decoder import Decoder
from ttt_docs.ttt.outer_loop import outer_loss


def train_primes_and_norms(model: Decoder) -> list[Tensor]:
    for name, parameter in model.named_parameters():
        trained = ".prime_mlp." in name or "norm" in name
        if trained:
            parameter.data = parameter.data.float()
        parameter.requires_grad_(trained)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def sdpa(
    q: Tensor, k: Tensor, v: Tensor, window: int | None, sinks: Sinks | None, newest: tuple[Tensor, Tensor]
) -> Tensor:
    """PyTorch's own attention over a whole sequence, forward and backward."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


#: Ways of the ordinary step: the kernels, and what is kept for the backward pass.
BASELINES: dict[str, tuple[Kernels, str]] = {
    "sdpa": (CPU.replace(name="sdpa", window_attention=sdpa), "chunks"),
    "tiles": (CPU, "chunks"),
}


def seconds_of(step: Callable[[], Tensor], parameters: list[Tensor]) -> tuple[float, float]:
    """Seconds of one step, and its loss."""
    for parameter in parameters:
        parameter.grad = None
    began = time.perf_counter()
    loss = step()
    loss.backward()
    return time.perf_counter() - began, float(loss.detach())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common(parser)
    parser.add_argument("--chunk", type=int, default=1024)
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--append", action="store_true", help="add to the rounds that --json holds from earlier runs")
    parser.add_argument("--baselines", default="sdpa,tiles", help="comma-separated; empty: none")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    title, text = book_of(options)
    reader = TTTReader.from_pretrained(
        options.model, adapter=None, dtype=options.dtype, window=options.window, chunk=options.chunk
    )
    model, reading = reader.model, reader.reading
    parameters = train_primes_and_norms(model)
    length = options.chunk * options.chunks
    tokens = tokens_of(reader, text, length)
    full = reading.model_copy(update={"window": length})

    systems: dict[str, Callable[[], Tensor]] = {"meta": lambda: outer_loss(model, tokens, reading).loss}
    for name in filter(None, options.baselines.split(",")):
        kernels = BASELINES[name][0]
        systems[name] = lambda kernels=kernels: outer_loss(model, tokens, full, mode="naive", kernels=kernels).loss
    times: dict[str, list[float]] = {name: [] for name in systems}
    if options.append and options.json and options.json.exists():
        times |= json.loads(options.json.read_text("utf-8"))["seconds"]
    outer_loss(model, tokens[:, : 2 * options.chunk + 1], reading).loss.backward()  # warms everything up
    losses: dict[str, float] = {}
    for run in range(options.runs):
        for name, step in systems.items():
            seconds, losses[name] = seconds_of(step, parameters)
            times[name].append(seconds)
            print(f"  round {run + 1}: {name} {seconds:.1f} s", file=sys.stderr, flush=True)
    best = min((name for name in systems if name != "meta"), key=lambda name: median(times[name]), default=None)
    result: dict[str, Any] = {
        "facts": facts(options, title),
        "tokens": length,
        "trained_parameters": sum(parameter.numel() for parameter in parameters),
        "inner_rule": reading.inner_rule,
        "runs": len(times["meta"]),
        "tokens_per_second": {name: length / median(seconds) for name, seconds in times.items()},
        "losses": losses,
        "ordinary": best,
        "slower": None if best is None else median(a / b for a, b in zip(times["meta"], times[best], strict=True)),
        "seconds": times,
    }
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
