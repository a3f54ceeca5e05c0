"""A writer: a model that says in its own words what a text says, many texts in one batch.

Its skill (`weights.skill`) was taught with the prompts that stand here. A model without one gets the same prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ttt_docs.generation.chat import end_tokens
from ttt_docs.generation.sampling import Sampling
from ttt_docs.generation.together import SEQUENCES, base_state, write_together
from ttt_docs.model.decoder import Decoder
from ttt_docs.text.tokenizer import Tokenizer
from ttt_docs.ttt.state import ReadingState
from ttt_docs.weights.skill import SYSTEM, taught

#: What is asked about a passage, about abstracts (one a line), and for one sentence. A focus stands in their place.
ABSTRACT, MERGE, SENTENCE = (
    "Tell what this passage says.",
    "Tell this as one paragraph.",
    "Say in one sentence what this says.",
)
#: A model with fewer parameters writes with a skill only: without one, SmolLM2-135M was tried and invents.
PLAIN = 300_000_000


def writing_prompt(text: str, request: str, words: int) -> str:
    """What the writer reads."""
    return f"{text.strip()}\n\n{request} In about {max(10, round(words, -1))} words."


class Asked(NamedTuple):
    """A text and what to write about it."""

    text: str
    request: str
    words: int


@dataclass(frozen=True)
class Writer:
    """Writes after `state`, which is that of no document, or of the one that is summarized."""

    tokenizer: Tokenizer
    state: ReadingState
    room: int  # tokens of a text, at most
    system: str = SYSTEM

    def fits(self, text: str) -> bool:
        return len(self.tokenizer.encode(text)) <= self.room

    def write(
        self, asked: Sequence[Asked], temperature: float, seed: int, may_be_silent: bool = False
    ) -> Iterator[list[str]]:
        """What it says about each, a batch at a time; empty where it says nothing, and may.

        Raises UsageError for a text that does not fit the window.
        """
        system = [("system", self.system)] if self.system else []
        ends = end_tokens(self.state.model.config, self.tokenizer)
        for first in range(0, len(asked), SEQUENCES):
            batch = asked[first : first + SEQUENCES]
            prompts = [
                self.tokenizer.encode_chat([*system, ("user", writing_prompt(one.text, one.request, one.words))])
                for one in batch
            ]
            longest = min(2 * max(one.words for one in batch) + 20, self.state.reading.window // 3)
            sampling = Sampling(
                temperature=temperature,
                repetition_penalty=1.0,
                no_repeat_ngram=6,
                seed=seed + first,
                max_new_tokens=longest,
            )
            written = write_together(self.state, prompts, sampling, ends, silent=0.0 if may_be_silent else 1.0)
            yield [self.tokenizer.decode(one.tokens).strip() for one in written]


def writer_for(
    model: Decoder, tokenizer: Tokenizer, name: str, window: int, state: ReadingState | None = None
) -> Writer | str:
    """The writer of the model of that name, or why it has none. Its texts have at most half of `window` tokens.

    It writes after a new state, with full attention and no fast weights, unless another is given, of the taught
    model.
    """
    if not tokenizer.has_chat_template:
        return "the model has no chat template, so it was not trained to write what is asked for"
    skilled = taught(model, name, "summaries")
    if skilled is None and sum(weight.numel() for weight in model.parameters()) < PLAIN:
        return "the model is too small to write freely, and has no skill for it"
    state = state or base_state(skilled or model)
    return Writer(tokenizer, state, min(window, state.reading.window) // 2, SYSTEM if skilled else "")
