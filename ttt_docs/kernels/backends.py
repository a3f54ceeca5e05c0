"""Backends: the operations that a decoder is made of.

`Kernels` is complete: each of its methods is the definition of a result, in plain PyTorch. A backend inherits it and
overrides what it does faster.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Self

import torch.nn.functional as F
from torch import Tensor

from ttt_docs.kernels.attention.definition import window_attention_cpu, window_attention_reference
from ttt_docs.kernels.attention.jvp import pair_window_attention
from ttt_docs.kernels.attention.native import window_attention_native
from ttt_docs.kernels.attention.training import window_attention_training
from ttt_docs.kernels.cross_entropy.definition import linear_cross_entropy_cpu, linear_cross_entropy_reference
from ttt_docs.kernels.cross_entropy.jvp import pair_linear_cross_entropy
from ttt_docs.kernels.cross_entropy.native import linear_cross_entropy_native
from ttt_docs.kernels.heads.definition import Heads, HeadsPlan, heads_reference
from ttt_docs.kernels.inner_step.definition import (
    balance_reference,
    gradient_norm_reference,
    weight_step_reference,
)
from ttt_docs.kernels.inner_step.native import balance_native, gradient_norm_native, weight_step_native
from ttt_docs.kernels.jvp import pair_linear, pair_rms_norm, pair_swiglu
from ttt_docs.kernels.rms_norm.definition import rms_norm_cpu, rms_norm_reference
from ttt_docs.kernels.rms_norm.native import rms_norm_native
from ttt_docs.kernels.swiglu.definition import swiglu_cpu, swiglu_reference
from ttt_docs.kernels.swiglu.native import swiglu_native


class Kernels:
    """The definitions, in plain PyTorch: differentiable any number of times (training, tests)."""

    name = "reference"
    #: The backend that computes a chunk's directional derivative, for kernels that are differentiable once: the outer
    #: loop's second derivatives. None: these kernels are differentiable twice.
    jvp: Kernels | None = None
    #: The inner step over all fast weights and what takes it back, both on the device; None: `ttt.inner_loop`.
    inner_step: tuple[Callable[..., Any], Callable[..., None]] | None = None
    #: What such a step hands back to its gradient and rates, for the outer loop; None: `ttt.outer_scan`.
    step_direction: Callable[..., tuple[list[tuple[Tensor, Tensor]], Tensor]] | None = None

    linear: Callable[..., Tensor] = staticmethod(F.linear)
    rms_norm: Callable[[Tensor, Tensor, float], Tensor] = staticmethod(rms_norm_reference)
    swiglu: Callable[[Tensor, Tensor, Tensor], Tensor] = staticmethod(swiglu_reference)
    window_attention: Callable[..., Tensor] = staticmethod(window_attention_reference)
    linear_cross_entropy: Callable[..., Tensor] = staticmethod(linear_cross_entropy_reference)
    #: The parts of an inner step for one matrix: what balances its gradient, the norm of that, and the step together
    #: with its copy for the products.
    balance = staticmethod(balance_reference)
    gradient_norm = staticmethod(gradient_norm_reference)
    weight_step = staticmethod(weight_step_reference)

    def split_heads(self, qkv: Tensor, q_norm: Tensor | None, k_norm: Tensor | None, plan: HeadsPlan) -> Heads:
        """Queries, keys and values of qkv, normed and rotated: see `kernels.heads.definition.heads_reference`."""
        return heads_reference(qkv, q_norm, k_norm, plan, self.rms_norm)

    def residual_norm(
        self, x: Tensor, delta: Tensor, post_weight: Tensor | None, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """A residual and the norms around it: x + delta, and the RMSNorm of that sum with `weight`.

        x, delta [..., dim]; weight [dim]. With `post_weight` [dim], delta goes through an RMSNorm of its own first.
        """
        if post_weight is not None:
            delta = self.rms_norm(delta, post_weight, eps)
        x = x + delta
        return x, self.rms_norm(x, weight, eps)

    def replace(self, **changes: Any) -> Self:
        """A copy of this backend with other attributes or operations."""
        other = copy.copy(self)
        other.__dict__.update(changes)
        return other


class CpuKernels(Kernels):
    """What reading on a CPU uses: differentiable once; cached keys and values are constants."""

    name = "cpu"
    rms_norm = staticmethod(rms_norm_cpu)
    swiglu = staticmethod(swiglu_cpu)
    window_attention = staticmethod(window_attention_cpu)
    linear_cross_entropy = staticmethod(linear_cross_entropy_cpu)


class NativeKernels(CpuKernels):
    """The same with C++ compiled for CPUs with AMX or AVX-512, for what is in bfloat16."""

    name = "native"
    rms_norm = staticmethod(rms_norm_native)
    swiglu = staticmethod(swiglu_native)
    window_attention = staticmethod(window_attention_native)
    linear_cross_entropy = staticmethod(linear_cross_entropy_native)
    balance = staticmethod(balance_native)
    gradient_norm = staticmethod(gradient_norm_native)
    weight_step = staticmethod(weight_step_native)


class JvpKernels(Kernels):
    """Values and their directional derivatives together (`kernels/jvp.py`), differentiable once."""

    name = "jvp"
    linear = staticmethod(pair_linear)
    rms_norm = staticmethod(pair_rms_norm)
    swiglu = staticmethod(pair_swiglu)
    window_attention = staticmethod(pair_window_attention)
    linear_cross_entropy = staticmethod(pair_linear_cross_entropy)


class TrainingKernels(CpuKernels):
    """What training on a CPU uses: differentiable once, cached keys and values that ask for it included."""

    name = "training"
    jvp = JvpKernels()
    window_attention = staticmethod(window_attention_training)


REFERENCE, CPU, NATIVE, TRAINING = Kernels(), CpuKernels(), NativeKernels(), TrainingKernels()
