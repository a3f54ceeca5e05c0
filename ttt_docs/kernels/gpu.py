"""Which kernels run on a CUDA device: flash-attn where it is installed and can do the job, Triton, plain PyTorch.

The choice is made per call. A call that a kernel does not take (its data type, head dimension or device) goes to plain
PyTorch, and each reason is logged once as a warning. Where TTT_DOCS_KERNELS=triton forces the kernel, it is an error.
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
from ttt_docs.kernels.attention.definition import Sinks
from ttt_docs.kernels.backends import REFERENCE, Kernels
from ttt_docs.kernels.heads.definition import heads_reference

logger = logging.getLogger(__name__)

#: The oldest compute capability with bfloat16 matrix units (A100); what the kernels are compiled and checked for.
CAPABILITY = (8, 0)
#: The largest head dimensions (float32's products need their operands in registers) and rows that do not spill.
MAX_HEAD_DIM, MAX_FLOAT32_HEAD_DIM = 256, 80
MAX_NORM_DIM = 8192
#: The largest head dimension on devices that give a program 99 KiB of shared memory, and what capabilities those have.
MAX_SMALL_HEAD_DIM, SMALL = 128, ((8, 6), (8, 9), (12, 0), (12, 1))
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def gpu_kernels(choice: str, device: torch.device) -> Kernels:
    """`choice` is auto, triton or flash. Raises UsageError where a forced one cannot run."""
    without_triton, without_flash = triton_problem(device), flash_problem(device)
    if choice == "triton" and without_triton:
        raise UsageError(f"TTT_DOCS_KERNELS=triton cannot run: {without_triton}")
    if choice == "flash" and without_flash:
        raise UsageError(f"TTT_DOCS_KERNELS=flash cannot run: {without_flash}")
    flash = choice != "triton" and not without_flash
    if without_triton:
        _warn(f"Triton kernels are not used: {without_triton}")
        name = "flash, pytorch" if flash else "pytorch"
        return REFERENCE.replace(name=name, window_attention=_attention(flash, None, False))
    return _with_triton(flash, strict=choice == "triton")


def triton_problem(device: torch.device) -> str | None:
    """Why Triton kernels cannot run on `device`; None where they can."""
    if find_spec("triton") is None:
        return "triton is not installed; install ttt-docs[gpu]"
    if interpreted():
        return None
    return _device_problem(device)


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


def _dtype_problem(x: Tensor) -> str | None:
    if x.dtype in _DTYPES or (x.dtype == torch.float64 and interpreted()):
        return None
    return f"{str(x.dtype).removeprefix('torch.')} (they take float16, bfloat16, float32)"


def _attention_problem(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> str | None:
    if q.shape[-1] > MAX_HEAD_DIM:
        return f"head dimension {q.shape[-1]} (at most {MAX_HEAD_DIM})"
    if q.shape[-1] > MAX_FLOAT32_HEAD_DIM and q.dtype == torch.float32 and not interpreted():
        return f"float32 with head dimension {q.shape[-1]} (at most {MAX_FLOAT32_HEAD_DIM})"
    if q.shape[-1] > MAX_SMALL_HEAD_DIM and _is_small(q.device):
        return f"head dimension {q.shape[-1]} on a device with so little shared memory (at most {MAX_SMALL_HEAD_DIM})"
    if max(q.shape[2] * q.stride(2), *(x.shape[2] * x.stride(2) for x in (k, v))) >= 2**31:
        return "more keys than 32-bit offsets reach"
    return _dtype_problem(q)


def _is_small(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) in SMALL


def _heads_problem(qkv: Tensor, *rest: Any) -> str | None:
    if qkv.shape[-1] > MAX_HEAD_DIM:
        return f"head dimension {qkv.shape[-1]} (at most {MAX_HEAD_DIM})"
    return _dtype_problem(qkv)


def _norm_problem(x: Tensor, *rest: Any) -> str | None:
    if x.shape[-1] > MAX_NORM_DIM:
        return f"rows of {x.shape[-1]} (at most {MAX_NORM_DIM})"
    return _dtype_problem(x)


def _checked(
    operation: str,
    problem: Callable[..., str | None],
    kernel: Callable[..., Any],
    plain: Callable[..., Any],
    strict: bool,
) -> Callable[..., Any]:
    """`kernel` where it can do the job, else `plain` after one warning, or an error if `strict`."""

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


def _with_triton(flash: bool, strict: bool) -> Kernels:
    from ttt_docs.kernels.attention.triton import window_attention_triton
    from ttt_docs.kernels.cross_entropy.triton import linear_cross_entropy_triton
    from ttt_docs.kernels.heads.triton import heads_triton
    from ttt_docs.kernels.inner_step.triton import inner_step_triton, step_direction_triton, undo_step
    from ttt_docs.kernels.rms_norm.triton import add_rms_norm_triton, rms_norm_triton
    from ttt_docs.kernels.swiglu.triton import swiglu_triton

    def checked(operation: str, problem: Callable[..., str | None], kernel: Any, plain: Any) -> Callable[..., Any]:
        return _checked(operation, problem, kernel, plain, strict)

    return REFERENCE.replace(
        name="flash, triton" if flash else "triton",
        window_attention=_attention(flash, window_attention_triton, strict),
        rms_norm=checked("RMSNorm", _norm_problem, rms_norm_triton, REFERENCE.rms_norm),
        swiglu=checked("SwiGLU", _dtype_problem_of_first, swiglu_triton, REFERENCE.swiglu),
        linear_cross_entropy=checked(
            "cross-entropy", _dtype_problem_of_first, linear_cross_entropy_triton, REFERENCE.linear_cross_entropy
        ),
        split_heads=checked("RoPE", _heads_problem, heads_triton, heads_reference),
        residual_norm=checked("RMSNorm", _norm_problem, add_rms_norm_triton, REFERENCE.residual_norm),
        inner_step=(inner_step_triton, undo_step),
        step_direction=step_direction_triton,
    )


def _dtype_problem_of_first(x: Tensor, *rest: Any) -> str | None:
    return _dtype_problem(x)


def _attention(flash: bool, kernel: Callable[..., Tensor] | None, strict: bool) -> Callable[..., Tensor]:
    otherwise = attention_pytorch
    if kernel is not None:
        otherwise = _checked("window attention", _attention_problem, kernel, attention_pytorch, strict)

    def run(
        q: Tensor, k: Tensor, v: Tensor, window: int | None, sinks: Sinks | None, newest: tuple[Tensor, Tensor]
    ) -> Tensor:
        if flash and not _needs_more_than_flash(q, k, sinks, newest):
            return _flash_attention(q, k, v, window)
        return otherwise(q, k, v, window, sinks, newest)

    return run


def _gradient_wanted(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def _needs_more_than_flash(q: Tensor, k: Tensor, sinks: Sinks | None, newest: tuple[Tensor, Tensor]) -> bool:
    """flash-attn has no sinks, no second derivative, and its first one would spend time on the cached keys."""
    return (
        sinks is not None
        or q.dtype not in (torch.float16, torch.bfloat16)
        or q.shape[-1] > MAX_HEAD_DIM
        or _gradient_wanted(q, k, *newest)
    )


def _flash_attention(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    from flash_attn import flash_attn_func

    left = -1 if window is None else window - 1
    turned = (x.transpose(1, 2) for x in (q, k, v))
    return flash_attn_func(*turned, causal=True, window_size=(left, -1 if left < 0 else 0)).transpose(1, 2)


def attention_pytorch(
    q: Tensor, k: Tensor, v: Tensor, window: int | None, sinks: Sinks | None, newest: tuple[Tensor, Tensor]
) -> Tensor:
    """SDPA, which never holds the weights, where it can: no sinks, no gradient (it has no second one). Otherwise the
    definition."""
    if sinks is not None or _gradient_wanted(q, k, *newest):
        return REFERENCE.window_attention(q, k, v, window, sinks, newest)
    new, keys = q.shape[2], k.shape[2]
    grouped = q.shape[1] != k.shape[1]
    if new == keys and (window is None or window >= keys):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    i = torch.arange(keys - new, keys, device=q.device)[:, None]
    j = torch.arange(keys, device=q.device)[None, :]
    visible = (j <= i) & (j > i - (window or keys))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, enable_gqa=grouped)
