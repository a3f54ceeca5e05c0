"""Where in a text an answer should stand, for questions that are not asked in its words.

Each term of the question is a hill over the text: highest at the sentences that hold it or a word related to it, and
down to nothing some distance from them. Narrow hills say that terms stand together, wide ones what a chapter is about.
Each is levelled off as in BM25 and counts by how rare the term is. How much each kind of hill says, and a sentence that
holds something of the form asked for, was learned from questions on other books (benchmarks/questions/train_places.py).
The best sentences that are not near one another are the places to read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from ttt_docs.lookup.forms import form_of
from ttt_docs.lookup.index import PassageIndex
from ttt_docs.lookup.query import Query
from ttt_docs.lookup.terms import terms, token_terms
from ttt_docs.text.sentences import Span

#: Characters from a term, and from a word related to one, to where it counts no more.
REACHES, RELATED_REACHES = (120, 500, 2500), (120, 500)
#: How soon more of the same term stops counting.
K1 = 0.8
#: What a sentence is told by: names and other words within each reach, what related words add to them, whether it holds
#: something of the form asked for, its length.
FEATURES = (
    *(f"name {reach}" for reach in REACHES),
    *(f"word {reach}" for reach in REACHES),
    *(f"related {reach}" for reach in RELATED_REACHES),
    "form",
    "length",
)

#: How many of them are hills: without any, a sentence has nothing to do with the question.
_HILLS = len(REACHES) * 2 + len(RELATED_REACHES)

Related = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Place:
    """A sentence that may hold the answer, by its number, and the score of its surroundings."""

    sentence: int
    score: float


def places(index: PassageIndex, query: Query, related: Related, count: int, apart: int) -> list[Place]:
    """The best sentences, best first, at most `count`; of `apart` characters around each no other is taken.

    `related`: for words of the question, those that mean much the same, with their cosine.
    """
    return best_places(index, sentence_scores(index, query, related), count, apart)


def best_places(index: PassageIndex, scores: np.ndarray, count: int, apart: int) -> list[Place]:
    """As `places`, by scores [sentences]."""
    left = scores.copy()
    found: list[Place] = []
    while len(found) < count and len(left) and left[best := int(left.argmax())] > 0:
        found.append(Place(best, float(scores[best])))
        first, last = surroundings(index, best, apart)
        left[first:last] = 0
    return found


def sentence_scores(index: PassageIndex, query: Query, related: Related) -> np.ndarray:
    """float32 [sentences]: log odds, up to a constant, that an answer stands there; 0 far from all of the question."""
    found = features(index, query, related)
    return np.where(found[:, :_HILLS].any(1), found @ weights(), 0).astype(np.float32)


@cache
def weights() -> np.ndarray:
    """float32 [features]"""
    kept = json.loads(Path(__file__).with_name("places.json").read_text("utf-8"))
    return np.array([kept[name] for name in FEATURES], dtype=np.float32)


def features(index: PassageIndex, query: Query, related: Related) -> np.ndarray:
    """float32 [sentences, features]: what `FEATURES` names."""
    bounds = np.array(index.sentences, dtype=np.float64).reshape(-1, 2)
    middles = bounds.mean(1)
    found = {name: np.zeros(len(middles)) for name in FEATURES}
    named = {term for name in query.names for term in terms(name, index.language)}
    for term, factor in query.weights.items():
        rarity = factor * index.weight(term)
        held = index.held_by(term)
        counts = np.ones(len(held))
        own = {reach: _levelled(_hill(middles, held, counts, reach)) for reach in REACHES}
        for reach, hill in own.items():
            found[f"{'name' if term in named else 'word'} {reach}"] += rarity * hill
        others = _others(index, query, related.get(query.words[term], {}))
        if others:
            held, counts = _together(index, term, others)
            for reach in RELATED_REACHES:
                found[f"related {reach}"] += rarity * (_levelled(_hill(middles, held, counts, reach)) - own[reach])
    form = form_of(query.text)
    if form is not None and len(middles):
        holding = np.array([form.within(index.text, span) for span in index.sentences], dtype=bool)
        found["form"] = holding * math.log(len(holding) / max(int(holding.sum()), 1))
    found["length"] = np.log1p((bounds[:, 1] - bounds[:, 0]) / 100)
    return np.stack([found[name] for name in FEATURES], axis=1).astype(np.float32)


def surroundings(index: PassageIndex, sentence: int, size: int, within: Span | None = None) -> tuple[int, int]:
    """First and last sentence (excluded) of at most `size` characters around one, the nearest ones first.

    `within`: characters that are not left.
    """
    spans = index.sentences
    low, high = within or (0, len(index.text))
    first, last = sentence, sentence + 1
    start, end = spans[sentence]
    while True:
        steps = []
        if first and spans[first - 1][0] >= low and spans[last - 1][1] - spans[first - 1][0] <= size:
            steps.append((start - spans[first - 1][1], -1))
        if last < len(spans) and spans[last][1] <= high and spans[last][1] - spans[first][0] <= size:
            steps.append((spans[last][0] - end, 1))
        if not steps:
            return first, last
        if min(steps)[1] < 0:
            first -= 1
        else:
            last += 1


def _others(index: PassageIndex, query: Query, words: Mapping[str, float]) -> dict[str, float]:
    """The terms of related words that the question has not, with the largest cosine of each."""
    found: dict[str, float] = {}
    for word, cosine in words.items():
        for term in token_terms(word, index.language):
            if term not in query.weights:
                found[term] = max(cosine, found.get(term, 0.0))
    return found


def _together(index: PassageIndex, term: str, others: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """The sentences that hold a term or one of those related to it, in order, and what each time counts.

    A related word counts by its cosine, and less where it is more common than the term itself.
    """
    own = index.weight(term)
    parts = [(index.held_by(term), 1.0)]
    parts += [(index.held_by(other), cosine * min(1.0, index.weight(other) / own)) for other, cosine in others.items()]
    held = np.concatenate([sentences for sentences, _ in parts])
    counts = np.concatenate([np.full(len(sentences), count) for sentences, count in parts])
    order = np.argsort(held, kind="stable")
    return held[order], counts[order]


def _hill(middles: np.ndarray, sentences: np.ndarray, counts: np.ndarray, reach: int) -> np.ndarray:
    """For every sentence the sum of count * (1 - distance / reach), where positive, over `sentences` (in order, with
    repeats) and their `counts`."""
    if not len(sentences):
        return np.zeros(len(middles))
    at = middles[sentences]
    sizes = np.concatenate(([0.0], np.cumsum(counts)))
    sums = np.concatenate(([0.0], np.cumsum(counts * at)))
    left = np.searchsorted(at, middles - reach, "left")
    here, right = (np.searchsorted(at, middles + ahead, "right") for ahead in (0, reach))
    before = (sizes[here] - sizes[left]) * (1 - middles / reach) + (sums[here] - sums[left]) / reach
    after = (sizes[right] - sizes[here]) * (1 + middles / reach) - (sums[right] - sums[here]) / reach
    return np.where(right > left, np.maximum(before + after, 0), 0)  # rounding reaches no farther than the hills


def _levelled(hill: np.ndarray) -> np.ndarray:
    return hill / (hill + K1)
