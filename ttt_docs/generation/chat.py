"""What the model says after its memory: the document's continuation, an answer, a reply in a conversation.

Fast weights keep a style and a world, but not where a fact stood. So a question comes with an outline of the whole
document. Its names and sentences keep a small model from inventing its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from ttt_docs.errors import UsageError
from ttt_docs.generation.decoding import Decoding, generate
from ttt_docs.generation.results import Answer
from ttt_docs.generation.sampling import Sampling
from ttt_docs.generation.sections import outline
from ttt_docs.memory.memory import Memory
from ttt_docs.model.config import ModelConfig
from ttt_docs.model.decoder import Decoder
from ttt_docs.text.tokenizer import Tokenizer

SYSTEM = "You have just read the document above. Answer the question about it briefly."
#: Parts of the document that the outline takes a sentence from, and the window a part needs, in tokens.
PARTS, PART_WINDOW = 7, 200
#: (role, text), oldest first: at most one "system", at the start, then "user" and "assistant".
Conversation = Sequence[tuple[str, str]]
Ending = Literal["stop", "length"]


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
    messages: list[tuple[str, str]] = []
    for role, text in sorted(conversation, key=lambda message: message[0] != "system"):
        if role not in ("system", "user", "assistant"):
            raise UsageError(f"a message is of {role!r}: a conversation knows system, user and assistant")
        if messages and text.strip() and messages[-1][0] == role:
            messages[-1] = (role, f"{messages[-1][1]}\n\n{text}")
        elif text.strip():
            messages.append((role, text))
    if not messages or messages[-1][0] != "user":
        raise UsageError("a conversation must end with a message of the user that is not empty")
    return messages


class Reply:
    """A reply being written: iterate over it once for its pieces of text. `prompt_tokens` stand before it.

    Afterwards `tokens` counts those of the reply, and `ending` says whether it came to an end or was cut. Nothing is
    learned from prompt or reply.

    Raises UsageError for a prompt that does not fit the window beside its reply.
    """

    def __init__(self, model: Decoder, tokenizer: Tokenizer, memory: Memory, prompt: list[int], sampling: Sampling):
        window = memory.reading.window
        if len(prompt) + sampling.max_new_tokens > window:
            raise UsageError(
                f"the prompt has {len(prompt)} tokens and the reply up to {sampling.max_new_tokens}, but the window "
                f"holds {window}: ask more briefly, ask for a shorter reply, or read the document with a larger window"
            )
        self.prompt_tokens = len(prompt)
        self.tokens = 0
        self.ending: Ending = "stop"
        ends = end_tokens(model.config, tokenizer)
        tokens = generate(Decoding(model, memory, learn=False), prompt, sampling, ends)
        self._pieces = _stripped(text_pieces(self._counted(tokens, sampling), tokenizer, sampling.stop))

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def _counted(self, tokens: Iterable[int], sampling: Sampling) -> Iterator[int]:
        for token in tokens:
            self.tokens += 1
            self.ending = "length" if self.tokens == sampling.max_new_tokens else "stop"
            yield token


def prompt_tokens(tokenizer: Tokenizer, conversation: Conversation, opening: str = "") -> list[int]:
    """The tokens of a conversation and of the words that open its reply.

    A base model has no chat template: it gets the texts as paragraphs.
    """
    if tokenizer.has_chat_template:
        return tokenizer.encode_chat(conversation) + tokenizer.encode(opening)
    return tokenizer.encode("".join(f"\n\n{text}" for _, text in conversation) + f"\n\n{opening}")


def end_tokens(config: ModelConfig, tokenizer: Tokenizer) -> frozenset[int]:
    """Tokens after which nothing more is said: end of turn and end of text."""
    ids = {*config.eos_token_ids, tokenizer.eos_id, tokenizer.token_id("unk_token")}
    return frozenset(i for i in ids if i is not None)


def text_pieces(tokens: Iterable[int], tokenizer: Tokenizer, stop: tuple[str, ...] = ()) -> Iterator[str]:
    """The text of `tokens` in pieces, up to where the first of the `stop` texts begins.

    A character is given out when all its bytes are there. Text that may be the start of a stop text is held back until
    it is clear that it is none.
    """
    held, longest = "", max(map(len, stop), default=1) - 1
    for piece in tokenizer.decode_stream(tokens):
        held += piece
        found = [at for text in stop if (at := held.find(text)) >= 0]
        if found:
            if min(found):
                yield held[: min(found)]
            return
        sizes = range(min(longest, len(held)), 0, -1)
        keep = next((size for size in sizes if any(one.startswith(held[-size:]) for one in stop)), 0)
        if len(held) > keep:
            yield held[: len(held) - keep]
            held = held[len(held) - keep :]
    if held:
        yield held


def _stripped(pieces: Iterable[str]) -> Iterator[str]:
    """The pieces without white space around the whole."""
    held, begun = "", False
    for piece in pieces:
        held += piece
        text = held.rstrip() if begun else held.strip()
        if text:
            yield text
            held = held[len(held.rstrip()) :]
            begun = True
