"""Choosing the next token from logits."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ttt_docs.errors import naming_the_values

#: Tokens that top-p looks at before it sorts the whole vocabulary, which costs milliseconds.
LIKELY = 256


class Sampling(BaseModel):
    """How to choose tokens, and when to stop. Make one with `sampling_of`, which reports bad values as a UsageError."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: float = Field(0.8, ge=0, allow_inf_nan=False, description="0: always the likeliest token")
    top_p: float = Field(0.95, gt=0, le=1, description="sample among the likeliest tokens of this total probability")
    top_k: int = Field(0, ge=0, description="sample among this many likeliest tokens; 0: no limit")
    repetition_penalty: float = Field(1.1, ge=1, allow_inf_nan=False, description="as in the CTRL paper; 1: none")
    no_repeat_ngram: int = Field(0, ge=0, description="never repeat a run of this many tokens; 0: allowed")
    seed: int = Field(0, ge=0, lt=2**63)
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), description="generation ends before any of these texts"
    )
    max_new_tokens: int = Field(200, ge=1)

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)


def sampling_of(**values: Any) -> Sampling:
    """A `Sampling` with these values. Raises UsageError that names the parameter that is wrong."""
    if isinstance(values.get("stop"), str):
        values["stop"] = (values["stop"],)
    with naming_the_values():
        return Sampling(**values)


class Runs:
    """The runs of `n` tokens that a growing sequence has, so that none of them is repeated."""

    def __init__(self, n: int, tokens: Iterable[int] = ()) -> None:
        self._before: deque[int] = deque(maxlen=n - 1)
        self._after: dict[tuple[int, ...], set[int]] = {}  # n - 1 tokens -> the tokens that came next
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> None:
        if len(self._before) == self._before.maxlen:
            self._after.setdefault(tuple(self._before), set()).add(token)
        self._before.append(token)

    def completions(self) -> list[int]:
        """The tokens that would repeat a run, in order."""
        return sorted(self._after.get(tuple(self._before), ()))


def choose(
    logits: Tensor, recent: Sequence[int], sampling: Sampling, generator: torch.Generator, banned: Sequence[int] = ()
) -> int:
    """The next token after logits [vocab], which are left as they are. It is none of `banned`.

    The repetition penalty counts the tokens in `recent`. The same arguments and generator state give the same token.
    """
    logits = logits.detach().to("cpu", torch.float32, copy=True)
    if sampling.repetition_penalty != 1 and recent:
        # Keskar et al. 2019, section 4.1, as everybody implements it: towards less likely whatever the sign.
        seen = torch.tensor(sorted(set(recent)))
        score, penalty = logits[seen], sampling.repetition_penalty
        logits[seen] = torch.where(score > 0, score / penalty, score * penalty)
    if banned:
        logits[list(banned)] = float("-inf")
    if sampling.temperature == 0:
        return int(logits.argmax())
    likely, ids = _candidates(logits, sampling)
    weights = torch.softmax((likely - likely[0]) / sampling.temperature, dim=0).cumsum(0)
    drawn = torch.rand(1, generator=generator) * weights[-1]
    return int(ids[min(int(torch.searchsorted(weights, drawn, right=True)), len(ids) - 1)])


def _candidates(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """The logits that may be drawn, in descending order, and their ids: top-k first, then top-p among what is left.

    Top-p counts probability at the temperature.
    """
    vocab = logits.numel()
    limit = min(sampling.top_k or vocab, vocab)
    if sampling.top_p == 1:
        return torch.topk(logits, limit)
    values, ids = torch.topk(logits, limit if limit < vocab else min(LIKELY, vocab))
    total = torch.logsumexp((values if limit < vocab else logits) / sampling.temperature, dim=0)
    mass = torch.exp(values / sampling.temperature - total).cumsum(0)
    if limit == vocab and mass[-1] < sampling.top_p:
        values, ids = torch.sort(logits, descending=True)
        mass = torch.exp(values / sampling.temperature - total).cumsum(0)
    keep = int((mass < sampling.top_p).sum()) + 1
    return values[:keep], ids[:keep]
