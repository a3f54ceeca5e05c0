"""Compact memories: made with a model's initial fast weights, and made whole by reading the last tokens once more.

What a compact memory lacks can be rebuilt. The sinks' keys are those of the first tokens under the initial fast
weights, as in the first chunk. The window's keys are those of the last tokens, read again with the final fast weights:
blocks below the first prime MLP get them as they were but for what lay before the tokens read again, the suffix blocks
approximately, since theirs were made with the weights of their time.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ttt_docs.errors import UsageError
from ttt_docs.kernels.inner_step.layout import NAMES
from ttt_docs.memory.memory import Memory
from ttt_docs.memory.packing import packed_bytes
from ttt_docs.model.decoder import Decoder
from ttt_docs.ttt.state import ReadingState
from ttt_docs.weights.lowrank import compress

#: Windows of tokens that are read again: the second one's keys are kept, and all of those saw a window of tokens.
WINDOWS = 2


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
    changes = {
        block: {name: memory.fast[block][name] - start[name] for name in start}
        for block, start in _initial(model).items()
        if memory.fast
    }
    nll = memory.nll.clamp(max=60_000).half().float()  # as the file holds them
    return replace(memory, fast={}, window={}, nll=nll, change=compress(changes, left), index=None)


def state_of_compact(model: Decoder, memory: Memory) -> ReadingState:
    """The state a compact memory was taken from, at its last whole chunk, rebuilt, which takes a while."""
    reading, position = memory.reading, memory.position
    device = model.embed.weight.device
    tokens = memory.tokens[:position].to(device, torch.int64).unsqueeze(0)
    first = ReadingState(model, reading)
    if reading.sinks and position:
        first.run(tokens[:, : reading.sinks])
    sinks = [(c.sink_k, c.sink_v) for c in first.caches if c.sink_k is not None and c.sink_v is not None]
    state = ReadingState(model, reading)
    fast = None
    if memory.change:
        changes = (memory.change[block][name] for block in model.config.suffix for name in NAMES)
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
    for cache, (k, v) in zip(state.caches, sinks, strict=False):
        cache.sink_k, cache.sink_v = k, v
    return state


def _initial(model: Decoder) -> dict[int, dict[str, Tensor]]:
    if not model.config.suffix_blocks:
        return {}
    blocks = zip(model.config.suffix, model.fast_layout.views(model.initial_fast_weights().cpu()), strict=True)
    return {block: {n: w[0] for n, w in zip(NAMES, ws.matrices, strict=True)} for block, ws in blocks}
