"""Where in a text an answer should stand, for questions that are not asked in its words.

Each term of the question is a hill over the text: highest at the sentences that hold it or a word related to it, and
down to nothing REACH characters from them. What an answer looks like counts as one more term. A sentence's score is
the sum of its hills, each levelled off as in BM25 and weighted by how rare the term is; the best sentences that are
not near one another are the places to read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ttt_docs.lookup.forms import form_of
from ttt_docs.lookup.index import PassageIndex
from ttt_docs.lookup.passages import Span
from ttt_docs.lookup.query import Query
from ttt_docs.lookup.terms import terms, token_terms

#: Characters from a term to where it counts no more; of the answer's form, which stands close to it.
REACH, FORM_REACH = 400, 300
#: How soon more of the same term stops counting, for terms and for the answer's form.
K1, FORM_K1 = 0.8, 0.5
#: What a related word counts for beside the question's own, times its cosine; what a name counts for.
RELATED, NAME = 0.6, 1.5


@dataclass(frozen=True)
class Place:
    """A sentence that may hold the answer, by its number, and the score of its surroundings."""

    sentence: int
    score: float


def places(
    index: PassageIndex, query: Query, related: Mapping[str, Mapping[str, float]], count: int, apart: int
) -> list[Place]:
    """The best sentences, best first, at most `count`; of `apart` characters around each no other is taken."""
    scores = sentence_scores(index, query, related)
    left = scores.copy()
    found: list[Place] = []
    while len(found) < count and len(left) and left[best := int(left.argmax())] > 0:
        found.append(Place(best, float(scores[best])))
        first, last = surroundings(index, best, apart)
        left[first:last] = 0
    return found


def sentence_scores(index: PassageIndex, query: Query, related: Mapping[str, Mapping[str, float]]) -> np.ndarray:
    """float32 [sentences]; 0 far from all terms of the question."""
    middles = np.array(index.sentences, dtype=np.float64).reshape(-1, 2).mean(1)
    total = np.zeros(len(middles), dtype=np.float32)
    named = {term for name in query.names for term in terms(name, index.language)}
    for term, factor in query.weights.items():
        own = index.weight(term)
        best = _levelled(_hill(middles, index.held_by(term), REACH), K1) * own
        for other, cosine in _others(index, query, related.get(query.words[term], {})).items():
            hill = RELATED * cosine * _hill(middles, index.held_by(other), REACH)
            best = np.maximum(best, min(own, index.weight(other)) * _levelled(hill, K1))
        total += factor * (NAME if term in named else 1.0) * best
    form = form_of(query.text)
    if form is not None:
        holding = np.array([form.within(index.text, span) for span in index.sentences], dtype=bool)
        rare = math.log(len(holding) / max(int(holding.sum()), 1))
        total += np.where(total > 0, rare * _levelled(_hill(middles, holding.nonzero()[0], FORM_REACH), FORM_K1), 0)
    return total


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


def _hill(middles: np.ndarray, sentences: np.ndarray, reach: int) -> np.ndarray:
    """For every sentence the sum of 1 - distance / reach, where positive, over `sentences` (in order, with repeats)."""
    if not len(sentences):
        return np.zeros(len(middles))
    at = middles[sentences]
    sums = np.concatenate(([0.0], np.cumsum(at)))
    left = np.searchsorted(at, middles - reach, "left")
    here, right = (np.searchsorted(at, middles + ahead, "right") for ahead in (0, reach))
    before = (here - left) * (1 - middles / reach) + (sums[here] - sums[left]) / reach
    after = (right - here) * (1 + middles / reach) - (sums[right] - sums[here]) / reach
    return before + after


def _levelled(hill: np.ndarray, k1: float) -> np.ndarray:
    return hill / (hill + k1)
