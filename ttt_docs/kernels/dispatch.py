"""Which backend runs on a device.

On a CUDA device each call is decided by itself. It goes to flash-attn where that is installed and can do the job, else
to Triton. What a Triton kernel does not take (its data type, head dimension or device) goes to plain PyTorch, and each
reason is logged once as a warning. With TTT_DOCS_KERNELS=triton such a call is an error.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ttt_docs.errors import UsageError
from ttt_docs.kernels.attention.definition import Sinks, window_attention_reference
from ttt_docs.kernels.backends import CPU, NATIVE, NATIVE_TRAINING, REFERENCE, Kernels
from ttt_docs.kernels.native.build import native_library
from ttt_docs.kernels.workspace import needs_grad

logger = logging.getLogger(__name__)

CHOICES = ("auto", "cpu", "reference", "triton", "flash")
#: The oldest compute capability with bfloat16 matrix units (A100); what the kernels are compiled and checked for.
CAPABILITY = (8, 0)
#: The largest head dimensions (float32's products need their operands in registers) and rows that do not spill.
MAX_HEAD_DIM, MAX_FLOAT32_HEAD_DIM = 256, 80
MAX_NORM_DIM = 8192
#: The largest head dimension on devices that give a program 99 KiB of shared memory, and what capabilities those have.
MAX_SMALL_HEAD_DIM, SMALL = 128, ((8, 6), (8, 9), (12, 0), (12, 1))
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)

Problem = Callable[..., str | None]  # why a kernel does not take these arguments; None where it does


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
        return gpu_kernels(choice, device)
    if device.type != "cpu":
        return REFERENCE
    return NATIVE if choice == "auto" and native_library().loaded is not None else CPU


def training_kernels_for(device: torch.device) -> Kernels:
    """The kernels for training on `device`; TTT_DOCS_KERNELS overrides as for reading."""
    kernels = kernels_for(device)
    return NATIVE_TRAINING if kernels is NATIVE else kernels


def gpu_kernels(choice: str, device: torch.device) -> Kernels:
    """`choice` is auto, triton or flash. Raises UsageError where a forced one cannot run."""
    problems = {"triton": triton_problem(device), "flash": flash_problem(device)}
    if problem := problems.get(choice):
        raise UsageError(f"TTT_DOCS_KERNELS={choice} cannot run: {problem}")
    if problems["triton"]:
        _warn(f"Triton kernels are not used: {problems['triton']}")
    kernels = SdpaKernels() if problems["triton"] else TritonKernels(strict=choice == "triton")
    return kernels if choice == "triton" or problems["flash"] else with_flash(kernels)


def triton_problem(device: torch.device) -> str | None:
    """Why Triton kernels cannot run on `device`; None where they can."""
    if find_spec("triton") is None:
        return "triton is not installed; install ttt-docs[gpu]"
    return None if interpreted() else _device_problem(device)


def flash_problem(device: torch.device) -> str | None:
    """Why flash-attn cannot run on `device`; None where it can."""
    if find_spec("flash_attn") is None:
        return "flash-attn is not installed; install it or choose TTT_DOCS_KERNELS=triton"
    return _device_problem(device)


def interpreted() -> bool:
    """Whether Triton runs its interpreter, on any device: for checks on machines without a GPU."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def _device_problem(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"they run on CUDA devices, not on {device.type!r}"
    if torch.version.hip is not None:
        return "they are written for NVIDIA devices"
    if torch.cuda.get_device_capability(device) < CAPABILITY:
        found, needed = (".".join(map(str, c)) for c in (torch.cuda.get_device_capability(device), CAPABILITY))
        return f"{torch.cuda.get_device_name(device)} has compute capability {found}, they need {needed}"
    return None


@cache
def _warn(message: str) -> None:
    """Once per message and process."""
    logger.warning(message)


def _attention_pytorch(
    q: Tensor, k: Tensor, v: Tensor, window: int | None, sinks: Sinks | None, newest: tuple[Tensor, Tensor]
) -> Tensor:
    """SDPA, which never holds the weights, where it can: no sinks, no gradient (it has no second one). Otherwise the
    definition."""
    if sinks is not None or needs_grad(q, k, *newest):
        return window_attention_reference(q, k, v, window, sinks, newest)
    new, keys = q.shape[2], k.shape[2]
    grouped = q.shape[1] != k.shape[1]
    if new == keys and (window is None or window >= keys):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    i = torch.arange(keys - new, keys, device=q.device)[:, None]
    j = torch.arange(keys, device=q.device)[None, :]
    visible = (j <= i) & (j > i - (window or keys))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, enable_gqa=grouped)


class SdpaKernels(Kernels):
    """The definitions, but for attention without gradient: what a device runs where nothing else can."""

    name = "pytorch"
    window_attention = staticmethod(_attention_pytorch)


