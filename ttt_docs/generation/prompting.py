"""A prompt after the memory, and the model's reply to it."""

from __future__ import annotations

from ttt_docs.errors import UsageError
from ttt_docs.generation.decoding import Decoding, generate
from ttt_docs.generation.sampling import Sampling
from ttt_docs.generation.text import end_tokens, text_pieces
from ttt_docs.memory.memory import Memory
from ttt_docs.model.decoder import Decoder
from ttt_docs.text.tokenizer import Tokenizer


def chat_tokens(tokenizer: Tokenizer, user: str, system: str | None = None, opening: str = "") -> list[int]:
    """The tokens of a chat prompt, the reply's opening words included.

    A base model has no chat template: it gets the same as plain text.
    """
    if tokenizer.has_chat_template:
        return tokenizer.encode_chat(user, system) + tokenizer.encode(opening)
    head = f"{system}\n\n" if system else ""
    return tokenizer.encode(f"\n\n{head}{user}\n\n{opening}")


def reply(
    model: Decoder, tokenizer: Tokenizer, memory: Memory, prompt: list[int], sampling: Sampling
) -> tuple[str, int]:
    """The reply to a prompt read after the memory, and how many tokens it has. Nothing is learned from either.

    Raises UsageError for a prompt that does not fit the window beside its reply.
    """
    window = memory.reading.window
    if len(prompt) + sampling.max_new_tokens > window:
        raise UsageError(
            f"the prompt has {len(prompt)} tokens and the reply up to {sampling.max_new_tokens}, but the window holds "
            f"{window}: ask more briefly, or read the document with a larger window"
        )
    tokens: list[int] = []
    ends = end_tokens(model.config, tokenizer)
    for token in generate(Decoding(model, memory, learn=False), prompt, sampling, ends):
        tokens.append(token)
    return "".join(text_pieces(tokens, tokenizer, sampling.stop)), len(tokens)
