"""A reader: a short answer to a question from each of several passages, or the word that it is not there.

The reader's skill (`weights.skill`) was taught to end its reply at once where a passage does not say. So the
probability of silence tells whether a passage answers, and passages compete by it. A chat model without the skill is
told to say so in words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp

from ttt_docs.generation.chat import end_tokens
from ttt_docs.generation.sampling import Sampling
from ttt_docs.generation.together import Written, base_state, write_together
from ttt_docs.lookup.spans import PassageSpans
from ttt_docs.model.decoder import Decoder
from ttt_docs.text.tokenizer import Tokenizer
from ttt_docs.ttt.state import ReadingState
from ttt_docs.weights.skill import SYSTEM

#: Tokens of an answer, at most.
LONGEST = 48
#: What a model without the skill is told, and what it then says where a passage has no answer.
INSTRUCTION = (
    "Answer the question from the passage alone, in as few words as possible. "
    "If the passage does not say, reply: Not here."
)
NOT_HERE = "not here"
#: Share of the free words' probability (per token) from which on a run of the passage's words is preferred.
SPAN = 0.7
#: A passage that is surer than this to say nothing is not asked further.
SILENT = 0.95
#: (question, answer), oldest first: what was said before.
History = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class PassageAnswer:
    """What one passage answers."""

    passage: int  # which of those that were read
    text: str
    here: float  # probability that the passage answers at all
    sure: float  # geometric mean of the answer's token probabilities; 0 where nothing was said


def question_prompt(passage: str, question: str, history: History = ()) -> str:
    """What the reader reads."""
    before = "".join(f"{asked.strip()} {answered.strip()} " for asked, answered in history)
    return f"{passage.strip()}\n\nQuestion: {before}{question.strip()}"


@dataclass(frozen=True)
class PassageReader:
    """A chat model that reads passages, with the skill or without."""

    model: Decoder
    tokenizer: Tokenizer
    skilled: bool

    @property
    def answers(self) -> bool:
        """Whether it can be asked at all: a model without a chat template can only say which passage fits."""
        return self.skilled or self.tokenizer.has_chat_template

    def tokens(self, passage: str, question: str, history: History = ()) -> list[int]:
        """A prompt's tokens."""
        system = SYSTEM if self.skilled else INSTRUCTION
        return self.tokenizer.encode_chat([("system", system), ("user", question_prompt(passage, question, history))])

    def read(
        self, passages: Sequence[str], question: str, history: History = (), state: ReadingState | None = None
    ) -> list[PassageAnswer]:
        """The answer of each passage, in their order; all are read as one batch, after `state` if there is one.

        A run of the passage's own words is preferred to free words, unless it is much less likely.

        Raises UsageError for a passage that does not fit the model with its answer.
        """
        prompts = [self.tokens(passage, question, history) for passage in passages]
        sampling = Sampling(temperature=0, repetition_penalty=1, max_new_tokens=LONGEST)
        ends = end_tokens(self.model.config, self.tokenizer)
        spans = [PassageSpans(passage, self.tokenizer) for passage in passages] if self.skilled else None
        written = write_together(state or base_state(self.model), prompts, sampling, ends, SILENT * self.skilled, spans)
        free = [self._answer(i, one) for i, one in enumerate(written[: len(prompts)])]
        runs = [self._answer(i, one) for i, one in enumerate(written[len(prompts) :])]
        if not runs:
            return free
        return [run if run.sure > SPAN * said.sure else said for said, run in zip(free, runs, strict=True)]

    def _answer(self, passage: int, written: Written) -> PassageAnswer:
        text = " ".join(self.tokenizer.decode(written.tokens).split())
        here = 1 - written.silent if self.skilled else float(not text.lower().startswith(NOT_HERE) and bool(text))
        sure = exp(sum(written.logprobs) / len(written.logprobs)) if text else 0.0
        return PassageAnswer(passage, text, here, sure)