class TritonKernels(SdpaKernels):
    """Triton kernels, differentiable twice. A call that one does not take runs in plain PyTorch after one warning for
    each reason; where `strict`, it raises UsageError."""

    name = "triton"
    asynchronous = True

    def __init__(self, strict: bool) -> None:
        from ttt_docs.kernels.attention.triton import window_attention_triton
        from ttt_docs.kernels.cross_entropy.triton import linear_cross_entropy_triton
        from ttt_docs.kernels.heads.triton import heads_triton
        from ttt_docs.kernels.inner_step.triton import inner_step_triton, step_direction_triton, undo_step_triton
        from ttt_docs.kernels.rms_norm.triton import add_rms_norm_triton, rms_norm_triton
        from ttt_docs.kernels.swiglu.triton import swiglu_triton

        table: dict[str, tuple[str, Problem, Callable[..., Any]]] = {
            "window_attention": ("window attention", _attention_problem, window_attention_triton),
            "rms_norm": ("RMSNorm", _norm_problem, rms_norm_triton),
            "residual_norm": ("RMSNorm", _norm_problem, add_rms_norm_triton),
            "swiglu": ("SwiGLU", _problem, swiglu_triton),
            "linear_cross_entropy": ("cross-entropy", _problem, linear_cross_entropy_triton),
            "split_heads": ("RoPE", _heads_problem, heads_triton),
        }
        for name, (operation, problem, kernel) in table.items():
            setattr(self, name, _checked(operation, problem, kernel, getattr(SdpaKernels(), name), strict))
        self.inner_step, self.undo_step = inner_step_triton, undo_step_triton
        self.step_direction = step_direction_triton


def _checked(
    operation: str, problem: Problem, kernel: Callable[..., Any], plain: Callable[..., Any], strict: bool
) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        reason = problem(*arguments)
        if reason is None:
            with torch.cuda.device_of(arguments[0]):  # Triton launches on the current device, wherever the tensors are
                return kernel(*arguments)
        if strict:
            raise UsageError(f"TTT_DOCS_KERNELS=triton cannot run: the {operation} kernel does not take {reason}")
        _warn(f"plain PyTorch runs instead of the {operation} kernel, which does not take {reason}")
        return plain(*arguments)

    return run


def _problem(x: Tensor, *rest: Any) -> str | None:
    if x.dtype in _DTYPES or (x.dtype == torch.float64 and interpreted()):
        return None
    return f"{str(x.dtype).removeprefix('torch.')} (they take float16, bfloat16, float32)"


def _norm_problem(x: Tensor, *rest: Any) -> str | None:
    return f"rows of {x.shape[-1]} (at most {MAX_NORM_DIM})" if x.shape[-1] > MAX_NORM_DIM else _problem(x)


def _heads_problem(x: Tensor, *rest: Any) -> str | None:
    return f"head dimension {x.shape[-1]} (at most {MAX_HEAD_DIM})" if x.shape[-1] > MAX_HEAD_DIM else _problem(x)


def _attention_problem(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> str | None:
    head_dim = q.shape[-1]
    if head_dim <= MAX_HEAD_DIM:
        if head_dim > MAX_FLOAT32_HEAD_DIM and q.dtype == torch.float32 and not interpreted():
            return f"float32 with head dimension {head_dim} (at most {MAX_FLOAT32_HEAD_DIM})"
        if head_dim > MAX_SMALL_HEAD_DIM and _is_small(q.device):
            return f"head dimension {head_dim} on a device with so little shared memory (at most {MAX_SMALL_HEAD_DIM})"
        if max(x.shape[2] * x.stride(2) for x in (q, k, v)) >= 2**31:
            return "more keys than 32-bit offsets reach"
    return _heads_problem(q)


def _is_small(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) in SMALL


def with_flash(kernels: Kernels) -> Kernels:
    """`kernels` with flash-attn for what it can do. It has no sinks, no second derivative, and its first one would
    spend time on the cached keys."""
    otherwise = kernels.window_attention

    def run(
        q: Tensor, k: Tensor, v: Tensor, window: int | None, sinks: Sinks | None, newest: tuple[Tensor, Tensor]
    ) -> Tensor:
        narrow = q.dtype in (torch.float16, torch.bfloat16) and q.shape[-1] <= MAX_HEAD_DIM
        if narrow and sinks is None and not needs_grad(q, k, *newest):
            return _flash_attention(q, k, v, window)
        return otherwise(q, k, v, window, sinks, newest)

    return kernels.replace(name=f"flash, {kernels.name}", window_attention=run)


def _flash_attention(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    from flash_attn import flash_attn_func

    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    sides = (-1, -1) if window is None else (window - 1, 0)
    return flash_attn_func(q, k, v, causal=True, window_size=sides).transpose(1, 2)
