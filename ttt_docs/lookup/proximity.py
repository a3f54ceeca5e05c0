"""Which sentences of a text probably hold the answer, when the question is not asked in the text's words.

A sentence scores by how near to it the question's terms stand. An occurrence of a term counts 1 in its own sentence,
and linearly less down to 0 at a given distance. A short distance says that terms stand together, a long one what a
chapter is about. The counts of one term are saturated as in BM25 and weighed by how rare it is.

Words that mean much the same count too: "murdered" and "killed". The model's own input embedding knows which words are
used alike. Words of several tokens have no vector there and are left alone.

A sentence also scores if it holds something of the form asked for, such as an age or a date. How much each of these
says was learned from questions on other books (benchmarks/questions/train_proximity.py).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from ttt_docs.lookup.question import Query, form_of
from ttt_docs.model.decoder import Decoder
from ttt_docs.text.index import PassageIndex, token_terms
from ttt_docs.text.sentences import Span
from ttt_docs.text.tokenizer import Tokenizer

#: Distances in characters at which a term, and a word related to one, no longer counts.
REACHES, RELATED_REACH = (120, 500, 2500), 500
#: BM25: how soon more of the same term stops counting.
K1 = 0.8
#: What a sentence is judged by: the question's terms within each distance, what related words add to them, and whether
#: it holds something of the form asked for.
FEATURES = (*(f"near {reach}" for reach in REACHES), "related", "form")


class Hit(NamedTuple):
    """A sentence that may hold the answer, by its number, and the score of its surroundings."""

    sentence: int
    score: float


def hits(index: PassageIndex, scores: np.ndarray, count: int, apart: int) -> list[Hit]:
    """The best sentences by `scores` [sentences], best first, at most `count`.

    No two are within the same `apart` characters.
    """
    left = scores.copy()
    found: list[Hit] = []
    while len(found) < count and len(left) and left[best := int(left.argmax())] > 0:
        found.append(Hit(best, float(scores[best])))
        left[slice(*surroundings(index, best, apart))] = 0
    return found


def sentence_scores(index: PassageIndex, query: Query, related: Mapping[str, Mapping[str, float]]) -> np.ndarray:
    """Log odds, up to a constant, that an answer stands there: float32 [sentences], 0 where no term is near.

    `related`: for words of the question, the words that mean much the same, with their cosine.
    """
    found = features(index, query, related)
    return np.where(found[:, :-1].any(1), found @ weights(), 0).astype(np.float32)


@cache
def weights() -> np.ndarray:
    """What each of `FEATURES` counts, float32 [features]."""
    kept = json.loads(Path(__file__).with_name("proximity.json").read_text("utf-8"))
    return np.array([kept[name] for name in FEATURES], dtype=np.float32)


def features(index: PassageIndex, query: Query, related: Mapping[str, Mapping[str, float]]) -> np.ndarray:
    """The values of `FEATURES`, float32 [sentences, features]."""
    middles = np.array(index.sentences, dtype=np.float64).reshape(-1, 2).mean(1)

    def saturated(sentences: np.ndarray, counts: np.ndarray, reach: int) -> np.ndarray:
        near = _nearness(middles, sentences, counts, reach)
        return near / (near + K1)

    found = {name: np.zeros(len(middles)) for name in FEATURES}
    for term, factor in query.weights.items():
        rarity = factor * index.weight(term)
        held = index.held_by(term)
        own = {reach: saturated(held, np.ones(len(held)), reach) for reach in REACHES}
        for reach, near in own.items():
            found[f"near {reach}"] += rarity * near
        words = related.get(query.words[term], {})
        near = saturated(*_with_related(index, query, term, words), RELATED_REACH)
        found["related"] += rarity * (near - own[RELATED_REACH])
    form = form_of(query.text)
    if form is not None and len(middles):
        holding = np.array([form.within(index.text, span) for span in index.sentences], dtype=bool)
        found["form"] = holding * math.log(len(holding) / max(int(holding.sum()), 1))
    return np.stack(list(found.values()), axis=1).astype(np.float32)


def surroundings(index: PassageIndex, sentence: int, size: int, within: Span | None = None) -> tuple[int, int]:
    """First and last sentence (excluded) of the nearest ones around a sentence, at most `size` characters in all.

    None is outside of the characters `within`.
    """
    spans = index.sentences
    low, high = within or (0, len(index.text))
    first, last = sentence, sentence + 1
    start, end = spans[sentence]
    while True:
        before = first > 0 and spans[first - 1][0] >= low and spans[last - 1][1] - spans[first - 1][0] <= size
        after = last < len(spans) and spans[last][1] <= high and spans[last][1] - spans[first][0] <= size
        if not (before or after):
            return first, last
        if before and not (after and spans[last][0] - end < start - spans[first - 1][1]):
            first -= 1
        else:
            last += 1


def _with_related(
    index: PassageIndex, query: Query, term: str, words: Mapping[str, float]
) -> tuple[np.ndarray, np.ndarray]:
    """The sentences that hold a term or one related to it, in order with repeats, and what each occurrence counts.

    A related word counts by its cosine, and less where it is more common than the term itself. The question's own terms
    are counted elsewhere.
    """
    own, counts = index.weight(term), {term: 1.0}
    for word, cosine in words.items():
        for other in token_terms(word, index.language):
            if other not in query.weights:
                counts[other] = max(counts.get(other, 0.0), cosine * min(1.0, index.weight(other) / own))
    held = [index.held_by(one) for one in counts]
    sentences = np.concatenate(held)
    order = np.argsort(sentences, kind="stable")
    return sentences[order], np.repeat(list(counts.values()), [len(one) for one in held])[order]


def _nearness(middles: np.ndarray, sentences: np.ndarray, counts: np.ndarray, reach: int) -> np.ndarray:
    """For every sentence, the sum of count * (1 - distance / reach) over the occurrences within `reach`: [sentences].

    `sentences` are those of the occurrences, in order with repeats; `middles` are all sentences' middles in characters.
    """
    at = middles[sentences]
    sizes = np.concatenate(([0.0], np.cumsum(counts)))
    sums = np.concatenate(([0.0], np.cumsum(counts * at)))
    left = np.searchsorted(at, middles - reach, "left")
    here, right = (np.searchsorted(at, middles + ahead, "right") for ahead in (0, reach))
    before = (sizes[here] - sizes[left]) * (1 - middles / reach) + (sums[here] - sums[left]) / reach
    after = (sizes[right] - sizes[here]) * (1 + middles / reach) - (sums[right] - sums[here]) / reach
    return np.where(right > left, np.maximum(before + after, 0), 0)  # rounding leaves nothing beyond the reach


#: Cosine from which on words are related, and how many are at most for one word.
LEAST, MOST = 0.33, 40


@dataclass(frozen=True)
class _Words:
    """The whole words of a vocabulary: their tokens, and what turns a product with the embedding into a cosine."""

    tokens: dict[str, int]
    ids: Tensor  # int64 [words]: the same tokens
    centre: Tensor  # float32 [dim]
    norms: Tensor  # float32 [words]: length of the centred vectors


_KNOWN: WeakKeyDictionary[Decoder, _Words] = WeakKeyDictionary()


@torch.no_grad()
def related(model: Decoder, tokenizer: Tokenizer, words: Sequence[str]) -> dict[str, dict[str, float]]:
    """For each of `words` (in lower case) the nearest ones in the model's input embedding, with their cosine."""
    known = _KNOWN.get(model) or _KNOWN.setdefault(model, _words(model, tokenizer))
    asked = [word for word in dict.fromkeys(words) if word in known.tokens]
    if not asked:
        return {}
    weight, names = model.embed.weight, list(known.tokens)
    own = weight[[known.tokens[word] for word in asked]].float() - known.centre
    own = torch.nn.functional.normalize(own, dim=1)
    products = (weight @ own.T.to(weight.dtype)).float()[known.ids] - own @ known.centre  # [words, asked]
    cosines, rows = (products / known.norms[:, None]).topk(min(MOST + 1, len(names)), dim=0)
    found: dict[str, dict[str, float]] = {}
    for word, near, far in zip(asked, rows.T.tolist(), cosines.T.tolist(), strict=True):
        pairs = zip(near, far, strict=True)
        found[word] = {names[row]: cosine for row, cosine in pairs if cosine >= LEAST and names[row] != word}
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
    return _Words(tokens, ids, centre, norms)
