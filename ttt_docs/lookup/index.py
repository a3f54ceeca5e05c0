"""A sparse index over a text's passages (BM25), built in about a second per million characters.

It is made from the text alone when a document is taken in, and kept in the memory (`stored`).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from itertools import chain

import numpy as np

from ttt_docs.lookup.passages import passages
from ttt_docs.lookup.terms import TOKEN, language_of, terms, token_terms
from ttt_docs.text.sentences import Span, short_sentences

#: BM25: how soon more of the same term stops counting, and how much longer passages are held back.
K1, B = 1.2, 0.75


@dataclass(frozen=True, eq=False)
class PassageIndex:
    """The passages of a text and, for each term, the passages it stands in with its weight there.

    Columns are terms: passages `indices[indptr[t]:indptr[t + 1]]` have the weights `data[...]`, which hold BM25's
    inverse document frequency within this text.
    """

    text: str
    language: str
    sentences: list[Span]
    firsts: np.ndarray  # int32 [passages]: its first sentence
    lasts: np.ndarray  # int32 [passages]: the one after its last
    vocabulary: dict[str, int]
    data: np.ndarray  # float32 [entries]
    indices: np.ndarray  # int32 [entries]
    indptr: np.ndarray  # int64 [terms + 1]
    holders: np.ndarray  # int32 [occurrences]: the sentences that hold each term, term by term
    holders_from: np.ndarray  # int64 [terms + 1]: where each term's begin

    def __len__(self) -> int:
        return len(self.firsts)

    def span(self, passage: int) -> Span:
        """Characters of a passage."""
        return self.sentences[self.firsts[passage]][0], self.sentences[self.lasts[passage] - 1][1]

    def frequency(self, term: str) -> int:
        """In how many passages a term stands."""
        column = self.vocabulary.get(term)
        return 0 if column is None else int(self.indptr[column + 1] - self.indptr[column])

    def held_by(self, term: str) -> np.ndarray:
        """The sentences that hold a term, in order, each as often as it does: int32 [occurrences]."""
        column = self.vocabulary.get(term)
        return self.holders[:0] if column is None else self.holders[slice(*self.holders_from[column : column + 2])]

    def weight(self, term: str) -> float:
        """Inverse document frequency, the rarer the larger; of a term that is nowhere, as if it were in one passage."""
        return inverse_frequency(max(self.frequency(term), 1), max(len(self), 1))

    def scores(self, weights: dict[str, float]) -> np.ndarray:
        """BM25 of every passage [passages] for terms with these factors."""
        total = np.zeros(len(self), dtype=np.float32)
        for term, factor in weights.items():
            column = self.vocabulary.get(term)
            if column is not None:
                part = slice(self.indptr[column], self.indptr[column + 1])
                total[self.indices[part]] += factor * self.data[part]
        return total

    def terms(self, start: int, end: int) -> list[str]:
        """The terms of text[start:end]."""
        return terms(self.text[start:end], self.language)

    def sentence_at(self, character: int) -> int:
        """The sentence that holds a character, or the one before it."""
        return max(bisect_right(self.sentences, character, key=lambda span: span[0]) - 1, 0)


def inverse_frequency(frequency: int, passages: int) -> float:
    return math.log(1 + (passages - frequency + 0.5) / (frequency + 0.5))


def build(text: str) -> PassageIndex:
    """The index of a text."""
    language = language_of(text)
    spans = short_sentences(text)
    vocabulary: dict[str, int] = {}
    known: dict[str, list[int]] = {}

    def columns(token: str) -> list[int]:
        found = known.get(token)
        if found is None:
            found = known[token] = [vocabulary.setdefault(t, len(vocabulary)) for t in token_terms(token, language)]
        return found

    rows = [list(chain.from_iterable(map(columns, TOKEN.findall(text, *span)))) for span in spans]
    held = np.fromiter(chain.from_iterable(rows), np.int32)
    holders = np.repeat(np.arange(len(rows), dtype=np.int32), [len(row) for row in rows])
    return assembled(text, spans, vocabulary, held, holders)


def assembled(
    text: str, spans: list[Span], vocabulary: dict[str, int], held: np.ndarray, holders: np.ndarray
) -> PassageIndex:
    """The index of a text whose sentences `spans` hold these terms.

    `held` and `holders`, int32 [occurrences] in the order of the text: a term, and the sentence that holds it.
    """
    firsts, lasts = passages(spans)
    begins = np.searchsorted(holders, np.arange(len(spans) + 1))
    documents = [held[a:b].tolist() for a, b in zip(begins[firsts].tolist(), begins[lasts].tolist(), strict=True)]
    data, indices, indptr = _matrix(documents, vocabulary)
    order = np.argsort(held, kind="stable")
    holders_from = np.concatenate(([0], np.cumsum(np.bincount(held, minlength=len(vocabulary)))))
    return PassageIndex(
        text,
        language_of(text),
        spans,
        firsts,
        lasts,
        vocabulary,
        data,
        indices,
        indptr,
        holders[order],
        holders_from,
    )


def _matrix(documents: list[list[int]], vocabulary: dict[str, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if not vocabulary:  # nothing but punctuation
        return np.zeros(0, np.float32), np.zeros(0, np.int32), np.zeros(1, np.int64)
    import bm25s

    retriever = bm25s.BM25(k1=K1, b=B, method="lucene")
    retriever.index((documents, dict(vocabulary)), show_progress=False)  # it adds a term of its own
    return tuple(retriever.scores[name] for name in ("data", "indices", "indptr"))
