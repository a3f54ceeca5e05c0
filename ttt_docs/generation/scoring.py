"""How likely texts are after a memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ttt_docs.errors import UsageError
from ttt_docs.generation.together import score_together
from ttt_docs.memory.memory import Memory
from ttt_docs.model.decoder import Decoder
from ttt_docs.reading.restoring import state_of
from ttt_docs.text.tokenizer import Tokenizer
from ttt_docs.ttt.state import ReadingState


def score_texts(model: Decoder, tokenizer: Tokenizer, memory: Memory, texts: Sequence[str]) -> list[float]:
    """Nats per token of each text after the memory and a blank line.

    Raises UsageError for a text that has no tokens.
    """
    encoded = tokenizer.encode_batch(texts)
    for number, tokens in enumerate(encoded, 1):
        if not tokens:
            raise UsageError(f"text {number} is empty: there is nothing to score")
    state = state_of(model, memory) if memory.position else ReadingState(model, memory.reading)
    before: list[int] = [*memory.pending.tolist(), *tokenizer.encode("\n\n")]
    if len(before) > 1:
        state.run(torch.tensor([before[:-1]], device=model.embed.weight.device))
    losses = score_together(state, [before[-1:]] * len(encoded), encoded)
    return [float(one.mean()) for one in losses]
