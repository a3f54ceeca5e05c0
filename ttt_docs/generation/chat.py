"""What the model says after its memory: the document's continuation, an answer, a reply in a conversation.

Fast weights keep a style and a world, but not where a fact stood. So a question comes with an outline of the whole
document. Its names and sentences keep a small model from inventing its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from ttt_docs.errors import UsageError
from ttt_docs.generation.decoding import Decoding, generate
from ttt_docs.generation.reply import Conversation, Reply, end_tokens, prompt_tokens, text_pieces
from ttt_docs.generation.results import Answer
from ttt_docs.generation.sampling import Sampling
from ttt_docs.generation.summary import outline
from ttt_docs.memory.memory import Memory
from ttt_docs.model.decoder import Decoder
from ttt_docs.text.tokenizer import Tokenizer

SYSTEM = "You have just read the document above. Answer the question about it briefly."
#: Parts of the document that the outline takes a sentence from, and the window a part needs, in tokens.
PARTS, PART_WINDOW = 7, 200


def continue_text(
    model: Decoder, tokenizer: Tokenizer, memory: Memory, sampling: Sampling, learn: bool = True
) -> Iterator[str]:
    """The document's continuation, in pieces of text. With `learn`, what is written is learned from chunk by chunk.

    Raises UsageError for a memory of nothing.
    """
    if not len(memory.tokens):
        raise UsageError("this memory is empty: read a document first")
    tokens = generate(Decoding(model, memory, learn), (), sampling, end_tokens(model.config, tokenizer))
    return text_pieces(tokens, tokenizer, sampling.stop)


def answer_from_memory(
    model: Decoder, tokenizer: Tokenizer, memory: Memory, question: str, sampling: Sampling
) -> Answer:
    """The model's answer to `question`, read after the memory and an outline of its text, if it holds one.

    Raises UsageError for an empty question, or one that does not fit the window.
    """
    began = time.perf_counter()
    text = "".join(converse(model, tokenizer, memory, [("user", question)], sampling))
    return Answer(text, "memory", seconds=time.perf_counter() - began)


def converse(
    model: Decoder, tokenizer: Tokenizer, memory: Memory, conversation: Conversation, sampling: Sampling
) -> Reply:
    """The reply to a conversation held after reading; the memory stays as it is.

    The last question comes with an outline of the document. A memory of nothing is the model itself, which then gets
    the conversation alone.

    Raises UsageError for a conversation that does not end with the user, or does not fit the window with its reply.
    """
    messages = _in_order(conversation)
    if memory.documents:
        messages = messages if messages[0][0] == "system" else [("system", SYSTEM), *messages]
        about = outline(memory, tokenizer, min(PARTS, memory.reading.window // PART_WINDOW))
        messages[-1] = ("user", f"{about}\n\n{messages[-1][1]}" if about else messages[-1][1])
    return Reply(model, tokenizer, memory, prompt_tokens(tokenizer, messages), sampling)


def _in_order(conversation: Conversation) -> list[tuple[str, str]]:
    """The conversation with all system texts in front, and what one side said in several messages as one."""
    system = "\n\n".join(text for role, text in conversation if role == "system" and text.strip())
    messages: list[tuple[str, str]] = [("system", system)] if system else []
    for role, text in conversation:
        if role not in ("system", "user", "assistant"):
            raise UsageError(f"a message is of {role!r}: a conversation knows system, user and assistant")
        if role == "system" or not text.strip():
            continue
        if messages and messages[-1][0] == role:
            messages[-1] = (role, f"{messages[-1][1]}\n\n{text}")
        else:
            messages.append((role, text))
    if not messages or messages[-1][0] != "user":
        raise UsageError("a conversation must end with a message of the user that is not empty")
    return messages
