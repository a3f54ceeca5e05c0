"""Reading passages with full attention, and answering by copying.

The base model, without fast weights, reads each passage with the question after it, all of them as one batch. The
likelier the question is after a passage, the better the passage fits it. What the model says next is its answer. It is
decoded under a constraint: every token must go on a span of the passage. So digits and names are the document's, and it
is known where the answer stands.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ttt_docs.generation.reply import end_tokens
from ttt_docs.model.config import ReadingConfig
from ttt_docs.model.decode_step import SingleTokens
from ttt_docs.model.decoder import Decoder
from ttt_docs.text.sentences import Span
from ttt_docs.text.tokenizer import Tokenizer
from ttt_docs.ttt.state import ReadingState

#: Tokens of a copied answer at most.
LONGEST = 24


@dataclass(frozen=True)
class ReadPassages:
    """Passages of a text that were read with a question after them."""

    spans: list[Span]
    fits: list[float]  # log-probability of the question after each, nats
    state: ReadingState  # after passages and question, a row for each
    last: int  # the token after those, not read yet


@dataclass(frozen=True)
class Copied:
    """A span text[start:end] that the model chose, and the mean log-probability of its tokens, in nats."""

    start: int
    end: int
    confidence: float


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


def asking(tokenizer: Tokenizer, question: str) -> tuple[list[int], list[int]]:
    """The tokens after a passage, whose likelihood counts, and those that open the answer."""
    return tokenizer.encode(f"\n\nQuestion: {question}"), tokenizer.encode("\nAnswer:")


@torch.no_grad()
def read_passages(
    model: Decoder, tokenizer: Tokenizer, text: str, spans: Sequence[Span], question: str
) -> ReadPassages:
    """Reads each of the passages `spans` of `text`, at least one, by itself with the question after it.

    Shorter ones have empty lines before them, so that question and answer have the same positions in every row.
    """
    device = model.embed.weight.device
    asked, opening = asking(tokenizer, question)
    passages = [tokenizer.encode(_one_line(text[a:b])) for a, b in spans]
    longest, blank = max(map(len, passages)), tokenizer.encode("\n")[-1:]
    rows = [blank * (longest - len(passage)) + passage + asked + opening[:-1] for passage in passages]
    state = base_state(model, len(rows), longest + len(asked) + len(opening) + LONGEST)
    hidden = state.run(torch.tensor(rows, device=device))[:, longest - 1 : longest - 1 + len(asked)]
    targets = torch.tensor([asked], device=device).expand(len(rows), -1)
    fits = -model.token_nll(hidden, targets, state.kernels).sum(1)
    return ReadPassages(list(spans), fits.tolist(), state, opening[-1])


@torch.no_grad()
def copy_answer(
    model: Decoder,
    tokenizer: Tokenizer,
    text: str,
    read: ReadPassages,
    row: int,
    span: Span | None = None,
    allowed: Sequence[Span] = (),
    beginnings: Collection[int] | None = None,
) -> Copied | None:
    """The span that the model copies as its answer after passage `row`, from the characters `span` (the passage).

    It is one of `allowed` if any are given, else begins at one of the characters `beginnings` (None: with any word).
    None if there is nothing to copy.
    """
    copying = _Copying(tokenizer, text, span or read.spans[row], allowed, beginnings)
    ends = torch.tensor(sorted(end_tokens(model.config, tokenizer) | set(tokenizer.encode("\n"))))
    state, token = read.state.select([row]), read.last
    decoding = SingleTokens(model, state.caches, state.views, state.position)
    while not copying.done:
        logs = decoding.step(token).float().log_softmax(0).cpu()
        token = copying.next(logs, float(logs[ends].logsumexp(0)))
    return copying.copied()


def _one_line(text: str) -> str:
    return text.replace("\n", " ")


class _Copying:
    """An answer being copied: the spans it may still become, as runs of tokens (token, start, end)."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        text: str,
        passage: Span,
        allowed: Sequence[Span],
        beginnings: Collection[int] | None,
    ) -> None:
        self.text, self.exact = text, bool(allowed)
        if allowed:
            runs = [list(self._tokens(tokenizer, *span)) for span in allowed]
        else:
            run = list(self._tokens(tokenizer, *passage))
            starts = [i for i, (_, a, b) in enumerate(run) if a < b and self._begins_word(a)]
            if beginnings is not None:
                starts = [i for i in starts if run[i][1] in beginnings]
            runs = [run[i : i + LONGEST] for i in starts]
        self.runs = [run for run in runs if run]
        self.said, self.total = 0, 0.0
        self.done = not self.runs

    def next(self, logs: Tensor, over: float) -> int:
        """The likeliest token to go on with, by `logs` [vocab], unless an end (`over`) is likelier: then any."""
        options = list({run[self.said][0] for run in self.runs if self.said < len(run)})
        likely = logs[options]
        best = int(likely.argmax())
        token = options[best]
        if over > float(likely[best]) and any(map(self._may_end, self.runs)):
            self.done = True
            return token
        self.total += float(likely[best])
        self.runs = [run for run in self.runs if self.said < len(run) and run[self.said][0] == token]
        self.said += 1
        self.done = self.said >= LONGEST or all(self.said >= len(run) for run in self.runs)
        return token

    def copied(self) -> Copied | None:
        if not self.said:
            return None
        run = next(filter(self._may_end, self.runs), self.runs[0])
        return Copied(run[0][1], run[self.said - 1][2], self.total / self.said)

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

    def _may_end(self, run: list[tuple[int, int, int]]) -> bool:
        """Whether what was said ends with a word of the run (of a given span: with the span)."""
        if not self.said or self.exact or self.said >= len(run):
            return 0 < self.said == len(run)
        start = run[self.said][1]
        return not (start < len(self.text) and self.text[start].isalnum() and self.text[start - 1].isalnum())
