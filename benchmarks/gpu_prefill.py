"""Prefill on a GPU, random weights: TTT, the window alone, and full attention done well, side by side.

    python benchmarks/gpu_prefill.py --json benchmarks/results/gpu_prefill.json
    python benchmarks/gpu_prefill.py --models 3b --lengths 131072 --fp8
    python benchmarks/gpu_prefill.py --smoke

All three run the same model over the same tokens, prime MLPs included; they take turns, and the figures are medians.
TTT predicts every token, learns from every chunk and reports every loss. The other two compute hidden states only and
the last token's logits. Full attention is the fastest of SDPA's flash and cuDNN backends and flash-attn, measured for
each length, in one call over the whole document; the other operations are the same kernels in all three. The floor is
the operations that TTT needs (see `gpu_floors.py`) at the rate of a large bfloat16 product on this
device, plus the bytes of its inner steps at the rate of a large copy.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from gpu_floors import prefill_operations, prefill_seconds
from gpu_fp8 import FP8Products
from gpu_shared import (
    add_common,
    ceilings,
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

from ttt_docs.kernels.backends import Kernels
from ttt_docs.model.config import ReadingConfig
from ttt_docs.model.decoder import Decoder
from ttt_docs.ttt.state import ReadingState


def read(model: Decoder, reading: ReadingConfig, kernels: Kernels, tokens: Tensor) -> float:
    """Reads every whole chunk with TTT; mean loss in nats."""
    state = ReadingState(model, reading, kernels=kernels)
    losses = [float(result.loss) for result in state.read_whole(tokens)]
    return sum(losses) / len(losses)


@torch.no_grad()
def window_only(model: Decoder, reading: ReadingConfig, kernels: Kernels, tokens: Tensor, piece: int) -> Tensor:
    """Forward over pieces, window attention, no learning; logits of the last token."""
    state = ReadingState(model, reading, kernels=kernels)
    for part in tokens[:, :-1].split(piece, dim=1):
        hidden = state.run(part)
    return model.logits(hidden[:, -1:], kernels)


@torch.no_grad()
def full_attention(model: Decoder, reading: ReadingConfig, kernels: Kernels, tokens: Tensor) -> Tensor:
    """One forward call over everything; logits of the last token."""
    state = ReadingState(model, reading, kernels=kernels)
    positions = model.positions(0, tokens.shape[1] - 1, None)
    blocks, caches = range(model.config.blocks), model.new_caches(None)
    for cache in caches:  # a cache that grows by itself would take twice the room
        cache.allocate((1, model.config.kv_heads, tokens.shape[1] - 1, model.config.head_dim), model.embed.weight)
    hidden = model.run(model.hidden(tokens[:, :-1]), blocks, positions, caches, state.views, kernels)
    return model.logits(hidden[:, -1:], kernels)


def measure(name: str, length: int, rates: dict[str, float], options: argparse.Namespace) -> dict[str, Any]:
    device = device_of(options)
    config, reading = config_of(name)
    model = random_model(config, device)
    kernels = kernels_of(device)
    backend, attend = fastest_full_attention(config, length, device, model.dtype)
    generator = torch.Generator().manual_seed(length)
    tokens = torch.randint(3, min(config.vocab_size, 100_000), (1, length + 1), generator=generator).to(device)
    full = with_full_attention(kernels, attend)
    systems = {
        "ttt": lambda: read(model, reading, kernels, tokens),
        "window": lambda: window_only(model, reading, kernels, tokens, 16 * reading.chunk),
        "full": lambda: full_attention(model, reading, full, tokens),
    }
    result: dict[str, Any] = {"model": name, "length": length, "full_attention_by": backend}
    if options.fp8:
        products = FP8Products(model)

        def read_in_fp8() -> float:
            with products:
                return read(model, reading, kernels, tokens)

        systems["ttt fp8"] = read_in_fp8
        result["loss"] = {"bf16": read(model, reading, kernels, tokens), "fp8": read_in_fp8()}
    seconds = take_turns(systems, options.rounds, device)
    result["seconds"] = seconds
    result["ms_per_1k"] = {system: median(times) * 1e6 / length for system, times in seconds.items()}
    result["full_over_ttt"] = median([f / t for f, t in zip(seconds["full"], seconds["ttt"], strict=True)])
    result["operations_per_token"] = {
        s: prefill_operations(config, reading, length, s) for s in ("ttt", "window", "full")
    }
    result["floor_ms_per_1k"] = 1e6 * prefill_seconds(config, reading, length, "ttt", rates)
    result["of_product_rate"] = (
        result["operations_per_token"]["ttt"] * length / median(seconds["ttt"]) / rates["product_flops"]
    )
    return result


def line(result: dict[str, Any]) -> str:
    ms = result["ms_per_1k"]
    cells = [
        result["model"], f"{result['length']:,}", *(f"{ms[s]:.2f}" for s in ("ttt", "window", "full")),
        f"{result['full_over_ttt']:.2f}", f"{result['of_product_rate']:.0%}", f"{result['floor_ms_per_1k']:.2f}",
    ]  # fmt: skip
    if "loss" in result:
        loss = result["loss"]
        cells.append(f"{ms['ttt fp8']:.2f} (loss {loss['bf16']:.4f} -> {loss['fp8']:.4f})")
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common(parser, "8192,16384,32768,65536,131072", "125m,760m,3b,smollm2-135m")
    parser.add_argument(
        "--fp8", action="store_true", help="also the frozen prefix products in fp8, and the loss with them"
    )
    options = parser.parse_args()
    device = device_of(options)
    rates = ceilings(device, options.smoke)
    results = []
    names, lengths = names_and_lengths(options)
    for name in names:
        for length in lengths:
            try:
                results.append(measure(name, length, rates, options))
            except torch.cuda.OutOfMemoryError:
                print(f"{name} at {length:,}: out of memory", flush=True)
                torch.cuda.empty_cache()
                continue
            print(line(results[-1]), flush=True)
            write(options.json, facts(device) | {"ceilings": rates, "results": results})
    print("\n| model | tokens | TTT, ms per 1K | window | full | full / TTT | of product rate | floor | fp8 prefix |")
    print("|---|---|---|---|---|---|---|---|---|")
    for result in results:
        print(line(result))


if __name__ == "__main__":
    main()
