"""What reading does on a GPU besides products and attention: every pass over memory, counted. Needs no GPU.

    python benchmarks/gpu_passes.py                          # 760m and 3b: launches and bytes by operation
    python benchmarks/gpu_passes.py --models smollm2-135m --top 30

Runs a group of prefix chunks and one suffix step, after a full window, on tensors without memory (`meta`) and records
what would be launched: PyTorch's operations and our kernels, which do not run. Bytes are those of an operation's
tensors, each read or written once; the time is bytes over the rate of a large copy, or LAUNCH seconds where that is
more (what stays in the L2 cache takes less). The inner step hides its matrices in a table: its bytes are those of
`gpu_floors.update_bytes`, the only ones that the floor of `gpu_floors.py` counts too.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from gpu_floors import prefill_seconds, update_bytes
from gpu_shared import config_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime.jit import JITFunction

from ttt_docs.kernels.gpu import _with_triton
from ttt_docs.kernels.triton import cross_entropy
from ttt_docs.model.config import ModelConfig, ReadingConfig
from ttt_docs.model.decoder import Decoder
from ttt_docs.model.device import AHEAD, Buffers, _places, device_step, prefix_of_group
from ttt_docs.model.loading import build_decoder
from ttt_docs.model.state import ReadingState

#: The shortest that a kernel of a captured graph takes, seconds.
LAUNCH = 2e-6
PRODUCTS = {"mm", "bmm", "addmm", "addbmm", "baddbmm"}
ATTENTION = {"forward_rows", "backward_rows", "backward_keys"}
STEPS = {"squares", "squares_by_line", "balance_of", "update", "undo"}


@dataclass
class Passes:
    """Launches and bytes by (phase, operation)."""

    launches: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    bytes: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    phase: str = ""

    def add(self, name: str, tensors: list[Tensor]) -> None:
        backward = torch._C._current_autograd_node() is not None
        key = self.phase + (", backward" if backward else ""), name
        self.launches[key] += 1
        self.bytes[key] += sum(_extent(t) for t in {id(t): t for t in tensors}.values())


def _extent(x: Tensor) -> int:
    """Bytes of the distinct elements that a view reaches."""
    count = 1
    for size, stride in zip(x.shape, x.stride(), strict=True):
        count *= size if stride else 1
    return count * x.itemsize


class _Recorder(TorchDispatchMode):
    def __init__(self, passes: Passes) -> None:
        super().__init__()
        self.passes = passes

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if not (function.is_view or name.startswith(("empty", "new_empty", "_unsafe_view", "detach"))):
            outputs = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
            inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
            if name in ("embedding", "index"):  # only the rows that are asked for
                inputs = outputs
            self.passes.add(name, [*inputs, *outputs])
        return result


@contextmanager
def counted(passes: Passes) -> Iterator[None]:
    """Whatever would be launched inside the `with` is added to `passes`; our kernels do not run."""
    genuine, genuine_product = JITFunction.run, cross_entropy._product

    def record(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        passes.add(self.__name__, [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)])

    JITFunction.run, cross_entropy._product = record, _mixed_product
    try:
        with _Recorder(passes):
            yield
    finally:
        JITFunction.run, cross_entropy._product = genuine, genuine_product


def _mixed_product(a: Tensor, b: Tensor) -> Tensor:
    """What a CUDA device does in one operation."""
    return torch.mm(a, b).new_empty(a.shape[0], b.shape[1], dtype=torch.float32)


def model_of(config: ModelConfig) -> Decoder:
    with torch.device("meta"):
        shapes = Decoder(config).state_dict()
    return build_decoder(config, dict(shapes), torch.device("meta"), torch.bfloat16)


def after_a_window(config: ModelConfig, reading: ReadingConfig) -> ReadingState:
    """A state that has filled its window, at the beginning of a group of prefix chunks."""
    model = model_of(config)
    state = ReadingState(model, reading, kernels=_with_triton(flash=False, strict=True))
    group = AHEAD * reading.chunk
    state.position = -(-(reading.window + reading.sinks) // group) * group
    for cache in state.caches:
        capacity = reading.window - 1 + 2 * group
        cache.allocate((1, config.kv_heads, capacity, config.head_dim), model.embed.weight)
        cache.filled = reading.window - 1
        if reading.sinks:
            shape = 1, config.kv_heads, reading.sinks, config.head_dim
            cache.sink_k, cache.sink_v = (model.embed.weight.new_empty(shape) for _ in range(2))
    return state


def passes_of(config: ModelConfig, reading: ReadingConfig) -> Passes:
    """Of one group of prefix chunks and one suffix step."""
    state, passes = after_a_window(config, reading), Passes()
    tokens = torch.empty(1, AHEAD * reading.chunk, dtype=torch.int64, device="meta")
    before = Buffers(state.fast, state.products)
    with counted(passes):
        passes.phase = "prefix"
        with torch.no_grad():
            first = state.position // reading.chunk
            hidden = prefix_of_group(state, tokens, first, first // AHEAD)
        passes.phase = "suffix"
        hidden, targets = hidden[:, : reading.chunk], tokens[:, : reading.chunk]
        (places,) = _places(state, 1)
        device_step(state.model, reading, state.kernels, hidden, targets, places, state.caches, before)
    return passes


@dataclass(frozen=True)
class Row:
    """One operation in one phase, for a chunk."""

    phase: str
    operation: str
    launches: float
    bytes: float

    def seconds(self, copies: float) -> float:
        return max(self.bytes / copies, self.launches * LAUNCH)


def rows_of(config: ModelConfig, reading: ReadingConfig) -> list[Row]:
    passes, rows = passes_of(config, reading), []
    for (phase, operation), launches in passes.launches.items():
        if operation in PRODUCTS | ATTENTION:
            continue
        size: float = passes.bytes[phase, operation]
        if operation in STEPS:
            size = update_bytes(config, reading) * reading.chunk if operation == "update" else 0
        share = AHEAD if phase == "prefix" else 1
        rows.append(Row(phase, operation, launches / share, size / share))
    return rows


def table(rows: list[Row], copies: float, top: int) -> list[str]:
    lines = ["| phase | operation | launches | MiB | microseconds |", "|---|---|---|---|---|"]

    def line(phase: str, operation: str, some: list[Row]) -> str:
        launches, size = sum(r.launches for r in some), sum(r.bytes for r in some) / 2**20
        seconds = sum(r.seconds(copies) for r in some)
        return f"| {phase} | {operation} | {launches:,.1f} | {size:,.1f} | {1e6 * seconds:,.1f} |"

    for phase in dict.fromkeys(r.phase for r in rows):
        own = sorted((r for r in rows if r.phase == phase), key=lambda r: -r.seconds(copies))
        lines += [line(phase, r.operation, [r]) for r in own[:top]]
        if own[top:]:
            lines.append(line(phase, f"{len(own) - top} others", own[top:]))
        lines.append(line(phase, "all", own))
    return [*lines, line("", "sum", rows)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="760m,3b", help="names (default 760m,3b)")
    parser.add_argument("--copies", type=float, default=3.0e12, help="bytes a second, both ways (default 3.0e12)")
    parser.add_argument("--top", type=int, default=8, help="operations shown for each phase (default 8)")
    options = parser.parse_args()
    for name in options.models.split(","):
        config, reading = config_of(name)
        floor = prefill_seconds(
            config, reading, 1 << 17, "ttt", {"product_flops": 790e12, "copy_bytes": options.copies}
        )
        print(f"\n{name}, a chunk of {reading.chunk} tokens (floor at 128K: {1e6 * floor * reading.chunk:,.0f} us)\n")
        print("\n".join(table(rows_of(config, reading), options.copies, options.top)))


if __name__ == "__main__":
    main()
