"""What reading does on a GPU besides products and attention: every pass over memory, counted. Needs no GPU.

    python benchmarks/gpu_passes.py                          # 760m and 3b: launches and bytes by operation
    python benchmarks/gpu_passes.py --models 125m --top 30

Runs a group of prefix chunks and one suffix step, after a full window, on tensors without memory (`meta`) and records
what would be launched: PyTorch's operations and our kernels, whose launches are not run. Bytes are those of an
operation's tensors, each read or written once; the time is bytes over the rate of a large copy, or LAUNCH seconds where
that is more. Inner steps hide their matrices in a table: their bytes are `gpu_floors.update_bytes`.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from gpu_floors import update_bytes
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
    genuine, genuine_product = JITFunction.run, cross_entropy._product

    def record(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        passes.add(self.__name__, [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)])

    JITFunction.run, cross_entropy._product = record, mixed_product
    try:
        with _Recorder(passes):
            yield
    finally:
        JITFunction.run, cross_entropy._product = genuine, genuine_product


def mixed_product(a: Tensor, b: Tensor) -> Tensor:
    """What a CUDA device does in one operation."""
    return torch.mm(a, b).new_empty(a.shape[0], b.shape[1], dtype=torch.float32)


def model_of(config: ModelConfig) -> Decoder:
    with torch.device("meta"):
        shapes = Decoder(config).state_dict()
    return build_decoder(config, dict(shapes), torch.device("meta"), torch.bfloat16)


def after_a_window(model: Decoder, reading: ReadingConfig) -> ReadingState:
    state = ReadingState(model, reading, kernels=_with_triton(flash=False, strict=True))
    state.position = -(-(reading.window + reading.sinks) // (AHEAD * reading.chunk)) * AHEAD * reading.chunk
    config, like = model.config, model.embed.weight
    for cache in state.caches:
        cache.allocate((1, config.kv_heads, reading.window - 1 + 2 * AHEAD * reading.chunk, config.head_dim), like)
        cache.filled = reading.window - 1
        if reading.sinks:
            sinks = like.new_empty(1, config.kv_heads, reading.sinks, config.head_dim)
            cache.sink_k, cache.sink_v = sinks, sinks
    return state


def passes_of(config: ModelConfig, reading: ReadingConfig) -> Passes:
    state, passes = after_a_window(model_of(config), reading), Passes()
    tokens = torch.empty(1, AHEAD * reading.chunk, dtype=torch.int64, device="meta")
    group = state.position // reading.chunk // AHEAD
    _ = state.products
    with counted(passes):
        passes.phase = "prefix"
        with torch.no_grad():
            hidden = prefix_of_group(state, tokens, group * AHEAD, group)
        passes.phase = "suffix"
        before = Buffers(state.fast, state.products)
        places = _places(state, state.position)
        chunk = slice(0, reading.chunk)
        device_step(model_ := state.model, reading, state.kernels, hidden[:, chunk], tokens[:, chunk], places, state.caches, before)
    return passes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="760m,3b")
    parser.add_argument("--copies", type=float, default=3.0e12, help="bytes a second, both ways (default 3.0e12)")
    parser.add_argument("--top", type=int, default=12, help="operations shown for each phase")
    options = parser.parse_args()
    for name in options.models.split(","):
        config, reading = config_of(name)
        passes = passes_of(config, reading)
        print(f"\n{name}: a chunk of {reading.chunk} tokens\n\n| phase | operation | launches | MiB | microseconds |\n|---|---|---|---|---|")
        total = 0.0
        for phase in sorted({p for p, _ in passes.launches}):
            rows = []
            for (p, operation), launches in passes.launches.items():
                if p != phase or operation in PRODUCTS | ATTENTION:
                    continue
                size, count = passes.bytes[p, operation], launches
                if operation in STEPS:
                    size = update_bytes(config, reading) * reading.chunk if operation == "update" else 0
                if phase.startswith("prefix"):
                    size, count = size / AHEAD, count / AHEAD
                rows.append((max(size / options.copies, count * LAUNCH), operation, count, size))
            rows.sort(reverse=True)
            total += sum(r[0] for r in rows)
            for seconds, operation, count, size in rows[:options.top]:
                print(f"| {phase} | {operation} | {count:,.1f} | {size / 2**20:,.1f} | {1e6 * seconds:,.1f} |")
            print(f"| {phase} | all | {sum(r[2] for r in rows):,.1f} | {sum(r[3] for r in rows) / 2**20:,.1f} | {1e6 * sum(r[0] for r in rows):,.1f} |")
        print(f"| | sum | | | {1e6 * total:,.1f} |")


if __name__ == "__main__":
    main()
