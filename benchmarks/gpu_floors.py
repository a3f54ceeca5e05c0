"""What the GPU benchmarks must at least take: operations and bytes counted, over the rates of a card. Needs no GPU.

    python benchmarks/gpu_floors.py                                  # rates of an H100 in large products and copies
    python benchmarks/gpu_floors.py --products 788e12 --copies 4.3e12

Operations are floating-point ones of matrix products, nothing computed twice but the attention weights, which every
pass over them makes again. Prints three tables: prefill, a training step, and each kernel.
"""

from __future__ import annotations

import argparse

import torch
from gpu_shared import PLAIN_MLP, config_of

from ttt_docs.model.config import ModelConfig, ReadingConfig

LENGTHS = (8192, 16384, 32768, 65536, 131072)


def block_weights(config: ModelConfig) -> dict[str, int]:
    """Weights of the products of one block, by part."""
    attention = config.dim * config.head_dim * (2 * config.heads + 2 * config.kv_heads)
    return {"attention": attention, "mlp": 3 * config.dim * config.mlp_dim, "prime": 3 * config.dim * config.prime_dim}


def keys_seen(length: int, window: int | None) -> float:
    """How many keys a query sees, on average over a document."""
    window = min(window or length, length)
    return (window * (window + 1) / 2 + (length - window) * window) / length


def prefill_operations(config: ModelConfig, reading: ReadingConfig, length: int, system: str) -> float:
    """Operations per token of `ttt`, `window` or `full`.

    The suffix's backward pass: nothing below the first prime MLP, no gradient for slow weights, the attention of the
    first suffix block left out, keys of earlier chunks constant.
    """
    weights = block_weights(config)
    suffix = config.suffix_blocks
    keys = keys_seen(length, None if system == "full" else reading.window)
    scores = 2 * 2 * keys * config.heads * config.head_dim
    forward = config.blocks * (2 * (weights["attention"] + weights["mlp"]) + scores) + suffix * 2 * weights["prime"]
    if system != "ttt":
        return forward
    head = 2 * 2 * config.vocab_size * config.dim  # logits and the gradient for the hidden states
    through_blocks = (suffix - 1) * (2 * (weights["attention"] + weights["mlp"] + weights["prime"]) + 1.5 * scores)
    new_keys = (suffix - 1) * 4 * 2 * (reading.chunk / 2) * config.heads * config.head_dim
    first_block = 2 * weights["mlp"] + 2 * weights["prime"] / 3
    weight_gradients = suffix * 2 * weights["prime"]
    return forward + head + through_blocks + new_keys + first_block + weight_gradients


def update_bytes(config: ModelConfig, reading: ReadingConfig) -> float:
    """Bytes per token of the inner step: a bfloat16 gradient read twice, float32 weights read and written, a bfloat16
    copy written."""
    fast = config.suffix_blocks * block_weights(config)["prime"]
    return fast * (2 + 2 + 4 + 4 + 2) / reading.chunk


def prefill_seconds(
    config: ModelConfig, reading: ReadingConfig, length: int, system: str, rates: dict[str, float]
) -> float:
    """The floor of a token."""
    seconds = prefill_operations(config, reading, length, system) / rates["product_flops"]
    return seconds + (update_bytes(config, reading) / rates["copy_bytes"] if system == "ttt" else 0.0)


def fp8_seconds(config: ModelConfig, reading: ReadingConfig, length: int, rates: dict[str, float]) -> float:
    """TTT's floor of a token with the prefix's frozen products in fp8, at twice the rate."""
    weights = block_weights(config)
    frozen = config.prefix_blocks * 2 * (weights["attention"] + weights["mlp"])
    return prefill_seconds(config, reading, length, "ttt", rates) - frozen / 2 / rates["product_flops"]


