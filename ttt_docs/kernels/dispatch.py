"""Which backend runs on a device."""

from __future__ import annotations

import os

import torch

from ttt_docs.errors import UsageError
from ttt_docs.kernels.backends import CPU, NATIVE, NATIVE_TRAINING, REFERENCE, TRAINING, Kernels
from ttt_docs.kernels.native.build import native_library

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
    return {CPU: TRAINING, NATIVE: NATIVE_TRAINING}.get(kernels, kernels)
