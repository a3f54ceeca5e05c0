"""Makes questions without labels out of those of the training half: for the teacher to judge, and the networks to learn
its judgement (teacher.py).

Words are exchanged for words with a near vector, or any words; the beginning of one question is joined to the end of
another. Many are nonsense, but each asks a judgement of words and word orders that no labelled question has.
"""

from __future__ import annotations

import random
import re

import numpy as np

from ttt_docs.lookup.router.question_features import vector_row, word_vectors

NEAR = 30  # words that one may be exchanged for
ANY = 0.2  # share of exchanges by any word at all
LONGEST = 160  # characters
_WORD = re.compile(r"\w+(?:['’-]\w+)*|\W+")
_JOINT = re.compile(
    r" (?=(?:of|in|for|to|between|with|by|from|on|at|about|and|that|as|when|where|who|if|under|during|after|before)\b)"
    r"|(?<=,) "
)
_KEPT = frozenset(
    [
        "the",
        "a",
        "an",
        "and",
        "or",
        "of",
        "in",
        "on",
        "at",
        "to",
        "for",
        "from",
        "by",
        "with",
        "is",
        "are",
        "was",
        "were",
        "be",
        "been",
        "has",
        "have",
        "had",
        "do",
        "does",
        "did",
        "what",
        "which",
        "who",
        "whom",
        "whose",
        "when",
        "where",
        "why",
        "how",
        "many",
        "much",
        "this",
        "that",
        "these",
        "those",
        "there",
        "it",
        "its",
        "he",
        "she",
        "they",
        "his",
        "her",
        "their",
        "any",
        "all",
        "not",
        "no",
        "if",
        "as",
        "than",
        "then",
        "me",
        "my",
        "you",
        "your",
        "i",
        "we",
        "our",
        "us",
        "can",
        "could",
        "should",
        "would",
        "will",
        "may",
        "might",
        "must",
        "about",
        "into",
        "over",
        "under",
        "between",
    ]
)


class Inventor:
    """Draws from lists of questions, each as often as its share says; never what is in `forbidden`."""

    def __init__(self, sources: list[tuple[float, list[str]]], forbidden: list[str], seed: int = 3) -> None:
        self.random = random.Random(seed)
        self.shares, self.sources = zip(*sources, strict=True)
        self.seen = set(map(plain, forbidden))
        self.words = list(word_vectors()[0])
        self.near: dict[str, list[str]] = {}

    def questions(self, count: int) -> list[str]:
        found: list[str] = []
        while len(found) < count:
            question = self._one()
            if question and 3 < len(question) < LONGEST and plain(question) not in self.seen:
                self.seen.add(plain(question))
                found.append(question.lower() if self.random.random() < 0.15 else question)
        return found

    def _one(self) -> str | None:
        first, way = self._drawn(), self.random.random()
        if way < 0.5:
            return self._exchanged(first)
        if way < 0.75:
            return self._joined(first, self._drawn())
        if way < 0.82:
            return self._begun(first, self._drawn())
        return self._exchanged(self._joined(first, self._drawn()) or first)

    def _drawn(self) -> str:
        (source,) = self.random.choices(self.sources, self.shares)
        return self.random.choice(source)

    def _exchanged(self, question: str) -> str | None:
        parts = _WORD.findall(question)
        able = [
            i
            for i, part in enumerate(parts)
            if part.isalpha() and len(part) > 2 and part.lower() not in _KEPT and (part.islower() or i == 0)
        ]
        able = [i for i in able if self._alike(parts[i].lower())]
        if not able:
            return None
        for i in self.random.sample(able, min(len(able), self.random.choice((1, 1, 2)))):
            others = self.words if self.random.random() < ANY else self._alike(parts[i].lower())
            word = self.random.choice(others)
            parts[i] = word.capitalize() if parts[i][0].isupper() else word
        return "".join(parts)

    def _alike(self, word: str) -> list[str]:
        row = vector_row(word)
        if word not in self.near:
            vectors = word_vectors()[1]
            order = [] if row is None else np.argsort(-(vectors @ vectors[row]), kind="stable")[1 : NEAR + 1]
            self.near[word] = [self.words[i] for i in order]
        return self.near[word]

    def _joined(self, first: str, second: str) -> str | None:
        """The beginning of one and the end of the other."""
        ends, begins = ([match.start() for match in _JOINT.finditer(text)] for text in (first, second))
        if not ends or not begins:
            return None
        return first[: self.random.choice(ends)] + second[self.random.choice(begins) :]

    def _begun(self, first: str, second: str) -> str | None:
        """The first words of one instead of those of the other."""
        a, b = first.split(" "), second.split(" ")
        if len(a) < 3 or len(b) < 4:
            return None
        return " ".join(a[: self.random.randint(1, 3)] + b[self.random.randint(1, 3) :])


def plain(question: str) -> str:
    return question.lower().strip("?. ")
