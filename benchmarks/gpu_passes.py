"""What reading or training does on a GPU besides attention: products and passes over memory, counted. Needs no GPU.

    python benchmarks/gpu_passes.py                          # reading with 760m and 3b: by operation
    python benchmarks/gpu_passes.py --training 8192 --models 760m --top 30

Runs a group of prefix chunks and one suffix step, after a full window, or the gradient of the outer loss of a sequence,
on tensors without memory (`meta`), and records what would be launched: PyTorch's operations and our kernels, which do
not run. Bytes are those of an operation's tensors, each read or written once; the time is bytes over the rate of a
large copy, or LAUNCH seconds where that is more (what stays in the L2 cache takes less). Products are operations over
the rate of a large one. All figures are for a chunk. Training ends with the sums, attention included, of both steps
that `gpu_train.py` times. `gpu_floors.py` counts what no program can do without: products, attention and, of the
passes, the inner step's.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from gpu_floors import block_weights, keys_seen, plain_config, prefill_seconds, training_operations
from gpu_shared import config_of, with_full_attention
from gpu_train import full_step
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime.jit import JITFunction

from ttt_docs.kernels.cross_entropy import triton as cross_entropy
from ttt_docs.kernels.dispatch import TritonKernels
from ttt_docs.model.config import ModelConfig, ReadingConfig
from ttt_docs.model.decoder import Decoder
from ttt_docs.ttt.inner_loop import learn_chunk
from ttt_docs.ttt.outer_loop import Recompute, outer_loss
from ttt_docs.ttt.prefix import run_group
from ttt_docs.ttt.state import AHEAD, ReadingState
from ttt_docs.weights.loading import build_decoder

#: The shortest that a kernel of a captured graph takes, seconds.
LAUNCH = 2e-6
ATTENTION = {"forward_rows", "backward_rows", "backward_keys", "second_rows", "second_keys"}
#: Bytes per fast weight of kernels that hide their matrices in a table.
HIDDEN = {
    "squares": 2, "squares_by_line": 2, "balance_of": 0, "update": 12, "undo": 0, "products_along": 6, "directions": 8,
}  # fmt: skip


@dataclass
class Passes:
    """Launches and bytes by (phase, operation), and the operations of products by phase."""

    fast: int  # weights
    products: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    launches: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    bytes: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    phase: str = ""

    def add(self, name: str, tensors: list[Tensor]) -> None:
        if name in ATTENTION:
            return
        key = self.here(), name
        self.launches[key] += 1
        self.bytes[key] += sum(_extent(t) for t in {id(t): t for t in tensors}.values())
        self.bytes[key] += HIDDEN.get(name, 0) * self.fast

    def here(self) -> str:
        backward = torch._C._current_autograd_node() is not None
        return self.phase + (", backward" if backward else "")

    def product(self, rows: int, depth: int, columns: int, count: int = 1) -> None:
        self.products[self.here()] += 2.0 * rows * depth * columns * count


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
        if name in ("mm", "bmm", "addmm"):
            left, right = args[-2:]
            self.passes.product(left.shape[-2], left.shape[-1], right.shape[-1], left.shape[:-2].numel())
            return result
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

    def product(a: Tensor, b: Tensor) -> Tensor:
        """What a CUDA device does in one operation."""
        passes.product(*a.shape, b.shape[1])
        return a.new_empty(a.shape[0], b.shape[1], dtype=torch.float32)

    JITFunction.run, cross_entropy._product = record, product
    try:
        with _Recorder(passes):
            yield
    finally:
        JITFunction.run, cross_entropy._product = genuine, genuine_product


def model_of(config: ModelConfig) -> Decoder:
    with torch.device("meta"):
        shapes = Decoder(config).state_dict()
    return build_decoder(config, dict(shapes), torch.device("meta"), torch.bfloat16)


def after_a_window(config: ModelConfig, reading: ReadingConfig) -> ReadingState:
    """A state that has filled its window, at the beginning of a group of prefix chunks."""
    model = model_of(config)
    state = ReadingState(model, reading, kernels=TritonKernels(strict=True))
    group = AHEAD * reading.chunk
    state.position = state._prefix_end = -(-(reading.window + reading.sinks) // group) * group
    for cache in state.caches:
        capacity = reading.window - 1 + 2 * group
        cache.allocate((1, config.kv_heads, capacity, config.head_dim), model.embed.weight)
        cache.filled = reading.window - 1
        if reading.sinks:
            shape = 1, config.kv_heads, reading.sinks, config.head_dim
            cache.sink_kv = model.embed.weight.new_empty(shape), model.embed.weight.new_empty(shape)
    return state


def fast_weights(config: ModelConfig) -> int:
    return config.suffix_blocks * block_weights(config)["prime"]


def reading_passes(config: ModelConfig, reading: ReadingConfig) -> Passes:
    """Of one group of prefix chunks and one suffix step."""
    state, passes = after_a_window(config, reading), Passes(fast_weights(config))
    tokens = torch.empty(1, AHEAD * reading.chunk, dtype=torch.int64, device="meta")
    before = state.weights
    assert before is not None
    with counted(passes):
        passes.phase = "prefix"
        with torch.no_grad():
            first = state.position // reading.chunk
            hidden = run_group(state.loop, state.caches, tokens, first, AHEAD)
        passes.phase = "suffix"
        hidden, targets = hidden[:, : reading.chunk], tokens[:, : reading.chunk]
        (positions,) = state._chunk_positions(1)
        learn_chunk(state.loop, hidden, targets, positions, state.caches, before)
    return passes


def training_passes(
    config: ModelConfig, reading: ReadingConfig, length: int, batch: int, recompute: Recompute
) -> Passes:
    """Of the outer loss of sequences and its gradient for all parameters."""
    passes = Passes(batch * fast_weights(config))
    model = model_of(config).requires_grad_(True)
    kernels = TritonKernels(strict=True)
    tokens = torch.empty(batch, length + 1, dtype=torch.int64, device="meta")
    with counted(passes):
        passes.phase = "step"
        outer_loss(model, tokens, reading, mode="meta", kernels=kernels, recompute=recompute).loss.backward()
    return passes


def full_attention_passes(config: ModelConfig, length: int, batch: int, recompute: bool) -> Passes:
    """Of an ordinary step of the plain transformer of the same size, its attention left out."""
    passes, model = Passes(0), model_of(config).requires_grad_(True)
    kernels = with_full_attention(TritonKernels(strict=True), _NoAttention.apply)
    tokens = torch.empty(batch, length + 1, dtype=torch.int64, device="meta")
    with counted(passes):
        passes.phase = "step"
        full_step(model, tokens, kernels, recompute)
    return passes


class _NoAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # type: ignore[override]
        ctx.inputs = q, k, v
        return torch.empty_like(q)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return tuple(torch.empty_like(x) for x in ctx.inputs)


def attention_operations(config: ModelConfig, reading: ReadingConfig, length: int, recompute: Recompute) -> float:
    """Per token of a meta step, as our kernels do it: products of the scores' size are 2 forward, 3 backward for
    queries and 4 for keys, 13 and 8 twice. A chunk of the suffix is read once (gradient for its own keys only), then
    again with the gradient, and the gradient of that, for all keys."""
    product = 2 * keys_seen(length, reading.window) * config.heads * config.head_dim
    own = 2 * reading.chunk / 2 * config.heads * config.head_dim
    whole = (config.prefix_blocks + 1) * (9 if recompute == "suffix" else 11) * product
    return whole + (config.suffix_blocks - 1) * (5 * product + 4 * own + (9 + 7 + 21) * product)


def full_attention_operations(config: ModelConfig, length: int, recompute: bool) -> float:
    """Per token of an ordinary step: 2 products forward, 5 backward, as the best do it."""
    return config.blocks * (9 if recompute else 7) * 2 * keys_seen(length, None) * config.heads * config.head_dim


@dataclass(frozen=True)
class Row:
    """One operation in one phase, for a chunk."""

    phase: str
    operation: str
    launches: float
    bytes: float

    def seconds(self, copies: float) -> float:
        return max(self.bytes / copies, self.launches * LAUNCH)


def rows_of(passes: Passes, chunks: dict[str, int]) -> list[Row]:
    """`chunks`: how many a phase was for."""
    return [
        Row(phase, operation, launches / chunks[phase], passes.bytes[phase, operation] / chunks[phase])
        for (phase, operation), launches in passes.launches.items()
    ]


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


def compare_steps(name: str, passes: Passes, options: argparse.Namespace) -> None:
    """Sums for a chunk's worth of tokens: products, attention and passes of a meta step and of an ordinary one."""
    length, batch, again = options.training, options.batch, options.recompute != "suffix"
    (config, reading), plain = config_of(name), plain_config(name)
    chunks = batch * length // reading.chunk
    steps = {
        "meta": (passes, attention_operations(config, reading, length, options.recompute)),
        "full": (full_attention_passes(plain, length, batch, again), full_attention_operations(plain, length, again)),
    }
    totals = []
    for step, (counts, attention) in steps.items():
        rows = rows_of(counts, dict.fromkeys(("step", "step, backward"), chunks))
        parts = [
            sum(counts.products.values()) / chunks / options.products,
            attention * reading.chunk / options.products,
            sum(row.seconds(options.copies) for row in rows),
        ]
        totals.append(sum(parts))
        print(f"{step}: products, attention and passes {' + '.join(f'{1e3 * s:.2f}' for s in parts)}", end="")
        print(f" = {1e3 * totals[-1]:.2f} ms")
    print(f"{name}, {batch} x {length:,} tokens, meta over full: {totals[0] / totals[1]:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="760m,3b", help="names (default 760m,3b)")
    parser.add_argument("--copies", type=float, default=3.0e12, help="bytes a second, both ways (default 3.0e12)")
    parser.add_argument("--top", type=int, default=8, help="operations shown for each phase (default 8)")
    parser.add_argument("--products", type=float, default=790e12, help="operations a second (default 790e12)")
    parser.add_argument("--training", type=int, metavar="TOKENS", help="the gradient of a sequence instead of reading")
    parser.add_argument("--recompute", choices=("chunks", "suffix", "logarithmic"), default="suffix")
    parser.add_argument("--batch", type=int, default=1, help="sequences of a training step (default 1)")
    options = parser.parse_args()
    rates = {"product_flops": options.products, "copy_bytes": options.copies}
    for name in options.models.split(","):
        config, reading = config_of(name)
        if options.training:
            passes = training_passes(config, reading, options.training, options.batch, options.recompute)
            count = options.batch * options.training // reading.chunk
            chunks = {"step": count, "step, backward": count}
            floor = training_operations(config, reading.window, options.training) / options.products
        else:
            passes, chunks = reading_passes(config, reading), {"prefix": AHEAD, "suffix": 1, "suffix, backward": 1}
            floor = prefill_seconds(config, reading, 1 << 17, "ttt", rates)
        products = sum(n / chunks[phase] for phase, n in passes.products.items()) / options.products
        print(f"\n{name}, a chunk of {reading.chunk} tokens: floor {1e6 * floor * reading.chunk:,.0f} us, ", end="")
        print(f"products without attention {1e6 * products:,.0f} us\n")
        print("\n".join(table(rows_of(passes, chunks), options.copies, options.top)))
        if options.training:
            print()
            compare_steps(name, passes, options)


if __name__ == "__main__":
    main()
