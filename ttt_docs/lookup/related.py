"""Words that mean much the same, by the model's own input embedding: "murdered" and "killed", "tall" and "height".

A question is seldom asked in the document's words. The embedding of a trained model knows which words are used alike,
so no other data is needed. Words of several tokens have no vector here and are left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ttt_docs.model.decoder import Decoder
from ttt_docs.text.tokenizer import Tokenizer

#: Cosine from which on words are related, and at most how many are for one word.
LEAST, MOST = 0.33, 40


@dataclass(frozen=True)
class _Words:
    """The whole words of a vocabulary: their tokens, and what makes a product with the embedding a cosine."""

    tokens: dict[str, int]
    names: list[str]
    ids: Tensor  # int64 [words]
    centre: Tensor  # float32 [dim]
    norms: Tensor  # float32 [words]: length of the centred vectors


_KNOWN: WeakKeyDictionary[Decoder, _Words] = WeakKeyDictionary()


@torch.no_grad()
def related(model: Decoder, tokenizer: Tokenizer, words: Sequence[str]) -> dict[str, dict[str, float]]:
    """For each of `words` (in lower case) those nearest to it in the embedding, with their cosine."""
    known = _KNOWN.get(model)
    if known is None:
        known = _KNOWN[model] = _words(model, tokenizer)
    asked = [word for word in dict.fromkeys(words) if word in known.tokens]
    if not asked:
        return {}
    weight = model.embed.weight
    own = weight[[known.tokens[word] for word in asked]].float() - known.centre
    own = torch.nn.functional.normalize(own, dim=1)
    products = (weight @ own.T.to(weight.dtype)).float()[known.ids] - own @ known.centre  # [words, asked]
    cosines, rows = (products / known.norms[:, None]).topk(min(MOST + 1, len(known.names)), dim=0)
    found: dict[str, dict[str, float]] = {}
    for i, word in enumerate(asked):
        near = zip(rows[:, i].tolist(), cosines[:, i].tolist(), strict=True)
        found[word] = {known.names[row]: cosine for row, cosine in near if cosine >= LEAST and known.names[row] != word}
    return found


def _words(model: Decoder, tokenizer: Tokenizer) -> _Words:
    tokens: dict[str, int] = {}
    for token in range(min(tokenizer.vocab_size, len(model.embed.weight))):
        written = tokenizer.decode([token])
        word = written.strip()
        if len(word) > 2 and written == f" {word}" and word.isalpha() and word.islower():
            tokens[word] = token
    ids = torch.tensor(list(tokens.values()), dtype=torch.int64, device=model.embed.weight.device)
    vectors = model.embed.weight[ids].float()
    centre = vectors.mean(0) if len(ids) else vectors.new_zeros(vectors.shape[1])
    norms = (vectors - centre).norm(dim=1).clamp(min=1e-6)
    return _Words(tokens, list(tokens), ids, centre, norms)
