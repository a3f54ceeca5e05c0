"""What a run will cost, before it runs: parameters, tokens, FLOPs, memory per GPU. Estimates by formula, not measured.

FLOPs of one token, counting a multiply-add as two. With P = prefix blocks forward, S = suffix blocks and head forward,
each 2 x its matrices' parameters + 4 x heads x head_dim x (keys seen on average) for attention:

    plain or naive       3 (P + S)         forward 1, backward 2
    first-order          3 P + 5 S         the inner gradient is one more backward (2) through the suffix
    meta                 3 P + 9 S         and its own backward costs twice its forward (4)
    recompute            + everything that is forward once more: P + S, or P + 3 S where there is an inner gradient;
                         `suffix` only the S of these, nothing where there is no inner gradient
    trains: suffix       P forward only, and never once more

Memory of one process, in bytes; b = bytes of the compute dtype, N parameters in all, T trained, n processes:

    weights              b N             (prime MLPs and whatever is float32: 4)
    masters, moments     12 T            AdamW's two moments and the float32 master; / n where sharded
    gradients            4 T + b T       masters' (/ n where sharded) and, during the backward pass, the copies'
    fast weights         4 F x micro_batch x states; F fast weights, states = chunks kept: all (+ 1 gradient each for
                         meta) unless recomputed logarithmically
    keys and values      2 b kv_dim x blocks x micro_batch x sequence
    activations          of one chunk with recompute, of all without (with `suffix` of all in the prefix): per token and
                         block b (8 dim + 3 qkv + 6 mlp), four times that in the suffix for meta; and float32 logits of
                         2,048 tokens, twice
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log2, prod

from ttt_docs.model.config import ModelConfig
from ttt_docs.training.parallel import trained_names
from ttt_docs.training.recipe import Recipe
from ttt_docs.weights.parameters import parameter_shapes

_LOGIT_ROWS = 2048


@dataclass(frozen=True)
class Budget:
    """What `ttt-docs train --dry-run` prints."""

    parameters: int
    trained: int
    fast: int
    tokens: int | None  # None: one epoch of data that is not counted yet
    flops_per_token: float
    flops: float | None
    memory: dict[str, int]  # bytes for one process, by use and in `total`


def budget_of(recipe: Recipe, config: ModelConfig, processes: int = 1, bytes_per_number: int = 2) -> Budget:
    """The estimates for `config` trained by `recipe` in `processes` processes."""
    sizes = {name: prod(shape) for name, shape in parameter_shapes(config).items()}
    parameters = sum(sizes.values())
    trained = sum(sizes[name] for name in trained_names(recipe, config, sizes))
    fast = sum(size for name, size in sizes.items() if ".prime_mlp." in name)
    tokens = None if recipe.steps is None else recipe.steps * recipe.tokens_per_step
    per_token = flops_per_token(recipe, config)

    parts = processes if recipe.compute.parallel == "sharded" else 1
    chunk, batch, kept = recipe.reading.chunk, recipe.compute.micro_batch, recipe.compute.recompute
    chunks, whole = recipe.sequence // chunk, batch * recipe.sequence
    updates, copies = recipe.mode in ("meta", "first-order"), 2 if recipe.mode == "meta" else 1
    states = 0 if not updates else ceil(log2(chunks)) + 1 if kept == "logarithmic" else chunks
    kv = config.kv_heads * config.head_dim
    row = 8 * config.dim + 3 * (config.heads * config.head_dim + 2 * kv) + 6 * config.mlp_dim
    prefix_rows = whole if kept in ("none", "compiled", "suffix") else batch * chunk
    suffix_rows = whole if kept in ("none", "compiled") or (kept == "suffix" and not updates) else batch * chunk
    rows = prefix_rows * config.prefix_blocks + suffix_rows * config.suffix_blocks * copies**2
    memory = {
        "weights": bytes_per_number * (parameters - fast) + 4 * fast,
        "optimizer": 12 * trained // parts,
        "gradients": 4 * trained // parts + bytes_per_number * trained,
        "fast_weights": 4 * fast * batch * states * copies,
        "keys_and_values": 2 * bytes_per_number * kv * config.blocks * whole,
        "activations": bytes_per_number * row * rows + 2 * 4 * min(suffix_rows, _LOGIT_ROWS) * config.vocab_size,
    }
    flops = None if tokens is None else per_token * tokens
    return Budget(parameters, trained, fast, tokens, per_token, flops, memory | {"total": sum(memory.values())})


def flops_per_token(recipe: Recipe, config: ModelConfig) -> float:
    """The table above."""
    window, length = min(recipe.reading.window, recipe.sequence), recipe.sequence
    seen = window - window * (window - 1) / (2 * length)  # keys of a query, mean over a sequence
    attention = 4 * config.heads * config.head_dim * seen
    prefix = suffix = 0.0
    for name, shape in parameter_shapes(config).items():
        if len(shape) < 2 or (name == "embed.weight" and not config.tied_head):
            continue
        if name.startswith("blocks.") and int(name.split(".")[1]) < config.prefix_blocks:
            prefix += 2 * prod(shape)
        else:
            suffix += 2 * prod(shape)
    prefix, suffix = prefix + attention * config.prefix_blocks, suffix + attention * config.suffix_blocks
    updates = recipe.mode in ("meta", "first-order")
    below = 1 if recipe.trains == "suffix" else 3  # times the prefix runs, a backward pass counted as two
    again = 0.0
    if recipe.compute.recompute in ("chunks", "logarithmic"):
        again = prefix * (below > 1) + suffix * (3 if updates else 1)
    elif recipe.compute.recompute == "suffix" and updates:
        again = suffix * 3
    return below * prefix + {"meta": 9, "first-order": 5}.get(recipe.mode, 3) * suffix + again
