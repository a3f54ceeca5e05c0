"""Which passage a question is about, judged by the model: how likely the question is to be asked after the passage.

Words find passages that speak the question's words; the likelihood of the question (query likelihood with a language
model) also knows that "how tall" asks for feet and inches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ttt_docs.checkpoints.tokenizer import Tokenizer
from ttt_docs.model.config import ReadingConfig
from ttt_docs.model.decoder import Decoder
from ttt_docs.model.state import ReadingState

#: Between a passage and the question whose likelihood is taken.
ASKED = "\n\nQuestion:"
#: Passages that run at once: their padding costs more than a larger batch saves.
BATCH = 8


@torch.no_grad()
def question_likelihoods(
    model: Decoder, tokenizer: Tokenizer, passages: Sequence[str], question: str
) -> list[float]:
    """Mean log-probability of the question's tokens after each passage, in nats; larger is likelier."""
    asked = tokenizer.encode(f" {question.strip()}")
    prompts = [tokenizer.encode(passage + ASKED) + asked for passage in passages]
    device = model.embed.weight.device
    found = [0.0] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for first in range(0, len(order), BATCH):
        group = order[first : first + BATCH]
        longest = max(len(prompts[i]) for i in group)
        tokens = torch.zeros(len(group), longest, dtype=torch.long)
        for row, i in enumerate(group):
            tokens[row, : len(prompts[i])] = torch.tensor(prompts[i])
        reading = ReadingConfig(chunk=longest, window=longest, learn=False)
        state = ReadingState(model, reading, batch=len(group))
        if not model.config.prime_norm:
            state.set_fast([])  # of a retrofit: the base model alone
        hidden = state.run(tokens.to(device), commit=False)
        ends = torch.tensor([len(prompts[i]) for i in group])
        places = (ends - len(asked) - 1)[:, None] + torch.arange(len(asked))
        last = hidden.gather(1, places.to(device)[..., None].expand(-1, -1, hidden.shape[-1]))
        targets = torch.tensor(asked, device=device).expand(len(group), -1)
        for i, nll in zip(group, model.token_nll(last, targets, state.kernels).mean(1).tolist(), strict=True):
            found[i] = -nll
    return found
