"""The inner step over all fast weights: two launches (five for `balanced`), no matter how many matrices, and no word to
the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ttt_docs.kernels.inner_step.triton_kernels import (
    FIELDS,
    balance_of,
    directions,
    products_along,
    squares,
    squares_by_line,
    undo,
    update,
)
from ttt_docs.kernels.triton_common import accumulator, wide

#: Elements per program, and per step of its loop.
CHUNK, BLOCK = 1 << 16, 1 << 12
WARPS = 8
#: Rows per program, columns per step of its loop, where rows and columns are summed; lines per program after that.
ROWS, COLUMNS, LINES = 64, 64, 256
#: Numbers of a table for each block.
TABLE = 3 * FIELDS.value

_POINTED: dict[torch.dtype, tl.dtype] = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}


class Step(NamedTuple):
    """One update of all blocks. `fast` are (w1, w2, w3) in float32, `products` (w13, w2) in the products' dtype."""

    fast: list[tuple[Tensor, Tensor, Tensor]]
    products: list[tuple[Tensor, Tensor]]
    grad_norm: Tensor  # [batch], before clipping
    clip: Tensor  # [batch], factor applied (1 but for `sgd`)
    table: Tensor  # addresses of all matrices, on the device
    addresses: Tensor  # the same on the host


def new_buffers(
    fast: Sequence[Sequence[Tensor]], dtype: torch.dtype
) -> tuple[list[tuple[Tensor, Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
    """Room for the weights after a step: like `fast`, and as products take them."""
    after, products = [], []
    for w1, w2, w3 in fast:
        after.append((_like(w1, w1.dtype), _like(w2, w2.dtype), _like(w3, w3.dtype)))
        batch, hidden, dim = w1.shape
        products.append((w1.new_empty(batch, 2 * hidden, dim, dtype=dtype), _like(w2, dtype)))
    return after, products


def _like(x: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(x.shape, dtype=dtype, device=x.device)  # contiguous: initial weights are expanded views


def _table(
    fast: Sequence[Sequence[Tensor]],
    grads: Sequence[Sequence[Tensor]],
    after: Sequence[Sequence[Tensor]],
    products: Sequence[Sequence[Tensor]],
) -> Tensor:
    """Addresses as `sgd_kernels` describes them, on the host."""
    rows: list[int] = []
    for (w1, w2, w3), (g13, g2), (n1, n2, n3), (p13, p2) in zip(fast, grads, after, products, strict=True):
        hidden = w1.shape[1]
        g1, g3, p1, p3 = g13[:, :hidden], g13[:, hidden:], p13[:, :hidden], p13[:, hidden:]
        for group in ((g1, w1, n1, p1), (g2, w2, n2, p2), (g3, w3, n3, p3)):
            for matrix in group:
                assert matrix[0].is_contiguous()
                rows += [matrix.data_ptr(), matrix.stride(0)]
            rows += group[0].shape[1:]
    return torch.tensor(rows, dtype=torch.int64)


def _on_device(addresses: Tensor, device: torch.device) -> Tensor:
    """A copy that the host does not wait for."""
    return addresses.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else addresses


def inner_step_triton(
    fast: Sequence[Sequence[Tensor]],
    grads: Sequence[Sequence[Tensor]],
    dtype: torch.dtype,
    rule: str = "sgd",
    rate: float = 1.0,
    clip: float = 1.0,
    rates: Tensor | None = None,
    into: tuple[Sequence[Sequence[Tensor]], Sequence[Sequence[Tensor]]] | None = None,
    table: Tensor | None = None,
) -> Step:
    """`model.inner.inner_step` on a device; METHOD sections 3 and 6.

    fast: (w1, w2, w3) of every block, float32 [batch, rows, columns]; grads: (w13, w2) of every block in any dtype;
    rates float32 [3 * blocks], for w1, w2, w3 of each. Where a document's gradient is not finite, its weights stay.
    `into` are buffers as from `new_buffers`. `table` is room on the device for `Step.addresses`, int64 [TABLE *
    blocks], which the caller fills in before the launches run: a captured graph must not copy from the host.
    """
    after, products = into if into is not None else new_buffers(fast, dtype)
    grads = [tuple(g.contiguous() for g in block) for block in grads]
    first = fast[0][0]
    batch, matrices, weight = first.shape[0], 3 * len(fast), first.dtype
    largest, lines = _largest(fast)
    addresses = _table(fast, grads, after, products)
    table = _on_device(addresses, first.device) if table is None else table

    def room(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=wide(weight), device=first.device)

    rates = torch.ones(matrices, dtype=torch.float32, device=first.device) if rates is None else rates.contiguous()
    balanced = rule == "balanced"
    chunks = triton.cdiv(largest, CHUNK)
    norms, factors = room(batch), room(batch)
    sums = own_sums = room(batch, matrices, chunks)
    balance = room(batch, matrices, 2, lines) if balanced else sums
    grid = (chunks, matrices, batch)
    grad = _POINTED[grads[0][0].dtype]
    shared: dict[str, Any] = {
        "GRAD": grad,
        "CHUNK": CHUNK,
        "BLOCK": BLOCK,
        "ACC": accumulator(weight),
        "num_warps": WARPS,
    }
    squares[grid](table, sums, chunks, balance, lines, BALANCED=False, **shared)
    if balanced:
        tiles = triton.cdiv(lines, ROWS)
        by_column, own_sums = room(batch, matrices, tiles, lines), torch.empty_like(sums)
        squares_by_line[(tiles, matrices, batch)](
            table, balance, by_column, lines,
            GRAD=grad, ROWS=ROWS, COLUMNS=COLUMNS, ACC=shared["ACC"], num_warps=WARPS,
        )  # fmt: skip
        balance_of[(triton.cdiv(lines, LINES), matrices, batch)](
            table, balance, by_column, tiles, lines, BLOCK=LINES, ACC=shared["ACC"], num_warps=WARPS
        )
        squares[grid](table, own_sums, chunks, balance, lines, BALANCED=True, **shared)
    limit = float(clip) if rule == "sgd" else 0.0
    update[grid](
        table, sums, own_sums, norms, factors, chunks, balance, lines, float(rate), rates, limit,
        NORMALIZED=rule != "sgd", BALANCED=balanced, WEIGHT=_POINTED[weight], PRODUCT=_POINTED[dtype], STEP=1024,
        **shared,
    )  # fmt: skip
    return Step(
        [(w1, w2, w3) for w1, w2, w3 in after], [(w13, w2) for w13, w2 in products], norms, factors, table, addresses
    )


def step_direction_triton(
    asked: Sequence[Sequence[Tensor]],
    grads: Sequence[Sequence[Tensor]],
    rule: str,
    rate: float,
    clip: float,
    rates: Tensor,
) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """The gradient for `grads`, in their shapes and dtype, and for `rates` [3 * blocks], given the one for the weights
    that `inner_step_triton` makes with them: `asked`, shaped and typed like the weights. Not for `balanced`."""
    asked = [tuple(w.contiguous() for w in block) for block in asked]
    grads = [tuple(g.contiguous() for g in block) for block in grads]
    rates = rates.contiguous()  # one rate for all matrices of one block comes expanded
    made = [(torch.empty_like(g13), torch.empty_like(g2)) for g13, g2 in grads]
    first, dtype = asked[0][0], grads[0][0].dtype
    batch, matrices = first.shape[0], 3 * len(asked)
    chunks = triton.cdiv(_largest(asked)[0], CHUNK)
    table = _on_device(_table(asked, grads, asked, made), first.device)
    sums, dots = (torch.empty(batch, matrices, chunks, dtype=wide(first.dtype), device=first.device) for _ in range(2))
    of_rates = torch.empty(batch, matrices, dtype=wide(first.dtype), device=first.device)
    grid = (chunks, matrices, batch)
    shared: dict[str, Any] = {
        "GRAD": _POINTED[dtype],
        "WEIGHT": _POINTED[first.dtype],
        "CHUNK": CHUNK,
        "BLOCK": BLOCK,
        "ACC": accumulator(first.dtype),
        "num_warps": WARPS,
    }
    products_along[grid](table, sums, dots, chunks, **shared)
    directions[grid](
        table, sums, dots, of_rates, chunks, float(rate), rates, float(clip) if rule == "sgd" else 0.0,
        NORMALIZED=rule != "sgd", PRODUCT=_POINTED[dtype], STEP=1024, **shared,
    )  # fmt: skip
    return made, of_rates.sum(0)


def _largest(fast: Sequence[Sequence[Tensor]]) -> tuple[int, int]:
    """Elements of the largest matrix, and the largest number of rows or columns."""
    shapes = [w.shape[1:] for block in fast for w in block]
    return max(rows * columns for rows, columns in shapes), max(max(shape) for shape in shapes)


def undo_step(step: Step, accepted: Tensor) -> None:
    """Takes a step back, in place, for documents that are False in `accepted` bool [batch]. The weights of before
    must still be where they were. A program of an accepted document ends at once."""
    w1, (_, p2) = step.fast[0][0], step.products[0]
    grid = (triton.cdiv(_largest(step.fast)[0], CHUNK), 3 * len(step.fast), w1.shape[0])
    undo[grid](
        step.table, accepted.view(torch.uint8),
        WEIGHT=_POINTED[w1.dtype], PRODUCT=_POINTED[p2.dtype], CHUNK=CHUNK, BLOCK=BLOCK, num_warps=WARPS,
    )  # fmt: skip
