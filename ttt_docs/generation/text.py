"""Generated tokens to text: whole characters only, and nothing of a stop text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ttt_docs.model.config import ModelConfig
from ttt_docs.text.tokenizer import Tokenizer


def end_tokens(config: ModelConfig, tokenizer: Tokenizer) -> frozenset[int]:
    """Tokens after which nothing more is said: end of turn and end of text."""
    ids = {*config.eos_token_ids, tokenizer.eos_id, tokenizer.token_id("unk_token")}
    return frozenset(i for i in ids if i is not None)


def text_pieces(tokens: Iterable[int], tokenizer: Tokenizer, stop: tuple[str, ...] = ()) -> Iterator[str]:
    """The text of `tokens` in pieces, up to where the first of the `stop` texts begins.

    A character is given out when all its bytes are there, and text that may be the start of a stop text is held back
    until it is clear that it is none.
    """
    decoder = tokenizer.stream()
    held = ""

    def pieces() -> Iterator[str]:
        for token in tokens:
            yield decoder.push(token)
        yield decoder.flush()

    for piece in pieces():
        held += piece
        found = [at for text in stop if (at := held.find(text)) >= 0]
        if found:
            if min(found):
                yield held[: min(found)]
            return
        keep = _possible_start(held, stop)
        if len(held) > keep:
            yield held[: len(held) - keep]
            held = held[len(held) - keep :]
    if held:
        yield held


def _possible_start(text: str, stop: tuple[str, ...]) -> int:
    """Length of the longest end of `text` that a stop text begins with."""
    longest = max((len(s) for s in stop), default=0) - 1
    for size in range(min(longest, len(text)), 0, -1):
        if any(s.startswith(text[len(text) - size :]) for s in stop):
            return size
    return 0
