"""Decoding from a memory: prompt and generated tokens stand after what was read (docs/method.md section 3)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ttt_docs.errors import UsageError
from ttt_docs.generation.sampling import Runs, Sampling, choose
from ttt_docs.memory.memory import Memory
from ttt_docs.model.decode_step import TokenSteps
from ttt_docs.model.decoder import Decoder
from ttt_docs.reading.restoring import state_of
from ttt_docs.ttt.state import ReadingState

#: The newest tokens, which a repetition penalty counts.
RECENT = 256


class Decoding:
    """Tokens after a memory, which itself stays as it is.

    `base` is the state at the border of the last whole chunk, `tail` the tokens since. With `learn`, a full chunk of
    them, prompt or generated, makes one update, exactly as if it had been read.
    """

    def __init__(self, model: Decoder, memory: Memory, learn: bool = True) -> None:
        self.base = state_of(model, memory) if memory.position else ReadingState(model, memory.reading)
        self.learn = learn and memory.reading.learn
        self.tail: list[int] = memory.pending.tolist()
        self.updates = 0
        self.logits: Tensor | None = None  # [vocab] of the token after the last one, once there is one
        self._single: TokenSteps | None = None

    def feed(self, tokens: Sequence[int] = ()) -> Tensor:
        """Puts `tokens` after what is there and returns the logits [vocab] of the next one."""
        self.tail.extend(tokens)
        if not self.tail:
            raise UsageError("this memory is empty: read a document first")
        self._read_full_chunks()
        live = self.base.copy()
        hidden = live.run(self._tensor(self.tail))[:, -1:]
        with torch.no_grad():
            self.logits = live.model.logits(hidden, live.kernels)[0, 0]
        self._single = TokenSteps(live.model, live.caches, live.views, [live.position])
        return self.logits

    def step(self, token: int) -> Tensor:
        """Adds one token and returns the logits [vocab] of the next."""
        full = self.learn and len(self.tail) >= self.base.reading.chunk
        if self._single is None or full:
            return self.feed([token])
        self.tail.append(token)
        self.logits = self._single.step([token])[0]
        return self.logits

    def _read_full_chunks(self) -> None:
        chunk = self.base.reading.chunk
        while self.learn and len(self.tail) > chunk:
            for result in self.base.read(self._tensor(self.tail[: chunk + 1])):
                self.updates += int(not bool(result.skipped[0]))
            del self.tail[:chunk]

    def _tensor(self, tokens: Sequence[int]) -> Tensor:
        return torch.tensor([tokens], dtype=torch.int64, device=self.base.model.embed.weight.device)


def generate(decoding: Decoding, prompt: Sequence[int], sampling: Sampling, ends: frozenset[int]) -> Iterator[int]:
    """Tokens after `prompt`, at most `sampling.max_new_tokens`; one of `ends` ends them and is not given out.

    The repetition penalty counts the last `RECENT` tokens, the prompt's or without a prompt the document's among them.
    `no_repeat_ngram` counts those, and all that was generated since.
    """
    generator = sampling.generator()
    logits = decoding.feed(prompt) if prompt or decoding.logits is None else decoding.logits
    recent = deque((prompt or decoding.tail)[-RECENT:], maxlen=RECENT)
    runs = Runs(sampling.no_repeat_ngram, recent) if sampling.no_repeat_ngram else None
    for count in range(sampling.max_new_tokens):
        token = choose(logits, recent, sampling, generator, runs.completions() if runs else ())
        if token in ends:
            return
        yield token
        recent.append(token)
        if runs:
            runs.add(token)
        if count + 1 < sampling.max_new_tokens:
            logits = decoding.step(token)
