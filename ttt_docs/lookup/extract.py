"""Answers taken straight from the sentences found, where their wording leaves no doubt; no model is needed.

A sentence that names all of what a question names, and holds one thing more of the kind asked for, answers it. For
questions that ask for no particular kind of thing, the answer is what the sentence says beyond the question.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ttt_docs.lookup.candidates import candidates
from ttt_docs.lookup.index import PassageIndex
from ttt_docs.lookup.query import Query
from ttt_docs.lookup.search import Found, Sentence, occurrences
from ttt_docs.lookup.terms import TOKEN, token_terms
from ttt_docs.text.sentences import Span

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
    values: list[Value] = []
    for sentence in sorted(alike, key=lambda s: s.index):
        spans = answers_in(index, query, sentence)
        if len(spans) > 1 and not query.many:
            nearest = _nearest(index, query, sentence, spans)
            if nearest is None:
                return []
            spans = [nearest]
        values += (Value(*span, sentence) for span in spans)
    return _distinct(index.text, values)


def answers_in(index: PassageIndex, query: Query, sentence: Sentence) -> list[Span]:
    """Spans of a sentence that are of the kind asked for and not part of the question."""
    text = index.text
    asked = [span for key in query.keys for span in occurrences(text[sentence.start : sentence.end], key)]
    taken = [(sentence.start + a, sentence.start + b) for a, b in asked]
    spans = [
        (a, b)
        for a, b in candidates(text, sentence.start, sentence.end, query.kind)
        if not any(a < end and start < b for start, end in taken) and not _is_asked(index, query, a, b)
    ]
    return spans or _beyond(index, query, sentence, taken)


def _has_keys(text: str, sentence: Sentence, query: Query) -> bool:
    return all(occurrences(text[sentence.start : sentence.end], key) for key in query.keys)


def _is_asked(index: PassageIndex, query: Query, start: int, end: int) -> bool:
    """Whether the question itself says what stands there."""
    return all(term in query.weights for term in index.terms(start, end))


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


def _distinct(text: str, values: Sequence[Value]) -> list[Value]:
    seen: dict[str, Value] = {}
    for value in values:
        seen.setdefault(" ".join(text[value.start : value.end].lower().split()), value)
    return list(seen.values())
