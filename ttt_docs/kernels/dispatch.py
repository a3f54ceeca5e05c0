"""Which implementation runs. Every kernel stands beside the plain PyTorch function that defines it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ttt_docs.errors import UsageError
from ttt_docs.kernels.attention import Sinks, window_attention_cpu, window_attention_reference
from ttt_docs.kernels.cross_entropy import linear_cross_entropy_cpu, linear_cross_entropy_reference
from ttt_docs.kernels.native.attention import window_attention_native
from ttt_docs.kernels.native.build import native_library
from ttt_docs.kernels.native.cross_entropy import linear_cross_entropy_native
from ttt_docs.kernels.native.rms_norm import rms_norm_native
from ttt_docs.kernels.native.swiglu import swiglu_native
from ttt_docs.kernels.rms_norm import rms_norm_cpu, rms_norm_reference
from ttt_docs.kernels.swiglu import swiglu_cpu, swiglu_reference


@dataclass(frozen=True)
class Kernels:
    """The four operations a decoder is made of."""

    name: str
    window_attention: Callable[..., Tensor]
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    swiglu: Callable[[Tensor, Tensor, Tensor], Tensor]
    linear_cross_entropy: Callable[..., Tensor]


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
#: What reading on a CPU uses: differentiable once, with respect to activations and fast weights only.
CPU = Kernels("cpu", _attention_cpu, rms_norm_cpu, swiglu_cpu, linear_cross_entropy_cpu)
#: The same with C++ compiled for CPUs with AMX, for what is in bfloat16.
NATIVE = Kernels("native", window_attention_native, rms_norm_native, swiglu_native, linear_cross_entropy_native)

CHOICES = ("auto", "cpu", "reference")


def kernels_for(device: torch.device) -> Kernels:
    """The kernels for reading on `device`.

    The environment variable TTT_DOCS_KERNELS overrides: `cpu` leaves the compiled ones out, `reference` takes the
    definitions. Raises UsageError for another value.
    """
    choice = os.environ.get("TTT_DOCS_KERNELS", "auto")
    if choice not in CHOICES:
        raise UsageError(f"TTT_DOCS_KERNELS={choice!r}: choose {', '.join(CHOICES[:-1])} or {CHOICES[-1]}")
    if device.type != "cpu" or choice == "reference":
        return REFERENCE
    return NATIVE if choice == "auto" and native_library().library is not None else CPU
