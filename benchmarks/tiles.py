"""Which tiles the compiler makes most of, for each attention kernel: no GPU needed.

    python benchmarks/tiles.py second_rows --head-dim 96
    python benchmarks/tiles.py forward_rows --head-dim 64 --rows 128 --keys 64,128 --registers 128

Compiles candidates for sm_90 and reads the machine code of the loops over tiles. For 1,000 scores (elements of the
tile), in cycles of one of a multiprocessor's four schedulers: `issue` is one for every instruction of every warp,
`special` 8 for an exponential, `product` what the tensor cores take at their full rate. The largest is a floor, their
sum what it takes if nothing overlaps; the table is sorted by the sum. `serialized` is ptxas's own warning that it lets
the tensor cores wait after every instruction. What spills is left out. `kernels.py --tiles` times the same on a device.
"""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
from compile_kernels import BIN, attention, compiled, printed, recorded

from ttt_docs.kernels.attention import triton_tiles as attention_launches
from ttt_docs.kernels.attention.triton_tiles import TILES, Tiles
from ttt_docs.kernels.dispatch import MAX_HEAD_DIM

#: Query and key heads of a model with this head dimension.
HEADS = {64: (12, 12), 80: (32, 32), 96: (16, 16)}
#: A multiprocessor's shared memory for one program, bytes.
SHARED = 227 * 1024


@dataclass(frozen=True)
class Loop:
    """Cycles of one scheduler for one tile, by what is waited for."""

    issue: float
    special: float
    product: float


@dataclass(frozen=True)
class Candidate:
    tiles: Tiles
    registers: int
    shared: int
    serialized: bool
    loops: tuple[Loop, ...]

    def per_thousand(self) -> tuple[float, float, float]:
        """issue, special, product. Where loops differ in masks only, the one without counts: it does most tiles."""
        by_products: dict[float, Loop] = {}
        for loop in self.loops:
            best = by_products.get(loop.product)
            if best is None or loop.issue < best.issue:
                by_products[loop.product] = loop
        scale = 1000 / (self.tiles.rows * self.tiles.keys)
        loops = by_products.values()
        return tuple(scale * sum(getattr(loop, part) for loop in loops) for part in ("issue", "special", "product"))  # type: ignore[return-value]


def candidates(kernel: str, head_dim: int, options: argparse.Namespace) -> Iterator[Candidate]:
    heads = HEADS.get(head_dim, (16, 8))
    grid = itertools.product(options.rows, options.keys, options.warps, options.stages, options.registers)
    for tiles in (Tiles(*shape) for shape in grid):
        attention_launches.TILES[kernel] = {MAX_HEAD_DIM: tiles}
        with recorded(90) as launches:
            attention(*heads, head_dim, torch.bfloat16)
        launch = next(x for x in launches if x.kernel.__name__ == kernel)
        try:
            report, binary = compiled("", launch, 90)
        except Exception as problem:  # too much shared memory, or a shape the compiler does not take
            print(f"  {tuple(tiles)}: {str(problem).splitlines()[0][:80]}", flush=True)
            continue
        if report.stack or report.shared > SHARED:
            continue
        loops = tuple(loops_of(_disassembled(binary.asm["cubin"]), tiles.warps))
        yield Candidate(tiles, report.registers, report.shared, report.serialized, loops)


def _disassembled(cubin: bytes) -> str:
    return printed(BIN / "nvdisasm", cubin, "-c")


def loops_of(code: str, warps: int) -> Iterator[Loop]:
    """The loops with products: what lies between a label and a jump back to it."""
    labels: dict[str, int] = {}
    instructions: list[str] = []
    for line in code.splitlines():
        if label := re.match(r"\s*\.(L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif found := re.search(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d+\s+)?([A-Z]\S*)(.*)", line):
            instructions.append(found[1])
            jump = re.search(r"\.(L_x_\d+)", found[2]) if found[1].startswith("BRA") else None
            if jump and jump[1] in labels:
                loop = _loop(instructions[labels[jump[1]] :], warps / 4)
                if loop.product:
                    yield loop


def _loop(instructions: list[str], warps: float) -> Loop:
    product = 0.0
    for name in instructions:
        if warpgroup := re.match(r"HGMMA\.64x(\d+)x16", name):
            product += int(warpgroup[1]) / 2  # 16 rows of a warp by n by 16, at 512 a cycle
        elif name.startswith("HMMA.16816"):
            product += 4
    special = 8 * sum(name.startswith("MUFU") for name in instructions)
    return Loop(len(instructions) * warps, special * warps, product * warps)


def numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernel", choices=sorted(TILES))
    parser.add_argument("--head-dim", type=int, default=96)
    parser.add_argument("--rows", type=numbers, default=[16, 32, 64, 128])
    parser.add_argument("--keys", type=numbers, default=[16, 32, 64, 128])
    parser.add_argument("--warps", type=numbers, default=[4, 8])
    parser.add_argument("--stages", type=numbers, default=[1, 2, 3])
    parser.add_argument("--registers", type=lambda t: [int(n) or None for n in t.split(",")], default=[None])
    parser.add_argument("--top", type=int, default=15)
    options = parser.parse_args()
    shipped = attention_launches.tiles_for(options.kernel, torch.bfloat16, options.head_dim, torch.device("cpu"))
    found = sorted(candidates(options.kernel, options.head_dim, options), key=lambda c: sum(c.per_thousand()))
    print(f"{options.kernel}, head dimension {options.head_dim}, Triton {triton.__version__}\n")
    print("| rows, keys, warps, stages | registers | shared, KiB | issue | special | product | sum | |")
    print("|---|---|---|---|---|---|---|---|")
    for rank, candidate in enumerate(found):
        tiles = candidate.tiles
        if rank >= options.top and tiles != shipped:
            continue
        notes = ["serialized"] * candidate.serialized + ["ships"] * (tiles == shipped)
        shape = ", ".join(str(n) for n in tiles if n is not None)
        parts = candidate.per_thousand()
        print(
            f"| {shape} | {candidate.registers} | {candidate.shared >> 10} | "
            f"{' | '.join(f'{n:.0f}' for n in (*parts, sum(parts)))} | {', '.join(notes)} |"
        )


if __name__ == "__main__":
    main()
