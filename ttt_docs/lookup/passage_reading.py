"""Reading passages with full attention, to tell which of them fits a question.

The base model, without fast weights, reads each passage with the question after it, all of them as one batch. The
likelier the question is after a passage, the better the passage fits it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ttt_docs.generation.together import base_state
from ttt_docs.model.decoder import Decoder
from ttt_docs.text.tokenizer import Tokenizer


def asked_tokens(tokenizer: Tokenizer, question: str) -> list[int]:
    """The tokens of a question as it stands after a passage."""
    return tokenizer.encode(f"\n\nQuestion: {question}")


@torch.no_grad()
def question_fits(model: Decoder, tokenizer: Tokenizer, passages: Sequence[str], question: str) -> list[float]:
    """The log-probability of the question after each of the passages, in nats; at least one passage.

    Shorter passages have empty lines before them, so that the question has the same positions in every row.
    """
    asked = asked_tokens(tokenizer, question)
    encoded = [tokenizer.encode(passage.replace("\n", " ")) for passage in passages]
    longest, blank = max(map(len, encoded)), tokenizer.encode("\n")[-1:]
    rows = torch.tensor([blank * (longest - len(tokens)) + tokens + asked for tokens in encoded])
    rows = rows.to(model.embed.weight.device)
    state = base_state(model, len(rows), rows.shape[1])
    hidden = state.run(rows)[:, longest - 1 : -1]
    return (-model.token_nll(hidden, rows[:, longest:], state.kernels).sum(1)).tolist()
