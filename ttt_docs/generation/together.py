"""Many sequences in one batch, all after the same state: written or scored, each as if it were alone.

The state is that of one document, or a new one, after which every sequence is read with full attention up to the
window. At a few tokens a product takes as long as its weights take to come from memory, so sixteen sequences cost
little more than one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ttt_docs.errors import UsageError
from ttt_docs.generation.decoding import RECENT
from ttt_docs.generation.sampling import Runs, Sampling, choose
from ttt_docs.kernels.inner_step.layout import PrimeWeights
from ttt_docs.model.cache import LayerCache
from ttt_docs.model.config import ReadingConfig
from ttt_docs.model.decode_step import TokenSteps
from ttt_docs.model.decoder import Decoder
from ttt_docs.ttt.state import ReadingState

#: Sequences in one batch, and tokens of their prompts (padding counted), at most.
SEQUENCES, TOKENS = 16, 8192


class Written(NamedTuple):
    """A sequence that was generated; the token that ended it is not among its tokens."""

    tokens: list[int]
    logprobs: list[float]  # natural, of each of the tokens, and of the one that ended it where there is one
    ended: bool  # False where `max_new_tokens` cut it
    silent: float  # probability of an end before any token


def base_state(model: Decoder, batch: int = 1, tokens: int | None = None) -> ReadingState:
    """A fresh state with full attention over so many tokens (the model's trained length).

    The fast weights of a retrofit are left out: they were added to the base model. A model that was trained with them
    keeps their initial values, since it is none without.
    """
    longest = min(tokens or model.config.max_positions, model.config.max_positions)
    state = ReadingState(model, ReadingConfig(chunk=longest, window=longest, learn=False), batch)
    if not model.config.prime_norm:
        state.set_fast(None)
    return state


def groups(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices of sequences for one batch each: of similar lengths, longest first."""
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if group and (len(group) == SEQUENCES or lengths[group[0]] * (len(group) + 1) > TOKENS):
            yield group
            group = []
        group.append(index)
    if group:
        yield group


@torch.no_grad()
def read_together(state: ReadingState, prompts: Sequence[Sequence[int]]) -> tuple[list[LayerCache], Tensor]:
    """Reads each prompt after the state, which stays as it is.

    Returns caches of the batch and hidden states [prompts, longest, dim], with padding after the shorter ones.

    Raises UsageError for a prompt that is empty.
    """
    if not all(prompts):
        raise UsageError("a prompt is empty: give some text")
    model, reading = state.model, state.reading
    longest = max(map(len, prompts))
    ids = torch.stack([F.pad(torch.tensor(list(p)), (0, longest - len(p))) for p in prompts])
    caches = [cache.copy(len(prompts)) for cache in state.caches]
    positions = model.positions(state.position, longest, reading.window, reading.sinks)
    every, x = range(model.config.blocks), model.hidden(ids.to(model.embed.weight.device))
    return caches, model.run(x, every, positions, caches, _shared(state), state.kernels)


def _shared(state: ReadingState) -> list[PrimeWeights] | None:
    """The fast weights of the state's document, for any number of sequences."""
    views = state.views
    return None if views is None else [PrimeWeights(w.w13[0], w.w2[0]) for w in views]


class Spans(Protocol):
    """What a sequence may say: runs of words of a text."""

    def after(self, tokens: Sequence[int]) -> tuple[list[int], bool]:
        """The tokens that may follow `tokens`, and whether the sequence may end there."""
        ...


def write_together(
    state: ReadingState,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    ends: frozenset[int],
    silent: float = 0.0,
    within: Sequence[Spans] | None = None,
) -> list[Written]:
    """What is generated after each prompt, at most `sampling.max_new_tokens` tokens, up to one of `ends`. Sequence i
    draws with the seed `sampling.seed + i`.

    With `silent`, a sequence has a token at least, unless an end at once is likelier than that. With `within`, as much
    is written again after all prompts, and the second time sequence i says nothing but what `within[i]` allows.

    Raises UsageError for a prompt that is empty, or does not fit the window with its reply.
    """
    if max(map(len, prompts), default=0) + sampling.max_new_tokens > state.reading.window:
        raise UsageError(f"a prompt and its reply do not fit the window of {state.reading.window} tokens")
    written: dict[int, Written] = {}
    for group in groups([len(prompt) for prompt in prompts]):
        rows = [_Row(index, sampling) for index in group]
        rows += [_Row(len(prompts) + index, sampling, within[index]) for index in group] if within else []
        caches, hidden = read_together(state, [prompts[index] for index in group])
        last = hidden[torch.arange(len(group)), torch.tensor([len(prompts[index]) - 1 for index in group])]
        with torch.no_grad():
            logits = state.model.logits(last[:, None], state.kernels)[:, 0]
        steps = TokenSteps(state.model, caches, state.views, [state.position + len(prompts[i]) for i in group])
        del caches, hidden
        if within:
            steps, logits = steps.of([*range(len(group))] * 2), logits.repeat(2, 1)
        while rows:
            going = [i for i, row in enumerate(rows) if row.add(logits[i], ends, silent)]
            written.update({row.index: row.written for i, row in enumerate(rows) if i not in set(going)})
            if not going:
                break
            if len(going) < len(rows):
                rows, steps = [rows[i] for i in going], steps.of(going)
            logits = steps.step([row.written.tokens[-1] for row in rows])
    return [written[index] for index in range(len(written))]


class _Row:
    """One sequence being written."""

    def __init__(self, index: int, sampling: Sampling, within: Spans | None = None) -> None:
        self.index, self.sampling, self.within = index, sampling, within
        self.written = Written([], [], False, 0.0)
        self.generator = torch.Generator().manual_seed(sampling.seed + index)
        self.recent: deque[int] = deque(maxlen=RECENT)  # of the reply alone: names of the prompt are to be repeated
        self.runs = Runs(sampling.no_repeat_ngram) if sampling.no_repeat_ngram else None

    def add(self, logits: Tensor, ends: frozenset[int], silent: float) -> bool:
        """Chooses the next token after logits [vocab]; False where that ends the sequence."""
        banned = self.runs.completions() if self.runs else []
        logits = logits.float()
        if not self.written.tokens:
            end = float((logits[list(ends)].logsumexp(0) - logits.logsumexp(0)).exp()) if ends else 0.0
            self.written = self.written._replace(silent=end)
            if end > silent > 0:
                return False
            banned = [*banned, *ends] if silent > 0 else banned
        whole = logits.logsumexp(0)
        if self.within is not None:
            logits = self._allowed(logits, ends)
        token = choose(logits, self.recent, self.sampling, self.generator, banned)
        self.written.logprobs.append(float(logits[token] - whole))
        if token in ends:
            self.written = self.written._replace(ended=True)
            return False
        self.written.tokens.append(token)
        self.recent.append(token)
        if self.runs:
            self.runs.add(token)
        return len(self.written.tokens) < self.sampling.max_new_tokens

    def _allowed(self, logits: Tensor, ends: frozenset[int]) -> Tensor:
        assert self.within is not None
        following, may_end = self.within.after(self.written.tokens)
        kept = [*following, *(ends if may_end else ())]
        return torch.full_like(logits, float("-inf")).index_copy(0, torch.tensor(kept), logits[kept])


@torch.no_grad()
def score_together(
    state: ReadingState, prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]]
) -> list[Tensor]:
    """Losses [tokens of the reply] (nats) of each reply after the state and its prompt.

    Raises UsageError for a prompt that is empty.
    """
    found: dict[int, Tensor] = {}
    lengths = [len(prompt) + len(reply) for prompt, reply in zip(prompts, replies, strict=True)]
    for group in groups(lengths):
        _, hidden = read_together(state, [[*prompts[i], *replies[i][:-1]] for i in group])
        rows = [hidden[k, len(prompts[i]) - 1 : lengths[i] - 1] for k, i in enumerate(group)]
        targets = torch.cat([torch.tensor(list(replies[i])) for i in group]).to(hidden.device)
        nll = state.model.token_nll(torch.cat(rows)[None], targets[None], state.kernels)[0]
        found.update(zip(group, nll.split([len(replies[i]) for i in group]), strict=True))
    return [found[index] for index in range(len(prompts))]
