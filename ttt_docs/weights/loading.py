"""From a checkpoint folder to a decoder that is ready to read."""

from __future__ import annotations

import torch

from ttt_docs.errors import UsageError
from ttt_docs.model.config import ModelConfig
from ttt_docs.model.decoder import Decoder
from ttt_docs.model.rope import frequencies
from ttt_docs.weights.source import State


def build_decoder(config: ModelConfig, state: State, device: torch.device, dtype: torch.dtype) -> Decoder:
    """A frozen decoder with weights in `dtype`; the prime MLPs stay float32, the precision fast weights are kept in."""
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
    """The device, tried out: torch would only say some time later, and in its own words, that it is not there.

    Raises UsageError.
    """
    try:
        where = torch.device(device)
        torch.zeros(1, device=where).item()
    except (RuntimeError, AssertionError):
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
