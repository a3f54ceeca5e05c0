"""Answering a question from the memory."""

from __future__ import annotations

import time

from ttt_docs.checkpoints.tokenizer import Tokenizer
from ttt_docs.errors import UsageError
from ttt_docs.generation.prompting import chat_tokens, reply
from ttt_docs.generation.results import Answer
from ttt_docs.generation.sampling import Sampling
from ttt_docs.memory.memory import Memory
from ttt_docs.model.decoder import Decoder

SYSTEM = "You have just read the document above. Answer the question about it briefly."


def answer_from_memory(
    model: Decoder, tokenizer: Tokenizer, memory: Memory, question: str, sampling: Sampling
) -> Answer:
    """The model's answer to `question`, read after the memory.

    Raises UsageError for an empty question, or one that does not fit the window.
    """
    if not question.strip():
        raise UsageError("the question is empty")
    began = time.perf_counter()
    text, _ = reply(model, tokenizer, memory, chat_tokens(tokenizer, question, SYSTEM), sampling)
    return Answer(text.strip(), "memory", seconds=time.perf_counter() - began)
