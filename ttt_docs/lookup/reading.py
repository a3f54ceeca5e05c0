"""Reading passages with full attention, and answering by copying.

The base model, without fast weights, reads the question's passages as a whole. Its answer is decoded under a
constraint: every token must go on a span of what it has just read. So digits and names are the document's, and the
answer's place in it is known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ttt_docs.checkpoints.tokenizer import Tokenizer
from ttt_docs.generation.prompting import chat_tokens
from ttt_docs.generation.text import end_tokens
from ttt_docs.lookup.passages import Span
from ttt_docs.model.config import ReadingConfig
from ttt_docs.model.decoder import Decoder
from ttt_docs.model.single import SingleTokens
from ttt_docs.model.state import ReadingState

SYSTEM = "You answer questions about a text with words copied from it, as briefly as possible."
OPENING = "Answer:"
#: Tokens of a copied answer at most.
LONGEST = 24
SEPARATOR = "\n\n"


@dataclass(frozen=True)
class Copied:
    """A span text[start:end] that the model chose, and the mean log-probability of its tokens, in nats."""

    start: int
    end: int
    confidence: float


def base_state(model: Decoder) -> ReadingState:
    """A fresh state with full attention over the model's trained length.

    The fast weights of a retrofit are left out: they were added to the base model. A model that was trained with them
    keeps their initial values, since it is none without.
    """
    longest = model.config.max_positions
    state = ReadingState(model, ReadingConfig(chunk=longest, window=longest, learn=False))
    if not model.config.prime_norm:
        state.set_fast([])
    return state


def prompt_tokens(tokenizer: Tokenizer, passages: Sequence[str], question: str) -> list[int]:
    shown = SEPARATOR.join(passages)
    return chat_tokens(tokenizer, f"{shown}\n\nQuestion: {question}", SYSTEM, OPENING)


@torch.no_grad()
def copy_answer(
    model: Decoder,
    tokenizer: Tokenizer,
    text: str,
    passages: Sequence[Span],
    question: str,
    allowed: Sequence[tuple[Span, float]] = (),
) -> Copied | None:
    """The span of the `passages` of `text` that the model copies as its answer; None if there is nothing to copy.

    With `allowed`, one of these spans, each with a bonus in nats for its first token.
    """
    prompt = prompt_tokens(tokenizer, [text[a:b] for a, b in passages], question)
    tree = _spans(tokenizer, text, passages, allowed)
    if not tree.starts:
        return None
    state = base_state(model)
    device = model.embed.weight.device
    hidden = state.run(torch.tensor([prompt], device=device))[:, -1:]
    logits = model.logits(hidden, state.kernels)[0, 0]
    decoding = SingleTokens(state)
    ends = torch.tensor(sorted(end_tokens(model.config, tokenizer)), device=device)
    here, said, total = tree.starts, 0, 0.0
    while True:
        logs = torch.log_softmax(logits.float(), dim=-1)
        options = tree.following(here, said)
        stop = float(logs[ends].logsumexp(0)) if said and any(tree.may_end(i, said) for i in here) else float("-inf")
        if said >= LONGEST or not options:
            break
        token, score = max(((t, float(logs[t]) + bonus) for t, bonus in options.items()), key=lambda item: item[1])
        if stop > score:
            break
        total += float(logs[token])
        here = [i for i in here if tree.token(i, said) == token]
        said += 1
        if said < LONGEST:
            logits = decoding.step(token)
    ending = [i for i in here if tree.may_end(i, said)] or here
    start, end = tree.span(ending[0], said)
    return Copied(start, end, total / said)


class _spans:
    """The spans that may be copied, as runs of tokens."""

    def __init__(
        self, tokenizer: Tokenizer, text: str, passages: Sequence[Span], allowed: Sequence[tuple[Span, float]]
    ) -> None:
        self.text = text
        self.runs: list[list[tuple[int, int, int]]] = []  # (token, start, end) from a word's start on
        self.bonus: list[float] = []
        self.exact = bool(allowed)
        if allowed:
            for (start, end), bonus in allowed:
                self.runs.append(list(self._tokens(tokenizer, start, end)))
                self.bonus.append(bonus)
        else:
            for start, end in passages:
                run = list(self._tokens(tokenizer, start, end))
                for i, (_, a, _) in enumerate(run):
                    if text[a].isalnum() and not (a > start and text[a - 1].isalnum()):
                        self.runs.append(run[i : i + LONGEST])
                        self.bonus.append(0.0)
        self.starts = [i for i, run in enumerate(self.runs) if run]

    def _tokens(self, tokenizer: Tokenizer, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Tokens of text[start:end] as they stand after the prompt's opening, white space of any kind as one space."""
        raw = self.text[start:end]
        ids, spans = tokenizer.encode_with_offsets(" " + raw.replace("\n", " "))
        for token, (a, b) in zip(ids, spans, strict=True):
            a, b = max(a - 1, 0), b - 1
            while a < b and raw[a].isspace():
                a += 1
            yield token, start + a, start + b

    def token(self, run: int, at: int) -> int | None:
        return self.runs[run][at][0] if at < len(self.runs[run]) else None

    def following(self, here: Sequence[int], at: int) -> dict[int, float]:
        options: dict[int, float] = {}
        for i in here:
            token = self.token(i, at)
            if token is not None:
                options[token] = max(options.get(token, float("-inf")), self.bonus[i] if at == 0 else 0.0)
        return options

    def may_end(self, run: int, said: int) -> bool:
        """Whether the first `said` tokens of a run end with a word (for given spans: with the span)."""
        tokens = self.runs[run]
        if self.exact:
            return said == len(tokens)
        if said >= len(tokens):
            return said == len(tokens)
        return not (self.text[tokens[said][1]].isalnum() and self.text[tokens[said][1] - 1].isalnum())

    def span(self, run: int, said: int) -> Span:
        tokens = self.runs[run]
        return tokens[0][1], tokens[said - 1][2]
