"""A reader: a short answer to a question from each of several passages, or the word that it is not there.

The reader's skill (`weights.skill`) was taught to end its reply at once where a passage does not say. So the
probability of silence tells whether a passage answers, and passages compete by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp

from ttt_docs.generation.chat import end_tokens
from ttt_docs.generation.sampling import Sampling
from ttt_docs.generation.together import write_together
from ttt_docs.lookup.passage_reading import base_state
from ttt_docs.model.decoder import Decoder
from ttt_docs.text.tokenizer import Tokenizer
from ttt_docs.weights.skill import SYSTEM

#: Tokens of an answer, at most.
LONGEST = 48


@dataclass(frozen=True)
class PassageAnswer:
    """What one passage answers."""

    passage: int  # which of those that were read
    text: str
    here: float  # probability that the passage answers at all
    sure: float  # geometric mean of the answer's token probabilities

    @property
    def score(self) -> float:
        return self.here * self.sure


def question_prompt(passage: str, question: str) -> str:
    """What the reader reads. `question` may have the turns of a conversation before it."""
    return f"{passage.strip()}\n\nQuestion: {question.strip()}"


def read_answers(model: Decoder, tokenizer: Tokenizer, passages: Sequence[str], question: str) -> list[PassageAnswer]:
    """The answer of each passage, best first. `model` has the reader's skill.

    Raises UsageError for a passage that does not fit the model with its answer.
    """
    prompts = [
        tokenizer.encode_chat([("system", SYSTEM), ("user", question_prompt(passage, question))])
        for passage in passages
    ]
    sampling = Sampling(temperature=0, repetition_penalty=1, max_new_tokens=LONGEST)
    ends = end_tokens(model.config, tokenizer)
    written = write_together(base_state(model), prompts, sampling, ends, never_silent=True)
    answers = [
        PassageAnswer(
            i, tokenizer.decode(w.tokens).strip(), 1 - w.silent, exp(sum(w.logprobs) / max(len(w.logprobs), 1))
        )
        for i, w in enumerate(written)
    ]
    return sorted(answers, key=lambda answer: -answer.score)
