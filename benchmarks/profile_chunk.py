"""Where the time of one chunk goes, and the least it could take: the part of `ingest.py` behind --profile."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from ttt_docs.kernels.dispatch import kernels_for
from ttt_docs.model.config import ModelConfig, ReadingConfig
from ttt_docs.model.decoder import Decoder
from ttt_docs.ttt import inner_loop
from ttt_docs.ttt.inner_loop import GUARD_TOKENS
from ttt_docs.ttt.state import ReadingState

#: Name of a scope -> the group its time counts to. Outer scopes win: attention inside the guard is part of the update.
SCOPES = {
    "ttt: update": "update",
    "ttt: attention": "attention forward",
    "_WindowAttentionCPUBackward": "attention backward",
    "_WindowAttentionNativeBackward": "attention backward",
    "ttt: SwiGLU": "SwiGLU",
    "_SwiGLUCPUBackward": "SwiGLU",
    "_SwiGLUNativeBackward": "SwiGLU",
    "ttt: norm": "element-wise",
    "_RMSNormCPUBackward": "element-wise",
    "_RMSNormNativeBackward": "element-wise",
    "ttt: loss": "loss head",
    "_LinearCrossEntropyCPUBackward": "loss head",
    "_LinearCrossEntropyNativeBackward": "loss head",
}
PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::linear", "aten::matmul", "aten::_mkldnn"}
GROUPS = (
    "attention forward", "attention backward", "SwiGLU", "loss head", "other products", "element-wise", "update",
    "rest",
)  # fmt: skip


def scoped(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any, **named: Any) -> Any:
        with record_function(name):
            return function(*arguments, **named)

    return run


@contextmanager
def update_scopes() -> Iterator[None]:
    """Marks the guard as `update`, as the inner step with the copies for the products is."""
    genuine = inner_loop.loss_again
    inner_loop.loss_again = scoped("ttt: update", genuine)
    try:
        yield
    finally:
        inner_loop.loss_again = genuine


def group_of(event: Any) -> str:
    group, parent = None, event
    while parent is not None:
        for scope, name in SCOPES.items():
            if scope in parent.name:
                group = name  # the outermost so far
        parent = parent.cpu_parent
    if group is not None:
        return group
    if event.name in PRODUCTS:
        return "other products"
    return "element-wise" if event.name.startswith("aten::") else "rest"


def chunk_flops(config: ModelConfig, reading: ReadingConfig) -> int:
    """Floating-point operations of all products that reading one chunk needs, once the window is full.

    Forward through all blocks and the head; backward from the loss to the first prime MLP: for the input of every
    product above it, and for the weights of the prime MLPs. No gradient for frozen weights, cached keys and values.
    """
    tokens, blocks, suffix = reading.chunk, config.blocks, config.suffix_blocks
    width = config.heads * config.head_dim
    projections = 2 * config.dim * (2 * width + 2 * config.kv_heads * config.head_dim)  # per token, as all below
    mlp, prime = 6 * config.dim * config.mlp_dim, 6 * config.dim * config.prime_dim
    keys = reading.window + reading.sinks
    scores = 2 * width * keys  # one product of queries and keys; weights and values cost the same
    head = 2 * config.dim * config.vocab_size
    forward = blocks * (projections + mlp + 2 * scores) + suffix * prime + head
    guard = 0.0
    if reading.guard is not None:
        again = min(GUARD_TOKENS, tokens) / tokens
        guard = again * (suffix * (projections + mlp + prime + 2 * scores) + head)
    if not (reading.learn and suffix):
        return round(tokens * forward)
    own = scores / keys * (tokens + 1) / 2  # a query sees half of its own chunk's keys on average: theirs get gradient
    attention = 3 * scores + 2 * own  # scores again, dP, dQ; dK and dV
    first_input = prime * 2 / 3  # nothing below the first prime MLP needs gradient: not the input of its w1, w3
    backward = (suffix - 1) * (projections + attention) + suffix * (mlp + 2 * prime) - first_input + head
    return round(tokens * (forward + backward + guard))


def product_rate(dtype: torch.dtype) -> float:
    """Operations per second of a [2048, 576] by [576, 1536] product: the median of a second's worth."""
    a, b = torch.randn(2048, 576).to(dtype), torch.randn(1536, 576).to(dtype)
    seconds: list[float] = []
    with torch.no_grad():
        for _ in range(20):
            torch.nn.functional.linear(a, b)
        while sum(seconds) < 1:
            began = time.perf_counter()
            torch.nn.functional.linear(a, b)
            seconds.append(time.perf_counter() - began)
    return 2 * 2048 * 576 * 1536 / statistics.median(seconds)


def profile_chunks(model: Decoder, reading: ReadingConfig, tokens: Tensor, warm: int, chunks: int) -> dict[str, Any]:
    """Milliseconds per chunk by group, of `chunks` chunks after `warm` others; tokens [1, (warm + chunks) * chunk + 1].

    The same chunks are read twice, without and with the profiler, as it makes every operation a little slower.
    """
    plain = ReadingState(model, reading)
    seconds = [result.seconds for result in plain.read_whole(tokens)][warm:]
    genuine = kernels_for(torch.device("cpu"))
    kernels = genuine.replace(
        window_attention=scoped("ttt: attention", genuine.window_attention),
        swiglu=scoped("ttt: SwiGLU", genuine.swiglu),
        inner_step=scoped("ttt: update", genuine.inner_step),
        undo_step=scoped("ttt: update", genuine.undo_step),
        rms_norm=scoped("ttt: norm", genuine.rms_norm),
        linear_cross_entropy=scoped("ttt: loss", genuine.linear_cross_entropy),
    )
    state = ReadingState(model, reading, kernels=kernels)
    edge = warm * reading.chunk
    for _ in state.read_whole(tokens[:, : edge + 1]):
        pass
    with update_scopes(), profile(activities=[ProfilerActivity.CPU]) as profiler:
        began = time.perf_counter()
        for _ in state.read_whole(tokens):
            pass
        profiled = time.perf_counter() - began
    spent = dict.fromkeys(GROUPS, 0.0)
    for event in profiler.events():
        spent[group_of(event)] += event.self_cpu_time_total / 1e3 / chunks
    spent["rest"] += profiled * 1e3 / chunks - sum(spent.values())  # between operations: Python, autograd
    flops, rate = chunk_flops(model.config, reading), product_rate(model.dtype)
    return {
        "chunks": chunks,
        "chunk_ms": statistics.median(seconds) * 1e3,
        "chunk_ms_profiled": profiled * 1e3 / chunks,
        "groups_ms": spent,
        "gflop_per_chunk": flops / 1e9,
        "product_tflops": rate / 1e12,
        "floor_ms": flops / rate * 1e3,
        "share_of_floor": flops / rate / statistics.median(seconds),
    }
