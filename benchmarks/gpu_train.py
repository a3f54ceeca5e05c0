"""One training step on a GPU: through the inner updates, against full attention, side by side.

    python benchmarks/gpu_train.py --json benchmarks/results/gpu_train.json
    python benchmarks/gpu_train.py --smoke

Both steps are forward and backward of the same tokens, several sequences at once where those are short, with gradient
for every parameter (optimizers cost both the same and are left out). `meta` is the outer loss of the published TTT
model: gradients of gradients, every chunk's suffix computed again in the backward pass. `full` is the plain transformer
of the same number of parameters (a wider MLP, no prime), full attention by the fastest backend with its backward pass.
The prefix of the one and the blocks of the other are computed again only where their activations do not fit the memory
otherwise. The systems take turns; figures are medians. The floor is the ratio of the operations of both
(`gpu_floors.py`). Lengths that do not fit the memory are left out and said so.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from gpu_floors import plain_config, training_operations
from gpu_shared import (
    add_common,
    config_of,
    device_of,
    facts,
    fastest_full_attention,
    kernels_of,
    median,
    names_and_lengths,
    random_model,
    take_turns,
    with_full_attention,
    write,
)
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ttt_docs.kernels.backends import Kernels
from ttt_docs.model.config import ModelConfig, ReadingConfig
from ttt_docs.model.decoder import Decoder
from ttt_docs.ttt.outer_loop import Recompute, outer_loss


def full_step(model: Decoder, tokens: Tensor, kernels: Kernels, recompute: bool) -> Tensor:
    x, config = model.hidden(tokens[:, :-1]), model.config
    positions = model.positions(0, tokens.shape[1] - 1, None)

    def block(x: Tensor, index: int) -> Tensor:
        return model.run(
            x, range(index, index + 1), positions, model.new_caches(None, differentiable=True), None, kernels
        )

    if recompute:
        for index in range(config.blocks):
            x = checkpoint(block, x, index, use_reentrant=False)
    else:
        caches = model.new_caches(None, differentiable=True)
        x = model.run(x, range(config.blocks), positions, caches, None, kernels)
    loss = model.token_nll(x, tokens[:, 1:], kernels).mean()
    loss.backward()
    return loss.detach()


def meta_step(model: Decoder, tokens: Tensor, reading: ReadingConfig, kernels: Kernels, recompute: Recompute) -> Tensor:
    loss = outer_loss(model, tokens, reading, mode="meta", kernels=kernels, recompute=recompute).loss
    loss.backward()
    return loss.detach()


def trainable(config: ModelConfig, device: torch.device) -> Decoder:
    return random_model(config, device).requires_grad_(True)


def measure(name: str, length: int, options: argparse.Namespace) -> dict[str, Any]:
    device = device_of(options)
    config, reading = config_of(name)
    kernels = kernels_of(device)
    batch = 2 if options.smoke else max(1, options.tokens // length)
    tokens = torch.randint(3, min(config.vocab_size, 100_000), (batch, length + 1), device=device)
    meta, plain = trainable(config, device), trainable(plain_config(name), device)
    backend, attend = fastest_full_attention(plain.config, length, device, plain.dtype, batch, backward=True)
    full = with_full_attention(kernels, attend)

    def fresh(model: Decoder) -> Decoder:
        model.zero_grad(set_to_none=True)
        return model

    again: Recompute = "suffix"
    if not fits(lambda: meta_step(fresh(meta), tokens, reading, kernels, "suffix")):
        again = "chunks"
    recompute = not fits(lambda: full_step(fresh(plain), tokens, full, recompute=False))
    systems = {
        "meta": lambda: meta_step(fresh(meta), tokens, reading, kernels, again),
        "full": lambda: full_step(fresh(plain), tokens, full, recompute),
    }
    seconds = take_turns(systems, options.rounds, device)
    ratio = median([m / f for m, f in zip(seconds["meta"], seconds["full"], strict=True)])
    operations = training_operations(config, reading.window, length), training_operations(plain.config, None, length)
    return {
        "model": name, "length": length, "batch": batch, "full_attention_by": backend,
        "meta_recomputes": again, "full_recomputes_blocks": recompute, "seconds": seconds, "meta_over_full": ratio,
        "floor": operations[0] / operations[1],
    }  # fmt: skip


def fits(run: Callable[[], object]) -> bool:
    try:
        run()
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        return False
    return True


def line(result: dict[str, Any]) -> str:
    times = (f"{1000 * median(result['seconds'][system]):.0f}" for system in ("meta", "full"))
    ratios = f"{result['meta_over_full']:.2f} | {result['floor']:.2f}"
    return f"| {result['model']} | {result['length']:,} | {result['batch']} | {' | '.join(times)} | {ratios} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common(parser, "8192,16384,32768,65536,131072", "125m,760m")
    parser.add_argument("--tokens", type=int, default=32768, help="of a step, if a sequence is not longer (32768)")
    options = parser.parse_args()
    device = device_of(options)
    results = []
    names, lengths = names_and_lengths(options)
    for name in names:
        for length in lengths:
            try:
                results.append(measure(name, length, options))
            except torch.cuda.OutOfMemoryError:
                print(f"{name} at {length:,}: out of memory", flush=True)
            else:
                print(line(results[-1]), flush=True)
                write(options.json, facts(device) | {"results": results})
            if device.type == "cuda":
                torch.cuda.empty_cache()
    print("\n| model | tokens | batch | meta step, ms | full attention step, ms | meta / full | floor |")
    print("|---|---|---|---|---|---|---|")
    for result in results:
        print(line(result))


if __name__ == "__main__":
    main()
