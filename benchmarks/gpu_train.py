"""One training step on a GPU: through the inner updates, against full attention, side by side.

    python benchmarks/gpu_train.py --json benchmarks/results/gpu_train.json
    python benchmarks/gpu_train.py --smoke

Both steps are forward and backward of one sequence with gradient for every parameter (optimizers cost both the same and
are left out). `meta` is the outer loss of the published TTT model: gradients of gradients, every chunk computed again
in the backward pass. `full`
is the plain transformer of the same number of parameters (MLP without prime), full attention
by the fastest backend with its backward pass; where its activations would not fit, blocks are computed again.
The systems take turns; figures are medians. Lengths that do not fit the memory are left out and said so.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from gpu_shared import (
    TINY,
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

from ttt_docs.kernels.dispatch import Kernels
from ttt_docs.model.config import ModelConfig, ReadingConfig
from ttt_docs.model.decoder import Decoder

#: MLP width of the plain transformers (METHOD section 4).
PLAIN_MLP = {"125m": 2048, "350m": 2816, "760m": 4096, "1.3b": 5376, "3b": 6912, "tiny": 48}
#: Tokens from which the plain transformer's blocks are computed again in the backward pass.
RECOMPUTE_FROM = {"125m": 131_072, "760m": 32_768}


def plain_config(name: str) -> ModelConfig:
    config = TINY if name == "tiny" else config_of(name)[0]
    return config.model_copy(update={"mlp_dim": PLAIN_MLP[name], "suffix_blocks": 0, "window": None})


def full_step(model: Decoder, tokens: Tensor, kernels: Kernels, recompute: bool) -> Tensor:
    x, config = model.hidden(tokens[:, :-1]), model.config
    place = model.place(0, tokens.shape[1] - 1, None)

    def block(x: Tensor, index: int) -> Tensor:
        return model.run(x, range(index, index + 1), place, model.new_caches(None, differentiable=True), None, kernels)

    if recompute:
        for index in range(config.blocks):
            x = checkpoint(block, x, index, use_reentrant=False)
    else:
        caches = model.new_caches(None, differentiable=True)
        x = model.run(x, range(config.blocks), place, caches, None, kernels)
    loss = model.token_nll(x, tokens[:, 1:], kernels).mean()
    loss.backward()
    return loss.detach()


def meta_step(model: Decoder, tokens: Tensor, reading: ReadingConfig, kernels: Kernels) -> Tensor:
    from ttt_docs.training.outer import outer_loss

    loss = outer_loss(model, tokens, reading, mode="meta", kernels=kernels).loss
    loss.backward()
    return loss.detach()


def trainable(config: ModelConfig, device: torch.device) -> Decoder:
    return random_model(config, device).requires_grad_(True)


def measure(name: str, length: int, options: argparse.Namespace) -> dict[str, Any]:
    device = device_of(options)
    config, reading = config_of(name)
    kernels = kernels_of(device)
    tokens = torch.randint(3, min(config.vocab_size, 100_000), (1, length + 1), device=device)
    meta, plain = trainable(config, device), trainable(plain_config(name), device)
    backend, attend = fastest_full_attention(plain.config, length, device, plain.dtype, backward=True)
    full = with_full_attention(kernels, attend)
    recompute = length >= RECOMPUTE_FROM.get(name, 32_768)

    def fresh(model: Decoder) -> Decoder:
        model.zero_grad(set_to_none=True)
        return model

    systems = {
        "meta": lambda: meta_step(fresh(meta), tokens, reading, kernels),
        "full": lambda: full_step(fresh(plain), tokens, full, recompute),
    }
    seconds = take_turns(systems, options.rounds, device)
    ratio = median([m / f for m, f in zip(seconds["meta"], seconds["full"], strict=True)])
    return {
        "model": name, "length": length, "full_attention_by": backend, "full_recomputes_blocks": recompute,
        "seconds": seconds, "meta_over_full": ratio,
    }  # fmt: skip


def line(result: dict[str, Any]) -> str:
    times = (f"{1000 * median(result['seconds'][system]):.0f}" for system in ("meta", "full"))
    return f"| {result['model']} | {result['length']:,} | {' | '.join(times)} | {result['meta_over_full']:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common(parser, "8192,16384,32768,65536,131072", "125m,760m")
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
            if device.type == "cuda":
                torch.cuda.empty_cache()
    write(options.json, facts(device) | {"results": results})
    print("\n| model | tokens | meta step, ms | full attention step, ms | meta / full |\n|---|---|---|---|---|")
    for result in results:
        print(line(result))


if __name__ == "__main__":
    main()
