"""From a state to a memory and back: snapshots, compact memories, and states made again from either.

What a compact memory lacks is rebuilt. The sinks' keys are those of the first tokens under the initial fast weights, as
in the first chunk. The window's keys are those of the last tokens, read again with the final fast weights. The prefix
blocks get the keys that they had, but for the influence of tokens before those. The suffix blocks get similar keys:
when the text was read first, each chunk had its own fast weights.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ttt_docs.errors import UsageError
from ttt_docs.kernels.inner_step.layout import NAMES as FAST_NAMES
from ttt_docs.memory.memory import BlockWeights, Memory, packed_bytes
from ttt_docs.model.config import ModelConfig
from ttt_docs.model.decoder import Decoder
from ttt_docs.ttt.state import ReadingState
from ttt_docs.weights.lowrank import compress

#: Windows of tokens that are read again: the second one's keys are kept, and all of those saw a window of tokens.
WINDOWS = 2


def snapshot(state: ReadingState, row: int = 0) -> tuple[dict[int, BlockWeights], dict[int, tuple[Tensor, Tensor]]]:
    """Fast weights and window of one document, as a memory holds them (on the CPU, independent of the state).

    Raises TTTDocsError for a state that an exception stopped in the middle of a piece of chunks.
    """
    state.check()
    config = state.model.config
    fast: dict[int, BlockWeights] = {}
    if state.reading.learn and state.fast is not None:
        fast = _by_block(state.model, state.fast[row : row + 1].float().cpu())
    window: dict[int, tuple[Tensor, Tensor]] = {}
    for i, cache in enumerate(state.caches):
        if state.position == 0:
            empty = torch.empty(config.kv_heads, 0, config.head_dim, dtype=state.model.dtype)
            window[i] = (empty, empty)
        else:
            k, v = cache.export()
            window[i] = (k[row].cpu(), v[row].cpu())
    return fast, window


def state_of(model: Decoder, memory: Memory) -> ReadingState:
    """The state a memory was taken from, at its last whole chunk; that of a compact one is rebuilt."""
    if memory.change is not None:
        return _state_of_compact(model, memory)
    state = ReadingState(model, memory.reading)
    device = model.embed.weight.device
    fast = None
    if memory.fast:
        matrices = (memory.fast[block][name] for block in model.config.suffix for name in FAST_NAMES)
        fast = model.fast_layout.join(w.unsqueeze(0) for w in matrices).to(device)
    pairs = (memory.window[i] for i in range(model.config.blocks))
    caches = [(k.to(device, model.dtype).unsqueeze(0), v.to(device, model.dtype).unsqueeze(0)) for k, v in pairs]
    state.restore(memory.position, fast, caches)
    return state


def _state_of_compact(model: Decoder, memory: Memory) -> ReadingState:
    """The sinks from the first tokens, the window from the last: that takes as long as reading those."""
    reading, position = memory.reading, memory.position
    device = model.embed.weight.device
    tokens = memory.tokens[:position].to(device, torch.int64).unsqueeze(0)
    first = ReadingState(model, reading)
    if reading.sinks and position:
        first.run(tokens[:, : reading.sinks])
    sinks = [cache.sink_kv for cache in first.caches if cache.sink_kv is not None]
    state = ReadingState(model, reading)
    fast = None
    if memory.change:
        changes = (memory.change[block][name] for block in model.config.suffix for name in FAST_NAMES)
        change = model.fast_layout.join(low.expand().unsqueeze(0) for low in changes)
        fast = model.initial_fast_weights() + change.to(device)
    start = max(0, position - -(-WINDOWS * reading.window // reading.chunk) * reading.chunk)
    if start:
        empty = torch.empty(1, model.config.kv_heads, 0, model.config.head_dim, device=device, dtype=model.dtype)
        state.restore(start, fast, sinks or [(empty, empty)] * model.config.blocks)
    elif fast is not None:
        state.set_fast(fast)
    for begin in range(start, position, reading.chunk):
        state.run(tokens[:, begin : begin + reading.chunk])
    for cache, kv in zip(state.caches, sinks, strict=False):
        cache.sink_kv = kv
    return state


def compact(model: Decoder, memory: Memory, max_bytes: int) -> Memory:
    """`memory` for a file of at most `max_bytes`: without its window, the change of its fast weights rounded to fit.

    Raises UsageError where that is impossible.
    """
    if memory.change is not None:
        raise UsageError("this memory is compact already: compact the exact one again")
    left = max_bytes - packed_bytes(memory)
    if left < 0:
        raise UsageError(
            f"max_bytes={max_bytes:,} is too small: what was read takes {max_bytes - left:,} bytes without anything "
            "that was learned; give more, or leave the text out with memory.with_text(None)"
        )
    initial = _by_block(model, model.initial_fast_weights().cpu()) if memory.fast else {}
    changes = {
        block: {name: memory.fast[block][name] - start[name] for name in start} for block, start in initial.items()
    }
    nll = memory.nll.clamp(max=60_000).half().float()  # as the file holds them
    return replace(memory, fast={}, window={}, nll=nll, change=compress(changes, left), index=None)


def _by_block(model: Decoder, flat: Tensor) -> dict[int, BlockWeights]:
    """flat [1, n] fast weights as a memory holds them (views)."""
    blocks = zip(model.config.suffix, model.fast_layout.views(flat), strict=True)
    return {block: {name: w[0] for name, w in zip(FAST_NAMES, ws.matrices, strict=True)} for block, ws in blocks}


def expand(model: Decoder, memory: Memory) -> Memory:
    """A compact memory with its fast weights and window; any other as it is."""
    if memory.change is None:
        return memory
    fast, window = snapshot(state_of(model, memory))
    return replace(memory, fast=fast, window=window, change=None)


def fits(config: ModelConfig, memory: Memory) -> bool:
    """Whether the shapes of a memory are those of a model, and its tokens in its vocabulary."""
    fast = {(block, name): tuple(w.shape) for block, ws in memory.fast.items() for name, w in ws.items()}
    fast |= {(block, name): tuple(low.shape) for block, ws in (memory.change or {}).items() for name, low in ws.items()}
    wide, high = (config.prime_dim, config.dim), (config.dim, config.prime_dim)
    expected = {(block, name): high if name == "w2" else wide for block in config.suffix for name in FAST_NAMES}
    window = {block: (k.shape[0], k.shape[2]) for block, (k, _) in memory.window.items()}
    return (
        fast in ({}, expected)
        and window in ({}, dict.fromkeys(range(config.blocks), (config.kv_heads, config.head_dim)))
        and (memory.change is not None or memory.position == 0 or bool(window))
        and (memory.tokens.numel() == 0 or int(memory.tokens.max()) < config.vocab_size)
    )
