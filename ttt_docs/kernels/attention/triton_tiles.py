"""Tiles of the attention kernels: what each kernel's are, tiles of heads on the device, and which a program visits.

`tl.dot` takes powers of two. A head dimension that is none (80, 96) is not padded to the next one, which would waste up
to half of the matrix units' work. It is cut into two parts that are powers of two (64 + 16, 64 + 32). A tile of heads
[rows, head_dim] is a tuple of its parts, one or two.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ttt_docs.kernels.triton_common import sums_of, widened

LOG2E = tl.constexpr(1.4426950408889634)
#: Triton's interpreter keeps bfloat16 as integers and would multiply those.
_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


class Tiles(NamedTuple):
    """One kernel's shape: query rows and keys of a tile, warps of a program, depth of the software pipeline, and the
    registers of a thread where they are held down (so that two programs fit on a multiprocessor)."""

    rows: int
    keys: int
    warps: int
    stages: int
    registers: int | None = None


_Table = dict[str, dict[int, tuple[int, ...]]]
#: `Tiles` by kernel, for 16-bit operands on compute capability 9: the first entry whose limit is not below the head
#: dimension. Chosen by what the compiler says (benchmarks/compile_kernels.py): the largest without spilled registers.
TILES: _Table = {
    "forward_rows": {64: (128, 64, 8, 3, 128), 96: (128, 128, 8, 2), 128: (128, 32, 8, 2), 256: (64, 32, 8, 2)},
    "backward_rows": {64: (128, 64, 8, 3), 96: (128, 64, 8, 2), 128: (128, 32, 8, 2), 256: (64, 32, 8, 2)},
    "backward_keys": {96: (64, 128, 8, 2), 128: (32, 128, 8, 2), 256: (32, 32, 8, 1)},
    "second_rows": {80: (128, 32, 8, 2), 128: (128, 16, 8, 2), 256: (16, 32, 8, 1)},
    "second_keys": {80: (32, 128, 8, 2), 96: (16, 128, 8, 2), 128: (64, 32, 8, 1), 256: (16, 16, 8, 1)},
}
#: The same on compute capability 8; up to a head dimension of 128 they fit 99 KiB of shared memory.
TILES_8: _Table = {
    "forward_rows": {96: (128, 64, 8, 3), 128: (128, 32, 8, 2), 256: (64, 32, 8, 2)},
    "backward_rows": {128: (128, 32, 8, 2), 256: (64, 32, 8, 2)},
    "backward_keys": {96: (32, 128, 8, 2), 128: (64, 64, 8, 2), 256: (32, 64, 8, 1)},
    "second_rows": {64: (32, 32, 4, 2), 96: (32, 16, 4, 2), 128: (32, 32, 4, 2), 256: (16, 32, 8, 1)},
    "second_keys": {64: (32, 32, 4, 2), 96: (16, 32, 4, 2), 128: (32, 32, 8, 1), 256: (16, 16, 8, 1)},
}
#: Float32, on both, runs without matrix units, for checks more than for speed: small tiles, no pipeline.
WIDE_TILES: _Table = {kernel: {256: (16, 16, 4 if kernel == "backward_rows" else 8, 1)} for kernel in TILES}


@cache
def generation(device: torch.device) -> int:
    """Whose tiles fit: 9 for compute capability 9 and 10, or where there is no device to ask, else 8 (capability 12 has
    less shared memory than either)."""
    return 9 if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] in (9, 10) else 8


def tiles_for(kernel: str, dtype: torch.dtype, head_dim: int, device: torch.device) -> Tiles:
    table = WIDE_TILES
    if dtype.itemsize == 2:
        table = TILES if generation(device) >= 9 else TILES_8
    return Tiles(*next(tiles for limit, tiles in table[kernel].items() if head_dim <= limit))


def launch(
    kernel: Any, tensors: tuple[Tensor | None, ...], window: int, *number: int, over_keys: bool = False, **options: Any
) -> None:
    """Runs a kernel on `tensors`, of which q, k, v are the first. `number` is one size more: of sinks, or, for a kernel
    over tiles of keys, of the first keys, which get no gradient."""
    q, k, v = tensors[:3]
    assert q is not None and k is not None and v is not None
    (batch, heads, new, head_dim), (kv_heads, keys) = q.shape, k.shape[1:3]
    tiles = tiles_for(kernel.fn.__name__, q.dtype, head_dim, q.device)
    grid = triton.cdiv(new, tiles.rows), batch * heads
    if over_keys:
        grid = triton.cdiv(keys - number[0], tiles.keys), batch * kv_heads
    if tiles.registers is not None:
        options["maxnreg"] = tiles.registers
    kernel[grid](
        *tensors, *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], new, keys, window, *number,
        HEADS=heads, GROUP=heads // kv_heads, HEAD=head_dim, ROWS=tiles.rows, KEYS=tiles.keys,
        num_warps=tiles.warps, num_stages=tiles.stages, **options,
    )  # fmt: skip


@triton.constexpr_function
def parts(head_dim):  # type: ignore[no-untyped-def]
    """The widths of a tile's parts; the second is 0 where one part is as good."""
    above = max(16, triton.next_power_of_2(head_dim))
    rest = head_dim - above // 2
    if above == head_dim or above <= 16 or rest > above // 4:
        return above, 0
    return above // 2, max(16, triton.next_power_of_2(rest))


