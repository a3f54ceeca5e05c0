"""The inner step over all fast weights: two launches (five for `balanced`), which the host does not wait for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ttt_docs.kernels.inner_step.definition import Rule, Step, step_direction_reference
from ttt_docs.kernels.inner_step.layout import FastLayout, PrimeWeights
from ttt_docs.kernels.inner_step.triton_kernels import (
    balance_of,
    directions,
    products_along,
    squares,
    squares_by_line,
    undo,
    update,
)
from ttt_docs.kernels.triton_common import accumulator
from ttt_docs.kernels.workspace import wide

#: Elements per program, and per step of its loop.
CHUNK, BLOCK = 1 << 16, 1 << 12
WARPS = 8
#: Rows per program, columns per step of its loop, where rows and columns are summed; lines per program after that.
ROWS, COLUMNS, LINES = 64, 64, 256

_POINTED: dict[torch.dtype, tl.dtype] = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}


class _Launch(NamedTuple):
    """What the kernels of one step share."""

    grads: list[Tensor]
    layout: FastLayout
    grid: tuple[int, int, int]  # chunks of a matrix, matrices, documents
    meta: dict[str, Any]

    @classmethod
    def over(cls, grads: Sequence[PrimeWeights], weights: torch.dtype) -> _Launch:
        layout = FastLayout.of(grads)
        grid = triton.cdiv(layout.matrix, CHUNK), 3 * layout.blocks, len(grads[0].w2)
        meta = {"GRAD": _POINTED[grads[0].w2.dtype], "ACC": accumulator(weights), "num_warps": WARPS}
        return cls([g.contiguous() for block in grads for g in block], layout, grid, meta)

    def addresses(self) -> Tensor:
        """The gradients' addresses, int64 [2 * blocks], on the host."""
        return torch.tensor([g.data_ptr() for g in self.grads], dtype=torch.int64)


def _on_device(addresses: Tensor, device: torch.device) -> Tensor:
    """A copy that the host does not wait for."""
    return addresses.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else addresses


def inner_step_triton(
    fast: Tensor,
    grads: Sequence[PrimeWeights],
    rule: Rule,
    rates: Tensor | None,
    dtype: torch.dtype,
    into: tuple[Tensor, Tensor] | None = None,
    table: Tensor | None = None,
) -> Step:
    """As `inner_step_reference`, but where a document's gradient is not finite, its weights stay.

    `table` is room on the device for `Step.addresses`, int64 [2 * blocks], which the caller fills in before the
    launches run: a captured graph must not copy from the host.
    """
    launch, fast = _Launch.over(grads, fast.dtype), fast.contiguous()  # initial weights are expanded
    layout, grid, device = launch.layout, launch.grid, fast.device
    addresses = launch.addresses()
    table = _on_device(addresses, device) if table is None else table
    (chunks, matrices, batch), lines = grid, max(layout.hidden, layout.dim)
    after, products = into or (torch.empty_like(fast), torch.empty_like(fast, dtype=dtype))

    def room(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=wide(fast.dtype), device=device)

    rates = torch.ones(matrices, dtype=torch.float32, device=device) if rates is None else rates.contiguous()
    balanced = rule.name == "balanced"
    norms, factors = room(batch), room(batch)
    sums = own_sums = room(batch, matrices, chunks)
    balance = room(batch, matrices, 2, lines) if balanced else sums
    sizes = layout.hidden, layout.dim
    shared = launch.meta | {"CHUNK": CHUNK, "BLOCK": BLOCK}
    squares[grid](table, *sizes, sums, chunks, balance, lines, BALANCED=False, **shared)
    if balanced:
        tiles = triton.cdiv(lines, ROWS)
        by_column, own_sums = room(batch, matrices, tiles, lines), torch.empty_like(sums)
        squares_by_line[(tiles, matrices, batch)](
            table, *sizes, balance, by_column, lines, ROWS=ROWS, COLUMNS=COLUMNS, **launch.meta
        )
        balance_of[(triton.cdiv(lines, LINES), matrices, batch)](
            *sizes, balance, by_column, tiles, lines, BLOCK=LINES, ACC=shared["ACC"], num_warps=WARPS
        )
        squares[grid](table, *sizes, own_sums, chunks, balance, lines, BALANCED=True, **shared)
    limit = float(rule.clip) if rule.name == "sgd" else 0.0
    update[grid](
        table, *sizes, fast, after, products, sums, own_sums, norms, factors, chunks, balance, lines,
        float(rule.rate), rates, limit,
        NORMALIZED=rule.name != "sgd", BALANCED=balanced, PRODUCT=_POINTED[dtype], STEP=1024, **shared,
    )  # fmt: skip
    return Step(after, products, norms, factors, fast, addresses)


def step_direction_triton(
    asked: Tensor, grads: Sequence[PrimeWeights], rule: Rule, rates: Tensor
) -> tuple[Tensor, Tensor]:
    """As `step_direction_reference`, which still does `balanced`."""
    if rule.name == "balanced":
        return step_direction_reference(asked, grads, rule, rates)
    launch, asked = _Launch.over(grads, asked.dtype), asked.contiguous()
    made = torch.empty_like(asked, dtype=grads[0].w2.dtype)
    grid, sizes = launch.grid, (launch.layout.hidden, launch.layout.dim)
    chunks, matrices, batch = grid
    shared, table = launch.meta | {"CHUNK": CHUNK, "BLOCK": BLOCK}, _on_device(launch.addresses(), asked.device)

    def room(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=wide(asked.dtype), device=asked.device)

    sums, dots, of_rates = room(batch, matrices, chunks), room(batch, matrices, chunks), room(batch, matrices)
    products_along[grid](table, *sizes, asked, sums, dots, chunks, **shared)
    directions[grid](
        table, *sizes, asked, made, sums, dots, of_rates, chunks, float(rule.rate), rates.contiguous(),
        float(rule.clip) if rule.name == "sgd" else 0.0, NORMALIZED=rule.name != "sgd", STEP=1024, **shared,
    )  # fmt: skip
    return made, of_rates.sum(0).to(rates.dtype)


def undo_step_triton(step: Step, accepted: Tensor) -> Step:
    """As `undo_step_reference`, in place. A program of an accepted document ends at once."""
    batch, n = step.fast.shape
    undo[(triton.cdiv(n, CHUNK), batch)](
        step.before, step.fast, step.products, n, accepted.view(torch.uint8),
        PRODUCT=_POINTED[step.products.dtype], CHUNK=CHUNK, BLOCK=BLOCK, num_warps=WARPS,
    )  # fmt: skip
    return step
