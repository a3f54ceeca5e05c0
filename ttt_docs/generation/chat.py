"""A conversation after the memory, the reply given out as it is written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from ttt_docs.errors import UsageError
from ttt_docs.generation.answer import PART_WINDOW, PARTS, SYSTEM
from ttt_docs.generation.decoding import Decoding, generate
from ttt_docs.generation.sampling import Sampling
from ttt_docs.generation.summary import outline
from ttt_docs.generation.text import end_tokens, text_pieces
from ttt_docs.memory.memory import Memory
from ttt_docs.model.decoder import Decoder
from ttt_docs.text.tokenizer import Tokenizer

#: Who says what, oldest first: at most one "system", at the start, then "user" and "assistant".
Conversation = Sequence[tuple[str, str]]
Ending = Literal["stop", "length"]


class Reply:
    """A reply being written: iterate over it once for its pieces of text. `prompt_tokens` stand before it.

    Afterwards `tokens` counts those of the reply, and `ending` says whether it came to an end or was cut.
    """

    def __init__(self, model: Decoder, tokenizer: Tokenizer, memory: Memory, prompt: list[int], sampling: Sampling):
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


def converse(
    model: Decoder, tokenizer: Tokenizer, memory: Memory, conversation: Conversation, sampling: Sampling
) -> Reply:
    """The reply to a conversation held after reading; the memory stays as it is.

    The last question comes with an outline of the document, as for `answer_from_memory`; a conversation of one
    question gets that answer. A memory of nothing is the model itself, which then gets the conversation alone.

    Raises UsageError for a conversation that does not end with the user, or does not fit the window with its reply.
    """
    turns = _turns(conversation)
    if memory.documents:
        turns = turns if turns[0][0] == "system" else [("system", SYSTEM), *turns]
        about = outline(memory, tokenizer, min(PARTS, memory.reading.window // PART_WINDOW))
        turns[-1] = ("user", f"{about}\n\n{turns[-1][1]}" if about else turns[-1][1])
    prompt = conversation_tokens(tokenizer, turns)
    window = memory.reading.window
    if len(prompt) + sampling.max_new_tokens > window:
        raise UsageError(
            f"the conversation has {len(prompt)} tokens and the reply up to {sampling.max_new_tokens}, but the window "
            f"holds {window}: say less, ask for a shorter reply, or read the document with a larger window"
        )
    return Reply(model, tokenizer, memory, prompt, sampling)


def conversation_tokens(tokenizer: Tokenizer, turns: Conversation) -> list[int]:
    """The tokens of a conversation; a base model, which has no chat template, gets it as paragraphs."""
    if tokenizer.has_chat_template:
        return tokenizer.encode_conversation(turns)
    return tokenizer.encode("".join(f"\n\n{text}" for _, text in turns) + "\n\n")


def _turns(conversation: Conversation) -> list[tuple[str, str]]:
    """The conversation with all system texts in front, and what one side said in several messages as one."""
    system = "\n\n".join(text for role, text in conversation if role == "system" and text.strip())
    turns: list[tuple[str, str]] = [("system", system)] if system else []
    for role, text in conversation:
        if role not in ("system", "user", "assistant"):
            raise UsageError(f"a message is of {role!r}: a conversation knows system, user and assistant")
        if role == "system" or not text.strip():
            continue
        if turns and turns[-1][0] == role:
            turns[-1] = (role, f"{turns[-1][1]}\n\n{text}")
        else:
            turns.append((role, text))
    if not turns or turns[-1][0] != "user":
        raise UsageError("a conversation must end with a message of the user that is not empty")
    return turns


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
