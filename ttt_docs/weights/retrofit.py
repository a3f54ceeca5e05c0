"""Fast weights for a pre-trained model that never saw TTT (METHOD section 6): no training, at first the same model."""

from __future__ import annotations

import torch

from ttt_docs.errors import UsageError
from ttt_docs.model.config import ModelConfig
from ttt_docs.weights.source import State


def retrofit(config: ModelConfig, state: State, suffix_blocks: int = 8, sinks: int = 4) -> tuple[ModelConfig, State]:
    """Give the last `suffix_blocks` blocks a prime MLP; returns a new config and state, the old ones stay as they are.

    w1 `[mlp, dim]` and w3 are copies of the block's static MLP, w2 `[dim, mlp]` is zero: until the first update the
    model is exactly the one it was. Prime MLPs are float32, whatever the rest is; the other tensors are shared.
    `sinks`: first tokens whose keys and values are kept for ever, which a model trained with full attention needs.

    Raises:
        UsageError: more suffix blocks than blocks, or a model that has prime MLPs or post-norms already.
    """
    if not 0 < suffix_blocks <= config.blocks:
        raise UsageError(f"suffix_blocks must be between 1 and {config.blocks}, not {suffix_blocks}")
    if sinks < 0:
        raise UsageError(f"sinks cannot be negative: {sinks}")
    if config.suffix_blocks or config.post_norm:
        raise UsageError(f"{config.name} is a TTT model already: a retrofit is for a plain Llama-family model")
    changes = {"suffix_blocks": suffix_blocks, "sinks": sinks, "prime_norm": False, "prime_mlp_dim": None}
    new_config = config.model_copy(update=changes)
    new_state = dict(state)
    for block in new_config.suffix:
        w1, w3 = state[f"blocks.{block}.mlp.w13.weight"].split(config.mlp_dim)
        new_state[f"blocks.{block}.prime_mlp.w1"] = w1.to(torch.float32, copy=True)
        new_state[f"blocks.{block}.prime_mlp.w2"] = w1.new_zeros(config.dim, config.mlp_dim, dtype=torch.float32)
        new_state[f"blocks.{block}.prime_mlp.w3"] = w3.to(torch.float32, copy=True)
    return new_config, new_state
