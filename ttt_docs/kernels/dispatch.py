"""Which implementation runs. Every kernel stands beside the plain PyTorch function that defines it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ttt_docs.errors import UsageError
from ttt_docs.kernels.attention.definition import Sinks, window_attention_cpu, window_attention_reference
from ttt_docs.kernels.attention.jvp import pair_window_attention
from ttt_docs.kernels.attention.native import window_attention_native
from ttt_docs.kernels.attention.training import window_attention_training
from ttt_docs.kernels.cross_entropy.definition import linear_cross_entropy_cpu, linear_cross_entropy_reference
from ttt_docs.kernels.cross_entropy.jvp import pair_linear_cross_entropy
from ttt_docs.kernels.cross_entropy.native import linear_cross_entropy_native
from ttt_docs.kernels.heads.definition import Heads, HeadsPlan, heads_reference
from ttt_docs.kernels.inner_step.definition import (
    Balance,
    balance_reference,
    gradient_norm_reference,
    weight_step_reference,
)
from ttt_docs.kernels.inner_step.native import balance_native, gradient_norm_native, weight_step_native
from ttt_docs.kernels.jvp import pair_linear, pair_rms_norm, pair_swiglu
from ttt_docs.kernels.native.build import native_library
from ttt_docs.kernels.rms_norm.definition import rms_norm_cpu, rms_norm_reference
from ttt_docs.kernels.rms_norm.native import rms_norm_native
from ttt_docs.kernels.swiglu.definition import swiglu_cpu, swiglu_reference
from ttt_docs.kernels.swiglu.native import swiglu_native


@dataclass(frozen=True)
class Kernels:
    """The operations a decoder is made of."""

    name: str
    window_attention: Callable[..., Tensor]
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    swiglu: Callable[[Tensor, Tensor, Tensor], Tensor]
    linear_cross_entropy: Callable[..., Tensor]
    linear: Callable[[Tensor, Tensor, Tensor | None], Tensor] = F.linear
    #: QK norm, RoPE and the way into the cache in one pass; None: one after the other (`split_heads`).
    heads: Callable[..., Heads] | None = None
    #: A residual and the norms around it in one pass; None: one after the other (`residual_norm`).
    add_rms_norm: Callable[..., tuple[Tensor, Tensor]] | None = None
    #: The parts of an inner step for one matrix: what balances its gradient, the norm of that, and the step together
    #: with its copy for the products.
    balance: Callable[[Tensor], Balance] = balance_reference
    gradient_norm: Callable[..., Tensor] = gradient_norm_reference
    weight_step: Callable[..., Tensor] = weight_step_reference
    #: The inner step over all fast weights, and what takes it back, without a word to the host; None: `model.inner`.
    inner_step: tuple[Callable[..., Any], Callable[..., None]] | None = None
    #: What such a step hands back to its gradient and rates, for the outer loop; None: `training.scan`.
    step_direction: Callable[..., tuple[list[tuple[Tensor, Tensor]], Tensor]] | None = None
    #: The same operations on pairs of values and tangents (`kernels/pairs.py`), for kernels that are differentiable
    #: once: the outer loop's second derivatives. None: these are differentiable twice.
    pairs: Kernels | None = None

    def split_heads(self, qkv: Tensor, q_norm: Tensor | None, k_norm: Tensor | None, plan: HeadsPlan) -> Heads:
        """As `kernels.heads.heads_reference`."""
        if self.heads is not None:
            return self.heads(qkv, q_norm, k_norm, plan)
        return heads_reference(qkv, q_norm, k_norm, plan, self.rms_norm)

    def residual_norm(
        self, x: Tensor, delta: Tensor, post_weight: Tensor | None, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """x + delta, delta normed first if `post_weight` is given, and the norm of that sum with `weight`."""
        if post_weight is not None:
            delta = self.rms_norm(delta, post_weight, eps)
        x = x + delta
        return x, self.rms_norm(x, weight, eps)


def _attention_reference(
    q: Tensor, k: Tensor, v: Tensor, window: int | None, sinks: Sinks | None, newest: tuple[Tensor, Tensor]
) -> Tensor:
    cached = k.shape[2] - q.shape[2]  # a reading cache holds constants: gradient reaches the newest tokens beside it
    k, v = torch.cat([k[:, :, :cached], newest[0]], 2), torch.cat([v[:, :, :cached], newest[1]], 2)
    return window_attention_reference(q, k, v, window, sinks)


def _attention_cpu(
    q: Tensor, k: Tensor, v: Tensor, window: int | None, sinks: Sinks | None, newest: tuple[Tensor, Tensor]
) -> Tensor:
    return window_attention_cpu(q, k, v, window, sinks, newest=newest)


#: Plain PyTorch: the definition of every result, differentiable any number of times (training, tests).
REFERENCE = Kernels(
    "reference", _attention_reference, rms_norm_reference, swiglu_reference, linear_cross_entropy_reference
)
#: What reading on a CPU uses: differentiable once; cached keys and values are constants.
CPU = Kernels("cpu", _attention_cpu, rms_norm_cpu, swiglu_cpu, linear_cross_entropy_cpu)
#: The same with C++ compiled for CPUs with AMX or AVX-512, for what is in bfloat16.
NATIVE = Kernels(
    "native", window_attention_native, rms_norm_native, swiglu_native, linear_cross_entropy_native,
    balance=balance_native, gradient_norm=gradient_norm_native, weight_step=weight_step_native,
)  # fmt: skip
PAIRS = Kernels("pairs", pair_window_attention, pair_rms_norm, pair_swiglu, pair_linear_cross_entropy, pair_linear)
#: What training on a CPU uses: differentiable once, cached keys and values that ask for it included, and on pairs.
TRAINING = replace(CPU, name="training", window_attention=window_attention_training, pairs=PAIRS)

CHOICES = ("auto", "cpu", "reference", "triton", "flash")


def kernel_choice() -> str:
    """The environment variable TTT_DOCS_KERNELS. Raises UsageError for a value it cannot have."""
    choice = os.environ.get("TTT_DOCS_KERNELS", "auto")
    if choice not in CHOICES:
        raise UsageError(f"TTT_DOCS_KERNELS={choice!r}: choose {', '.join(CHOICES[:-1])} or {CHOICES[-1]}")
    return choice


def kernels_for(device: torch.device) -> Kernels:
    """The kernels for reading on `device`.

    TTT_DOCS_KERNELS overrides: `cpu` leaves the compiled ones out, `reference` takes the definitions, `triton` and
    `flash` those kernels. Raises UsageError for another value, or for kernels that cannot run on `device`.
    """
    choice = kernel_choice()
    if choice == "reference" or (choice == "cpu" and device.type != "cpu"):
        return REFERENCE
    if device.type == "cuda" or choice in ("triton", "flash"):
        from ttt_docs.kernels.gpu import gpu_kernels

        return gpu_kernels(choice, device)
    if device.type != "cpu":
        return REFERENCE
    return NATIVE if choice == "auto" and native_library().loaded is not None else CPU


def training_kernels_for(device: torch.device) -> Kernels:
    """The kernels for training on `device`; TTT_DOCS_KERNELS overrides as for reading."""
    kernels = kernels_for(device)
    return TRAINING if device.type == "cpu" and kernels in (CPU, NATIVE) else kernels
