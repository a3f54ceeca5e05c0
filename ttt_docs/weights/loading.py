"""From a checkpoint's weights to a decoder: fast weights for a model that never saw TTT, device and dtype."""

from __future__ import annotations

import torch

from ttt_docs.errors import UsageError
from ttt_docs.model.config import ModelConfig
from ttt_docs.model.decoder import Decoder
from ttt_docs.model.rope import frequencies
from ttt_docs.weights.parameters import State


def retrofit(config: ModelConfig, state: State, suffix_blocks: int = 8, sinks: int = 4) -> tuple[ModelConfig, State]:
    """Give the last `suffix_blocks` blocks a prime MLP; returns a new config and state, the old ones stay as they are.

    w1 `[mlp, dim]` and w3 are copies of the block's static MLP, w2 `[dim, mlp]` is zero: until the first update the
    model is exactly the one it was. Prime MLPs are float32, whatever the rest is; the other tensors are shared.
    `sinks`: first tokens whose keys and values are kept for ever, which a model trained with full attention needs.

    Raises:
        UsageError: more suffix blocks than blocks, or a model that has prime MLPs or post-norms already.
    """
    new_config = retrofit_config(config, suffix_blocks, sinks)
    new_state = dict(state)
    for block in new_config.suffix:
        w1, w3 = state[f"blocks.{block}.mlp.w13.weight"].split(config.mlp_dim)
        new_state[f"blocks.{block}.prime_mlp.w1"] = w1.to(torch.float32, copy=True)
        new_state[f"blocks.{block}.prime_mlp.w2"] = w1.new_zeros(config.dim, config.mlp_dim, dtype=torch.float32)
        new_state[f"blocks.{block}.prime_mlp.w3"] = w3.to(torch.float32, copy=True)
    return new_config, new_state


def retrofit_config(config: ModelConfig, suffix_blocks: int, sinks: int) -> ModelConfig:
    """The configuration that `retrofit` makes of `config`; raises as that does."""
    if not 0 < suffix_blocks <= config.blocks:
        raise UsageError(f"suffix_blocks must be between 1 and {config.blocks}, not {suffix_blocks}")
    if sinks < 0:
        raise UsageError(f"sinks cannot be negative: {sinks}")
    if config.suffix_blocks or config.post_norm:
        raise UsageError(f"{config.name} is a TTT model already: a retrofit is for a plain Llama-family model")
    changes = {"suffix_blocks": suffix_blocks, "sinks": sinks, "prime_norm": False, "prime_mlp_dim": None}
    return config.model_copy(update=changes)


def build_decoder(config: ModelConfig, state: State, device: torch.device, dtype: torch.dtype) -> Decoder:
    """A frozen decoder with weights in `dtype`. The prime MLPs stay float32, because fast weights are float32."""
    with torch.device("meta"):
        model = Decoder(config)
    weights = {
        name: tensor.to(device, torch.float32 if ".prime_mlp." in name and dtype != torch.float64 else dtype)
        for name, tensor in state.items()
    }
    model.load_state_dict(weights, assign=True)
    model.register_buffer("inverse_frequencies", frequencies(config).to(device), persistent=False)
    return model.requires_grad_(False)


def best_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it natively (CUDA, CPUs with AMX or AVX-512 BF16), else float32."""
    if device.type == "cpu":
        return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32
    return torch.bfloat16


def device_of(device: str | torch.device) -> torch.device:
    """The device, after one try: torch itself reports a missing device late, and in words that few understand.

    Raises UsageError.
    """
    try:
        where = torch.device(device)
        torch.zeros(1, device=where).item()
    except (RuntimeError, AssertionError, TypeError, ValueError):
        here = "cpu or cuda" if torch.cuda.is_available() else "cpu"
        raise UsageError(f"device={str(device)!r} cannot be used on this machine: use {here}") from None
    return where


def dtype_of(dtype: torch.dtype | str | None, device: torch.device) -> torch.dtype:
    """The products' dtype: float32 or bfloat16, None for the best. Raises UsageError for another."""
    named = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    numbers = best_dtype(device) if dtype is None else named
    if numbers not in (torch.float32, torch.bfloat16):
        raise UsageError(f"dtype={str(dtype)!r}: use float32 or bfloat16")
    return numbers