def training_operations(config: ModelConfig, window: int | None, length: int) -> float:
    """Operations per token of loss and gradient: through the inner updates where the model has prime MLPs.

    A product y = x W is three in an ordinary step (y and the gradients for x and W). In the suffix the inner gradient
    for x is another, and so are the three that come from its own gradient: six; for a fast weight the inner gradient
    for W and two from its gradient: nine. Attention is 2 products of scores' size forward, 5 backward, 12 for the
    gradient of the gradient, of which 2 are the inner gradients of keys and values: wanted for a chunk's own keys only.
    """
    weights, suffix = block_weights(config), config.suffix_blocks
    scores = 2 * keys_seen(length, window) * config.heads * config.head_dim  # one product
    slow = 2 * (weights["attention"] + weights["mlp"])
    head = 2 * config.vocab_size * config.dim
    ordinary = config.blocks * (3 * slow + 7 * scores) + 3 * head
    if not suffix:
        return ordinary
    # The attention of the first suffix block comes before anything that an update can reach.
    beyond = 3 * ((suffix - 1) * slow + 2 * weights["mlp"] + head) + (suffix - 1) * 10 * scores
    return ordinary + beyond + suffix * 9 * 2 * weights["prime"]


def plain_config(name: str) -> ModelConfig:
    """The plain transformer with as many parameters: a wider MLP instead of prime MLPs, full attention."""
    return config_of(name)[0].model_copy(update={"mlp_dim": PLAIN_MLP[name], "suffix_blocks": 0, "window": None})


def prefill_table(models: list[str], rates: dict[str, float]) -> list[str]:
    lines = [f"| model | {' | '.join(f'{n // 1024}K' for n in LENGTHS)} |", "|---|" + "---|" * len(LENGTHS)]
    for name in models:
        cells = []
        for length in LENGTHS:
            ttt, window, full = (
                1e6 * prefill_seconds(*config_of(name), length, system, rates) for system in ("ttt", "window", "full")
            )
            cells.append(f"{ttt:.2f} / {window:.2f} / {full:.2f}, {full / ttt:.2f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def training_table(models: list[str], rates: dict[str, float]) -> list[str]:
    lines = [f"| model | {' | '.join(f'{n // 1024}K' for n in LENGTHS)} |", "|---|" + "---|" * len(LENGTHS)]
    for name in models:
        cells = []
        for length in LENGTHS:
            config, reading = config_of(name)
            meta = training_operations(config, reading.window, length)
            full = training_operations(plain_config(name), None, length)
            each = (f"{1e6 * operations / rates['product_flops']:.2f}" for operations in (meta, full))
            cells.append(f"{' / '.join(each)}, {meta / full:.2f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def kernels_table(models: list[str], rates: dict[str, float]) -> list[str]:
    from kernels import PASSES, cases, roofline  # needs Triton

    lines = ["| model | kernel | forward, us | and backward | and second |", "|---|---|---|---|---|"]
    for name in models:
        for case in cases(name, torch.device("meta")):
            times = (f"{1e6 * roofline(case, p, rates):,.1f}" if p in case.bytes else "-" for p in PASSES)
            lines.append(f"| {name} | {case.name} | {' | '.join(times)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--products", type=float, default=790e12, help="operations a second (default 790e12)")
    parser.add_argument("--copies", type=float, default=3.0e12, help="bytes a second, both ways (default 3.0e12)")
    options = parser.parse_args()
    rates = {"product_flops": options.products, "copy_bytes": options.copies}
    print("Prefill, ms per 1,000 tokens: TTT / window only / full attention, and full over TTT\n")
    print("\n".join(prefill_table(["125m", "760m", "3b", "smollm2-135m"], rates)))
    config, reading = config_of("3b")
    seconds = fp8_seconds(config, reading, LENGTHS[-1], rates)
    ratio = prefill_seconds(config, reading, LENGTHS[-1], "full", rates) / seconds
    print(f"\n3b at 128K with frozen prefix products in fp8 at twice the rate: {1e6 * seconds:.2f}, {ratio:.2f}")
    print("\nA training step, ms per 1,000 tokens: meta / full attention, and their ratio\n")
    print("\n".join(training_table(["125m", "760m"], rates)))
    print("\nKernels on a chunk of 1,024 tokens, roofline in microseconds\n")
    print("\n".join(kernels_table(["760m", "3b"], rates)))


if __name__ == "__main__":
    main()
