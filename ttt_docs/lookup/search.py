"""Finding sentences and passages for a question, and answers whose wording leaves no doubt; no model is needed.

A sentence that names all of what a question names, and holds one thing more of the kind asked for, answers it. For
questions that ask for no particular kind of thing, the answer is what the sentence says beyond the question.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ttt_docs.lookup.index import TOKEN, PassageIndex, token_terms
from ttt_docs.lookup.question import Query, candidates
from ttt_docs.text.sentences import Span

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
    found = {key: occurrences(index.text, key) for key in query.keys}
    missing = tuple(key for key, spans in found.items() if not spans)
    keyed = [{index.sentence_at(start) for start, _ in spans} for spans in found.values() if spans]
    scores = index.scores(query.weights)
    top = _largest(scores, limit)
    numbers = {i for p in top for i in range(index.firsts[p], index.lasts[p])} | set().union(*keyed)
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


def _passage_of(index: PassageIndex, sentence: int) -> int:
    """The first passage that holds a sentence with at least one more after it, where there is such a passage."""
    last = int(np.searchsorted(index.lasts, sentence, side="right"))
    following = last + 1
    inside = following < len(index) and index.firsts[following] < sentence
    return following if inside and index.lasts[last] == sentence + 1 else last


#: Share of the question's weight that a sentence names if it answers by itself; with all the question's keys in it,
#: fewer other words will do.
COVERED, COVERED_KEYS = 0.9, 0.5
#: Sentences within this much of the best one's coverage say the same about other things of the kind.
ALIKE = 0.02
_TELLS = re.compile(r"(?:\b(?:is|are|was|were|means|equals)|[:=|→\t]|-->?|->|[–—])\W*$")
#: Characters of an answer that has no form of its own.
_LONGEST = 200


@dataclass(frozen=True)
class Value:
    """An answer, text[start:end], and the sentence it stands in."""

    start: int
    end: int
    sentence: Sentence


def extract(index: PassageIndex, query: Query, found: Found) -> list[Value]:
    """The values of the best sentences, in the document's order; empty where it takes reading to tell."""
    if not found.sentences or query.kind == "mention":
        return []
    best = found.sentences[0]
    least = COVERED_KEYS if query.keys and not found.missing else COVERED
    if best.coverage < least or not _has_keys(index.text, best, query):
        return []
    alike = [
        s
        for s in found.sentences
        if s.coverage >= best.coverage - ALIKE and (s is best or _has_keys(index.text, s, query))
    ]
    values: dict[str, Value] = {}  # what is written the same is one value
    for sentence in sorted(alike, key=lambda s: s.index):
        spans = answers_in(index, query, sentence)
        if len(spans) > 1 and not query.many:
            nearest = _nearest(index, query, sentence, spans)
            if nearest is None:
                return []
            spans = [nearest]
        for start, end in spans:
            values.setdefault(" ".join(index.text[start:end].lower().split()), Value(start, end, sentence))
    return list(values.values())


def answers_in(index: PassageIndex, query: Query, sentence: Sentence) -> list[Span]:
    """Spans of a sentence that are of the kind asked for and not part of the question."""
    text = index.text
    asked = [span for key in query.keys for span in occurrences(text[sentence.start : sentence.end], key)]
    taken = [(sentence.start + a, sentence.start + b) for a, b in asked]
    spans = [
        (a, b)
        for a, b in candidates(text, sentence.start, sentence.end, query.kind)
        if not any(a < end and start < b for start, end in taken) and not query.says(index.terms(a, b))
    ]
    return spans or _beyond(index, query, sentence, taken)


def _has_keys(text: str, sentence: Sentence, query: Query) -> bool:
    return all(occurrences(text[sentence.start : sentence.end], key) for key in query.keys)


def _beyond(index: PassageIndex, query: Query, sentence: Sentence, taken: Sequence[Span]) -> list[Span]:
    """What a sentence such as "KEY is VALUE" says after everything that the question names."""
    text, last = index.text, max((end for _, end in taken), default=sentence.start)
    for match in TOKEN.finditer(text, sentence.start, sentence.end):
        if any(term in query.weights for term in token_terms(match.group(), index.language)):
            last = max(last, match.end())
    rest = TOKEN.search(text, last, sentence.end)
    while rest is not None and not _TELLS.search(text[last : rest.start()]):
        if token_terms(rest.group(), index.language):
            return []
        rest = TOKEN.search(text, rest.end(), sentence.end)
    if rest is None:
        return []
    start, end = rest.start(), sentence.end
    while end > start and text[end - 1] in ' \t\n.!?;,。！？"”’»)':
        end -= 1
    return [(start, end)] if 0 < end - start <= _LONGEST else []


def _nearest(index: PassageIndex, query: Query, sentence: Sentence, spans: Sequence[Span]) -> Span | None:
    """The one that follows next on the question's key, if something between them says that it is its value."""
    text = index.text
    for key in query.keys:
        for _, end in occurrences(text[sentence.start : sentence.end], key):
            after = [span for span in spans if span[0] >= sentence.start + end]
            if after and _TELLS.search(text[sentence.start + end : after[0][0]]):
                return after[0]
    return None
