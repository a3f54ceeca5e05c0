"""Reading passages with full attention, and answering by copying.

The base model, without fast weights, reads each passage with the question after it. How likely the question is after a
passage says how well the passage fits it; what the model says next is its answer, decoded under a constraint: every
token must go on a span of the passage. So digits and names are the document's, and the answer's place is known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from ttt_docs.checkpoints.tokenizer import Tokenizer
from ttt_docs.generation.text import end_tokens
from ttt_docs.lookup.passages import Span
from ttt_docs.model.config import ReadingConfig
from ttt_docs.model.decoder import Decoder
from ttt_docs.model.single import SingleTokens
from ttt_docs.model.state import ReadingState

#: Passages that are read in one call.
BATCH = 4
#: Tokens of a copied answer at most.
LONGEST = 24


@dataclass(frozen=True)
class ReadPassage:
    """A passage text[start:end] that was read with the question after it."""

    start: int
    end: int
    fit: float  # log-probability of the question after it, nats
    state: ReadingState  # after passage and question
    last: int  # the token after those, not read yet


@dataclass(frozen=True)
class Copied:
    """A span text[start:end] that the model chose, and the mean log-probability of its tokens, in nats."""

    start: int
    end: int
    confidence: float


def base_state(model: Decoder, batch: int = 1) -> ReadingState:
    """A fresh state with full attention over the model's trained length.

    The fast weights of a retrofit are left out: they were added to the base model. A model that was trained with them
    keeps their initial values, since it is none without.
    """
    longest = model.config.max_positions
    state = ReadingState(model, ReadingConfig(chunk=longest, window=longest, learn=False), batch)
    if not model.config.prime_norm:
        state.set_fast([])
    return state


def asking(tokenizer: Tokenizer, question: str) -> tuple[list[int], list[int]]:
    """The tokens after a passage, whose likelihood counts, and those that open the answer."""
    return tokenizer.encode(f"\n\nQuestion: {question}"), tokenizer.encode("\nAnswer:")


@torch.no_grad()
def read_passages(
    model: Decoder, tokenizer: Tokenizer, text: str, passages: Sequence[Span], question: str
) -> list[ReadPassage]:
    """Reads each of the `passages` of `text` by itself, with the question after it."""
    device = model.embed.weight.device
    asked, opening = asking(tokenizer, question)
    runs = [[*tokenizer.encode(_one_line(text[a:b])), *asked, *opening] for a, b in passages]
    read: list[ReadPassage] = []
    order = sorted(range(len(runs)), key=lambda i: len(runs[i]))  # passages of a batch are padded to the longest
    for first in range(0, len(runs), BATCH):
        rows = order[first : first + BATCH]
        tokens = torch.zeros(len(rows), max(len(runs[i]) - 1 for i in rows), dtype=torch.int64, device=device)
        for row, i in enumerate(rows):
            tokens[row, : len(runs[i]) - 1] = torch.tensor(runs[i][:-1])
        batch = base_state(model, len(rows))
        hidden = batch.run(tokens)
        exported = [cache.export() for cache in batch.caches]
        for row, i in enumerate(rows):
            count = len(runs[i]) - 1
            begin = count + 1 - len(opening) - len(asked)
            before = hidden[row : row + 1, begin - 1 : begin - 1 + len(asked)]
            targets = torch.tensor([asked], device=device)
            state = base_state(model)
            pairs = [(k[row : row + 1, :, :count], v[row : row + 1, :, :count]) for k, v in exported]
            state.restore(count, state.fast, pairs)
            fit = -float(model.token_nll(before, targets, state.kernels).sum())
            read.append(ReadPassage(*passages[i], fit, state, runs[i][-1]))
    return [one for _, one in sorted(zip(order, read, strict=True), key=lambda pair: pair[0])]


@torch.no_grad()
def copy_answer(
    model: Decoder, tokenizer: Tokenizer, text: str, passage: ReadPassage, allowed: Sequence[Span] = ()
) -> Copied | None:
    """The span of a passage that the model copies as its answer, one of `allowed` if any are given.

    None if there is nothing to copy.
    """
    spans = _Spans(tokenizer, text, (passage.start, passage.end), allowed)
    here = list(range(len(spans.runs)))
    if not here:
        return None
    ends = torch.tensor(sorted(end_tokens(model.config, tokenizer) | set(tokenizer.encode("\n"))))
    decoding = SingleTokens(passage.state)
    logits = decoding.step(passage.last)
    said, total = 0, 0.0
    while True:
        logs = torch.log_softmax(logits.float(), dim=-1).cpu()
        options = {token for i in here if (token := spans.token(i, said)) is not None}
        may_end = said and any(spans.may_end(i, said) for i in here)
        if said >= LONGEST or not options:
            break
        token = max(options, key=lambda option: float(logs[option]))
        if may_end and float(logs[ends].logsumexp(0)) > float(logs[token]):
            break
        total += float(logs[token])
        here = [i for i in here if spans.token(i, said) == token]
        said += 1
        if said < LONGEST:
            logits = decoding.step(token)
    ending = [i for i in here if spans.may_end(i, said)] or here
    return Copied(*spans.span(ending[0], said), total / said)


def _one_line(text: str) -> str:
    return text.replace("\n", " ")


class _Spans:
    """The spans that may be copied, as runs of tokens (token, start, end)."""

    def __init__(self, tokenizer: Tokenizer, text: str, passage: Span, allowed: Sequence[Span]) -> None:
        self.text, self.exact = text, bool(allowed)
        if allowed:
            self.runs = [list(self._tokens(tokenizer, *span)) for span in allowed]
        else:
            run = list(self._tokens(tokenizer, *passage))
            self.runs = [run[i : i + LONGEST] for i, (_, a, b) in enumerate(run) if a < b and self._begins_word(a)]
        self.runs = [run for run in self.runs if run]

    def _tokens(self, tokenizer: Tokenizer, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Tokens of text[start:end] as they stand after the prompt's opening: with a space before the first."""
        raw = _one_line(self.text[start:end])
        ids, spans = tokenizer.encode_with_offsets(" " + raw)
        for token, (a, b) in zip(ids, spans, strict=True):
            a, b = max(a - 1, 0), b - 1
            while a < b and raw[a] == " ":
                a += 1
            yield token, start + a, start + b

    def _begins_word(self, at: int) -> bool:
        return self.text[at].isalnum() and not (at and self.text[at - 1].isalnum())

    def token(self, run: int, at: int) -> int | None:
        return self.runs[run][at][0] if at < len(self.runs[run]) else None

    def may_end(self, run: int, said: int) -> bool:
        """Whether the first `said` tokens of a run end with a word (of a given span: with the span)."""
        tokens = self.runs[run]
        if self.exact or said >= len(tokens):
            return said == len(tokens)
        start = tokens[said][1]
        return not (start < len(self.text) and self.text[start].isalnum() and self.text[start - 1].isalnum())

    def span(self, run: int, said: int) -> Span:
        tokens = self.runs[run]
        return tokens[0][1], tokens[said - 1][2]
