"""Finding sentences and passages for a question, and answers whose wording leaves no doubt; no model is needed.

A sentence that names all of what a question names, and holds one thing more of the kind asked for, answers it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from ttt_docs.lookup.question import Query, candidates
from ttt_docs.text.index import PassageIndex
from ttt_docs.text.sentences import Span

#: Passages whose sentences are looked at one by one, and sentences whose passages are found too.
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

    @property
    def best(self) -> Sentence:
        """The best sentence; an empty one where nothing was found."""
        return self.sentences[0] if self.sentences else Sentence(0, 0, 0, 0.0, 0.0)


def search(index: PassageIndex, query: Query) -> Found:
    """The passages and sentences of a text that a question is about, best first. Empty where nothing fits."""
    weights = {term: factor * index.weight(term) for term, factor in query.weights.items()}
    found = {key: occurrences(index.text, key) for key in query.keys}
    missing = tuple(key for key, spans in found.items() if not spans)
    keyed = [{index.sentence_at(start) for start, _ in spans} for spans in found.values()]
    scores = index.scores(query.weights)
    top = [int(p) for p in np.argsort(-scores, kind="stable")[:LOOKED_AT] if scores[p] > 0]
    numbers = {i for p in top for i in range(index.firsts[p], index.lasts[p])}.union(*keyed)
    wanted = {j for i in numbers for j in (i - 1, i, i + 1) if 0 <= j < len(index.sentences)}
    named = {i: frozenset(index.terms(*index.sentences[i])) for i in wanted}
    total = sum(weights.values()) or 1.0
    sentences = []
    for i in numbers:
        beside = named.get(i - 1, frozenset()) | named.get(i + 1, frozenset())
        own = [term for term in weights if term in named[i]]  # in order, so that the sums have the same bits every time
        near = [term for term in weights if term in beside and term not in named[i]]
        coverage = sum(weights[t] for t in own) / total
        score = coverage + NEAR * sum(weights[t] for t in near) / total + sum(i in held for held in keyed)
        sentences.append(Sentence(i, *index.sentences[i], coverage, score))
    sentences.sort(key=lambda s: (-s.score, s.index))
    best = {s.index: s.score for s in sentences}
    most = float(scores.max(initial=0.0)) or 1.0
    passages = {*top, *np.searchsorted(index.lasts, [s.index for s in sentences[:LOOKED_AT]], side="right").tolist()}
    ranked = [
        (p, float(scores[p]) / most + max(best.get(i, 0.0) for i in range(index.firsts[p], index.lasts[p])))
        for p in passages
    ]
    return Found(sorted(ranked, key=lambda item: (-item[1], item[0])), sentences, missing)


def occurrences(text: str, key: str, any_case: bool = False) -> list[tuple[int, int]]:
    """Spans where a key stands as whole words, whatever joins its parts.

    Capitals count unless the key stands nowhere with its own, or with `any_case`.
    """
    parts = _PART.findall(key)
    if not parts:
        return []
    pattern = r"(?<![^\W_])" + r"[\W_]{0,3}?".join(map(re.escape, parts)) + r"(?![^\W_])"
    exact = [] if any_case else [m.span() for m in re.finditer(pattern, text)]
    return exact or [m.span() for m in re.finditer(pattern, text, re.IGNORECASE)]


#: Share of the question's weight that a sentence names if it answers by itself; with all the question's keys in it,
#: fewer other words will do.
COVERED, COVERED_KEYS = 0.9, 0.5
#: Sentences within this much of the best one's coverage say the same about other things of the kind.
ALIKE = 0.02


def extract(index: PassageIndex, query: Query, found: Found) -> list[tuple[Sentence, Span]]:
    """The values of the best sentences, as spans of the text, in order; empty where it takes reading to tell."""
    best = found.best
    if best.coverage < (COVERED_KEYS if query.keys else COVERED) or not _has_keys(index, best, query):
        return []
    values: dict[str, tuple[Sentence, Span]] = {}  # what is written the same is one value
    for sentence in sorted(found.sentences, key=lambda s: s.index):
        if sentence.coverage < best.coverage - ALIKE or not _has_keys(index, sentence, query):
            continue
        text = index.text[sentence.start : sentence.end]
        asked = [span for key in query.keys for span in occurrences(text, key)]
        spans = [
            (a, b)
            for a, b in candidates(text, query.kind)
            if not any(a < end and start < b for start, end in asked)
            and not all(term in query.weights for term in index.terms(sentence.start + a, sentence.start + b))
        ]
        if len(spans) > 1 and not query.many:
            return []
        for a, b in spans:
            span = (sentence.start + a, sentence.start + b)
            values.setdefault(" ".join(text[a:b].lower().split()), (sentence, span))
    return list(values.values())


def _has_keys(index: PassageIndex, sentence: Sentence, query: Query) -> bool:
    return all(occurrences(index.text[sentence.start : sentence.end], key) for key in query.keys)
