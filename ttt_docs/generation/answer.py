"""Answering a question from the memory.

Fast weights remember a style and a world, not where a fact stood; so the question comes with an outline of the whole
document, whose names and sentences keep a small model from inventing its own.
"""

from __future__ import annotations

import time

from ttt_docs.errors import UsageError
from ttt_docs.generation.prompting import chat_tokens, reply
from ttt_docs.generation.results import Answer
from ttt_docs.generation.sampling import Sampling
from ttt_docs.generation.summary import outline
from ttt_docs.memory.memory import Memory
from ttt_docs.model.decoder import Decoder
from ttt_docs.text.tokenizer import Tokenizer

SYSTEM = "You have just read the document above. Answer the question about it briefly."
#: Parts of the document that the outline takes a sentence from, and the window a part needs, in tokens.
PARTS, PART_WINDOW = 7, 200


def answer_from_memory(
    model: Decoder, tokenizer: Tokenizer, memory: Memory, question: str, sampling: Sampling
) -> Answer:
    """The model's answer to `question`, read after the memory and an outline of its text, if it holds one.

    Raises UsageError for an empty question, or one that does not fit the window.
    """
    if not question.strip():
        raise UsageError("the question is empty")
    began = time.perf_counter()
    about = outline(memory, tokenizer, min(PARTS, memory.reading.window // PART_WINDOW))
    user = f"{about}\n\n{question}" if about else question
    text, _ = reply(model, tokenizer, memory, chat_tokens(tokenizer, user, SYSTEM), sampling)
    return Answer(text.strip(), "memory", seconds=time.perf_counter() - began)
