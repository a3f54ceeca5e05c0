"""Backends: the operations that a decoder is made of.

`Kernels` is complete: each of its methods is the definition of a result, in plain PyTorch. A backend inherits it and
overrides what it does faster.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from ttt_docs.kernels.attention.cpu import NATIVE_PASSES, window_attention_cpu, window_attention_native
from ttt_docs.kernels.attention.definition import window_attention_reference
from ttt_docs.kernels.attention.jvp import window_attention_jvp
from ttt_docs.kernels.cross_entropy.cpu import linear_cross_entropy_cpu, linear_cross_entropy_native
from ttt_docs.kernels.cross_entropy.definition import linear_cross_entropy_reference
from ttt_docs.kernels.cross_entropy.jvp import linear_cross_entropy_jvp
from ttt_docs.kernels.heads.definition import Heads, HeadSplit, split_heads_reference
from ttt_docs.kernels.inner_step.definition import (
    Step,
    inner_step_reference,
    step_direction_reference,
    undo_step_reference,
)
from ttt_docs.kernels.inner_step.native import inner_step_native
from ttt_docs.kernels.rms_norm.cpu import rms_norm_cpu, rms_norm_native
from ttt_docs.kernels.rms_norm.definition import rms_norm_reference
from ttt_docs.kernels.rms_norm.jvp import rms_norm_jvp
from ttt_docs.kernels.swiglu.cpu import swiglu_cpu, swiglu_native
from ttt_docs.kernels.swiglu.definition import swiglu_reference
from ttt_docs.kernels.swiglu.jvp import swiglu_jvp


class Kernels:
    """The definitions, in plain PyTorch: differentiable any number of times (training, tests)."""

    name = "reference"
    #: The outer loop needs second derivatives. Kernels that are differentiable once have a second backend for it, which
    #: computes a chunk's directional derivative. None: these kernels are differentiable twice.
    jvp: Kernels | None = None
    #: Whether the inner step runs while the host goes on. Reading then asks for results once in many chunks.
    asynchronous = False
    #: Whether the inner step is faster where it is given memory for the new weights. Fresh memory of this size costs
    #: a page fault every 4 KB.
    steps_into_memory = False

    linear: Callable[..., Tensor] = staticmethod(F.linear)
    rms_norm: Callable[[Tensor, Tensor, float], Tensor] = staticmethod(rms_norm_reference)
    swiglu: Callable[[Tensor, Tensor, Tensor], Tensor] = staticmethod(swiglu_reference)
    window_attention: Callable[..., Tensor] = staticmethod(window_attention_reference)
    linear_cross_entropy: Callable[..., Tensor] = staticmethod(linear_cross_entropy_reference)
    #: The step of all fast weights; the way back for some documents; and the step's gradient.
    inner_step: Callable[..., Step] = staticmethod(inner_step_reference)
    undo_step: Callable[[Step, Tensor], Step] = staticmethod(undo_step_reference)
    step_direction: Callable[..., tuple[Tensor, Tensor]] = staticmethod(step_direction_reference)

    def split_heads(self, qkv: Tensor, q_norm: Tensor | None, k_norm: Tensor | None, split: HeadSplit) -> Heads:
        """Queries, keys and values of qkv, normed and rotated: see `kernels.heads.definition.split_heads_reference`."""
        return split_heads_reference(qkv, q_norm, k_norm, split, self.rms_norm)

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


class JvpKernels(Kernels):
    """Values and their derivatives along one direction, stacked along the batch (`swiglu/jvp.py`): differentiable once.

    The tangent of what is linear is the same operation; a bias is no part of it.
    """

    name = "jvp"
    rms_norm = staticmethod(rms_norm_jvp)
    swiglu = staticmethod(swiglu_jvp)
    window_attention = staticmethod(window_attention_jvp)
    linear_cross_entropy = staticmethod(linear_cross_entropy_jvp)

    @staticmethod
    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [2 * batch, tokens, in] times shared weight [out, in]."""
        if bias is None:
            return F.linear(x, weight)
        value, tangent = F.linear(x, weight).chunk(2)
        return torch.cat([value + bias, tangent])


class CpuKernels(Kernels):
    """What a CPU uses: differentiable once, with a backend for directional derivatives. Cached keys and values count as
    constants unless they ask for gradient themselves."""

    name = "cpu"
    jvp = JvpKernels()
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
    inner_step = staticmethod(inner_step_native)
    steps_into_memory = True


class NativeTrainingKernels(CpuKernels):
    """What training uses there: compiled attention and inner step, for what is in bfloat16."""

    name = "native training"
    window_attention = staticmethod(window_attention_native)
    inner_step = staticmethod(inner_step_native)
    jvp = JvpKernels().replace(window_attention=partial(window_attention_jvp, passes=NATIVE_PASSES))


REFERENCE, CPU, NATIVE, NATIVE_TRAINING = Kernels(), CpuKernels(), NativeKernels(), NativeTrainingKernels()
