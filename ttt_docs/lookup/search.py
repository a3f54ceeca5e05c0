"""Where in a text an answer should stand: its passages and sentences, best first."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from ttt_docs.lookup.index import PassageIndex
from ttt_docs.lookup.query import Query

#: Passages whose sentences are looked at one by one.
LOOKED_AT = 40
#: What a question's term counts for in a neighbour of the sentence, against 1 in the sentence itself.
NEAR = 0.4
_PART = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Sentence:
    """A sentence that may hold the answer: `coverage` is the share of the question's weight that it names itself."""

    index: int  # among the index's sentences
    start: int
    end: int
    coverage: float
    score: float  # coverage, and what its neighbours name


@dataclass(frozen=True)
class Found:
    """What a search found, best first: `passages` are (number, score); the text does not hold the keys in `missing`."""

    passages: list[tuple[int, float]]
    sentences: list[Sentence]
    missing: tuple[str, ...]


def search(index: PassageIndex, query: Query, limit: int = LOOKED_AT) -> Found:
    """The passages and sentences of a text that a question is about, best first. Empty where nothing fits."""
    weights = {term: factor * index.weight(term) for term, factor in query.weights.items()}
    places = {key: occurrences(index.text, key) for key in query.keys}
    missing = tuple(key for key, spans in places.items() if not spans)
    keyed = [{index.sentence_at(start) for start, _ in spans} for spans in places.values() if spans]
    scores = index.scores(query.weights)
    top = _largest(scores, limit)
    numbers = {i for p in top for i in range(index.firsts[p], index.lasts[p])} | set().union(*keyed)
    named = {i: frozenset(index.terms(*index.sentences[i])) for i in _with_neighbours(numbers, len(index.sentences))}
    total = sum(weights.values()) or 1.0
    sentences = []
    for i in numbers:
        own = named[i] & weights.keys()
        near = (named.get(i - 1, frozenset()) | named.get(i + 1, frozenset())) & weights.keys() - own
        coverage = sum(weights[t] for t in own) / total
        score = coverage + NEAR * sum(weights[t] for t in near) / total + sum(i in held for held in keyed)
        sentences.append(Sentence(i, *index.sentences[i], coverage, score))
    sentences.sort(key=lambda s: (-s.score, s.index))
    best = {s.index: s.score for s in sentences}
    largest = float(scores.max()) if len(scores) else 0.0
    passages = {int(p) for p in top} | {_passage_of(index, s.index) for s in sentences[:limit]}
    ranked = [
        (p, float(scores[p]) / (largest or 1.0) + max(best.get(i, 0.0) for i in range(index.firsts[p], index.lasts[p])))
        for p in passages
    ]
    return Found(sorted(ranked, key=lambda item: (-item[1], item[0])), sentences, missing)


def occurrences(text: str, key: str) -> list[tuple[int, int]]:
    """Spans where a key stands as whole words, whatever joins its parts and however it is capitalized."""
    parts = _PART.findall(key)
    if not parts:
        return []
    pattern = r"(?<![^\W_])" + r"[\W_]{0,3}?".join(map(re.escape, parts)) + r"(?![^\W_])"
    exact = [m.span() for m in re.finditer(pattern, text)]
    return exact or [m.span() for m in re.finditer(pattern, text, re.IGNORECASE)]


def _largest(scores: np.ndarray, count: int) -> list[int]:
    """The passages that score at all, best first, at most `count`."""
    order = np.argsort(-scores, kind="stable")[:count] if len(scores) <= 4 * count else None
    if order is None:
        order = np.argpartition(-scores, count)[:count]
        order = order[np.lexsort((order, -scores[order]))]
    return [int(p) for p in order if scores[p] > 0]


def _with_neighbours(numbers: set[int], count: int) -> set[int]:
    return {j for i in numbers for j in (i - 1, i, i + 1) if 0 <= j < count}


def _passage_of(index: PassageIndex, sentence: int) -> int:
    """The first passage that holds a sentence with at least one more after it, where there is such a passage."""
    last = int(np.searchsorted(index.lasts, sentence, side="right"))
    following = last + 1
    inside = following < len(index) and index.firsts[following] < sentence
    return following if inside and index.lasts[last] == sentence + 1 else last
