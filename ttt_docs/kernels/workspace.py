"""What the kernels share: buffers kept between calls, number formats, memory layouts, and what autograd asks for."""

from __future__ import annotations

import math
import threading
from typing import Any

import torch
from torch import Tensor

_local = threading.local()


def workspace(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialized CPU tensor that the next call of the same name, in this thread, will overwrite.

    A fresh buffer of tens of megabytes costs more in page faults than the work done in it.
    """
    buffers: dict[tuple[str, torch.dtype], Tensor] = _local.__dict__.setdefault("buffers", {})
    size = math.prod(shape)
    buffer = buffers.get((name, dtype))
    if buffer is None or buffer.numel() < size:
        buffer = buffers[name, dtype] = torch.empty(size, dtype=dtype)
    return buffer[:size].view(shape)


def wide(dtype: torch.dtype) -> torch.dtype:
    """What sums and statistics are kept in: float32, and float64 for float64."""
    return dtype if dtype == torch.float64 else torch.float32


def token_major(x: Tensor) -> Tensor:
    """x [batch, heads, tokens, d], in memory [batch, tokens, heads, d]: the order of the projections."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def empty_token_major(like: Tensor) -> Tensor:
    """An empty tensor of that shape [batch, heads, tokens, d], in memory [batch, tokens, heads, d]."""
    batch, heads, tokens, d = like.shape
    return like.new_empty(batch, tokens, heads, d).transpose(1, 2)


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether autograd would follow an operation on these."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def traced(x: Any) -> Any:
    """x (a tensor or None) for a function whose backward pass asks `wanted`. Autograd does not tell of a leaf whether
    its gradient is asked for; of a view it does."""
    return x.view_as(x) if x is not None and x.requires_grad and x.is_leaf else x


def wanted(ctx: Any, tensor: int) -> bool:
    """Inside a backward pass: whether the gradient of the forward pass's tensor number `tensor` is asked for now.

    `ctx.needs_input_grad` says only that it could be. All parameters may require gradient, but the inner step asks for
    the fast weights' gradients alone, and must not pay for the others. The tensor must be `traced`.
    """
    node = ctx.next_functions[tensor][0]
    return node is not None and torch._C._will_engine_execute_node(node)


#: On a product of few columns oneDNN splits the sum instead of the columns, and loses half its speed. From this many
#: rows on, two products of half the columns each are faster.
_SPLIT_ROWS = 512


def narrow_product(x: Tensor, weight: Tensor) -> Tensor:
    """x [rows, in] @ weight [in, out], out much smaller than in."""
    columns = weight.shape[1]
    if x.device.type != "cpu" or x.shape[0] < _SPLIT_ROWS or columns % 2 or columns > 1024:
        return x @ weight
    half = columns // 2
    return torch.cat([x @ weight[:, :half], x @ weight[:, half:]], dim=1)