@triton.jit
def dot(a, b, acc):
    """acc + a @ b. Float32 operands are multiplied in float32 ("ieee"), not rounded to tf32 first."""
    if _INTERPRETED and a.dtype == tl.bfloat16:
        result = tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    else:
        result = tl.dot(a, b, acc, input_precision="ieee", out_dtype=acc.dtype)
    return result


@triton.jit
def _load_part(base, rows, stride, limit, FIRST, WIDTH, HEAD, MASKED):
    columns = FIRST + tl.arange(0, WIDTH)
    pointers = base + rows[:, None] * stride + columns[None, :]
    inside = rows[:, None] < limit
    if FIRST + WIDTH > HEAD:  # constants: only one branch is compiled
        part = tl.load(pointers, mask=inside & (columns[None, :] < HEAD), other=0.0)
    elif MASKED:
        part = tl.load(pointers, mask=inside, other=0.0)
    else:
        part = tl.load(pointers)
    return part


@triton.jit
def load_tile(base, rows, stride, limit, HEAD, MASKED: tl.constexpr = True):
    """The tile of `rows` of a matrix [.., HEAD], zeros from row `limit` on (unless MASKED is false)."""
    FIRST: tl.constexpr = parts(HEAD)[0]
    SECOND: tl.constexpr = parts(HEAD)[1]
    first = _load_part(base, rows, stride, limit, 0, FIRST, HEAD, MASKED)
    if SECOND == 0:
        return (first,)
    else:  # (not after it: Triton compiles what follows a return inside `if`)
        return first, _load_part(base, rows, stride, limit, FIRST, SECOND, HEAD, MASKED)


@triton.jit
def zero_tile(ROWS, HEAD, ACC):
    FIRST: tl.constexpr = parts(HEAD)[0]
    SECOND: tl.constexpr = parts(HEAD)[1]
    first = tl.zeros([ROWS, FIRST], dtype=ACC)
    return (first,) if SECOND == 0 else (first, tl.zeros([ROWS, SECOND], dtype=ACC))


@triton.jit
def _store_part(base, rows, stride, limit, part, FIRST, HEAD):
    columns = FIRST + tl.arange(0, part.shape[1])
    inside = (rows[:, None] < limit) & (columns[None, :] < HEAD)
    tl.store(base + rows[:, None] * stride + columns[None, :], part, mask=inside)


@triton.jit
def store_tile(base, rows, stride, limit, tile, HEAD):
    _store_part(base, rows, stride, limit, tile[0], 0, HEAD)
    if len(tile) == 2:
        _store_part(base, rows, stride, limit, tile[1], tile[0].shape[1], HEAD)


@triton.jit
def row_sums(a, b):
    """rowsum(a * b) of two tiles."""
    sums = tl.sum(widened(a[0]) * widened(b[0]), 1)
    if len(a) == 2:
        sums += tl.sum(widened(a[1]) * widened(b[1]), 1)
    return sums


@triton.jit
def add_scores(acc, a, b):
    """acc + a @ b^T of two tiles: a [m, head_dim], b [n, head_dim] -> [m, n]."""
    acc = dot(a[0], tl.trans(b[0]), acc)
    if len(a) == 2:
        acc = dot(a[1], tl.trans(b[1]), acc)
    return acc


@triton.jit
def scores(a, b):
    """a @ b^T of two tiles."""
    return add_scores(tl.zeros([a[0].shape[0], b[0].shape[0]], dtype=sums_of(a[0].dtype)), a, b)


@triton.jit
def accumulate(acc, weights, x):
    """acc + weights @ x: weights [m, n], tile x [n, head_dim] -> tile [m, head_dim]. Weights take x's type."""
    weights = weights.to(x[0].dtype)
    first = dot(weights, x[0], acc[0])
    return (first,) if len(x) == 1 else (first, dot(weights, x[1], acc[1]))


@triton.jit
def head_of(HEADS):
    """Document and head of a program."""
    return (tl.program_id(1) // HEADS).to(tl.int64), (tl.program_id(1) % HEADS).to(tl.int64)


@triton.jit
def visible(i, j, window):
    """Whether positions i see keys j."""
    return (j <= i) & (j > i - window)


@triton.jit
def range_of_rows(first_row, new, keys, window, ROWS, STEP):
    """Keys that the tile of rows sees, [low, high), and inside it the part [left, right) that needs no mask."""
    first = keys - new + first_row
    last = keys - new + tl.minimum(first_row + ROWS, new) - 1
    low = tl.maximum(0, first - window + 1)
    left = low + tl.cdiv(tl.maximum(0, last - window + 1 - low), STEP) * STEP
    right = left + tl.maximum(0, first + 1 - left) // STEP * STEP
    return low, left, right, last + 1


@triton.jit
def range_of_keys(first_key, new, keys, window, KEYS, STEP):
    """Rows [low, high) that see any of a tile's keys; `low` is rounded down to whole tiles."""
    offset = keys - new
    low = tl.maximum(0, first_key - offset) // STEP * STEP
    high = tl.minimum(new, tl.minimum(first_key + KEYS, keys) - 1 + window - offset)
    return low, high
