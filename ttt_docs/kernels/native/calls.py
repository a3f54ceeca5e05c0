"""Calls into the compiled library: what fits plain arguments."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ttt_docs.kernels.native.build import native_library

#: Fewer rows than this (decoding, the guard) read each weight for next to no work: oneDNN's products are as fast.
LEAST_ROWS = 64


def call(function: str, *arguments: Tensor | int | float | None) -> None:
    """Calls `function` with numbers as they are, tensors as pointers, and the number of threads last."""
    library = native_library().loaded
    assert library is not None
    getattr(library, function)(*map(_convert, (*arguments, torch.get_num_threads())))


def _convert(argument: Tensor | int | float | None) -> ctypes.c_int64 | ctypes.c_float | ctypes.c_void_p:
    if isinstance(argument, int):
        return ctypes.c_int64(argument)
    if isinstance(argument, float):
        return ctypes.c_float(argument)
    return ctypes.c_void_p(None if argument is None else argument.data_ptr())


def multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
    """out [rows, columns] = a [rows, depth] @ b [depth, columns] in bfloat16, out row by row in memory.

    a and b may each be the transpose of a matrix that lies row by row.
    """
    (rows, depth), columns = a.shape, b.shape[1]
    call("multiply", rows, columns, depth, *_in_memory(a), *_in_memory(b), out, out.stride(0))


def _in_memory(x: Tensor) -> tuple[Tensor, int, int]:
    """The matrix as memory has it: its stride, and whether it is x's transpose."""
    if x.stride(0) == 1 and x.stride(1) != 1:
        return x, x.stride(1), 1
    x = x if x.stride(1) == 1 else x.contiguous()
    return x, x.stride(0), 0
