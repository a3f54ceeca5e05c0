"""Going on with the document where it ended."""

from __future__ import annotations

from collections.abc import Iterator

from ttt_docs.errors import UsageError
from ttt_docs.generation.decoding import Decoding, generate
from ttt_docs.generation.sampling import Sampling
from ttt_docs.generation.text import end_tokens, text_pieces
from ttt_docs.memory.memory import Memory
from ttt_docs.model.decoder import Decoder
from ttt_docs.text.tokenizer import Tokenizer


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
