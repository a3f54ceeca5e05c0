"""A sparse index (BM25) over the passages of a text. It is made when a document is taken in, and kept in the memory.

Terms are stems of words, and rare strings as they stand. A string such as `4f1c-99e0`, `user@host.org`, `10:45` or
`north-west` is kept whole and also taken apart, so that it is found by the whole of it and by its words. Scripts
written without spaces are cut into pairs of characters. Passages are runs of whole sentences that overlap.

As bytes, little-endian: five uint32 (CRC-32 of the text in UTF-8, sentences, terms, occurrences, bytes of the terms),
the sentences as (start, end) int32, for each term how many sentences hold it int32, those sentences int32, and the
terms in UTF-8, one a line. Passages and their weights follow from these, and are computed again.
"""

from __future__ import annotations

import math
import re
import struct
import unicodedata
import zlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, lru_cache
from itertools import chain

import numpy as np

from ttt_docs.errors import MemoryFormatError
from ttt_docs.text.sentences import Span, short_sentences

#: A word, or words joined by a single mark without space. Underscores join too.
TOKEN = re.compile(r"[^\W_]+(?:[-_./:@'’,&+#][^\W_]+)*")
_PART = re.compile(r"[^\W_]+")
POSSESSIVE = re.compile(r"['’]s?$")
_DENSE = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]")
#: Languages with a stemmer of that name, and stop words in bm25s.
_LANGUAGES = (
    *("english", "german", "dutch", "french", "spanish", "portuguese"),
    *("italian", "russian", "swedish", "norwegian", "danish", "turkish"),
)
#: Characters of a text that its language is told from, in pieces from all over it.
_SAMPLE, _PIECES = 20_000, 8


def language_of(text: str) -> str:
    """The language whose stop words are the largest share of the text's words; English where none stands out."""
    step = max(_SAMPLE // _PIECES, len(text) // _PIECES)
    sample = " ".join(text[i : i + _SAMPLE // _PIECES] for i in range(0, len(text), step))
    words = Counter(_PART.findall(sample.lower()))
    shares = {name: sum(words[word] for word in stop_words(name)) for name in _LANGUAGES}
    best = max(shares, key=lambda name: shares[name])
    return best if shares[best] > 0.2 * words.total() else "english"


@lru_cache(maxsize=16)
def stop_words(language: str) -> frozenset[str]:
    import bm25s.stopwords

    return frozenset(getattr(bm25s.stopwords, f"STOPWORDS_{'EN_PLUS' if language == 'english' else language.upper()}"))


@lru_cache(maxsize=16)
def _stem(language: str) -> Callable[[str], str]:
    import Stemmer

    return Stemmer.Stemmer(language).stemWord


def token_terms(token: str, language: str) -> tuple[str, ...]:
    """The terms of one match of `TOKEN`: none for a stop word; the whole, then its words, for a joined string."""
    token = POSSESSIVE.sub("", token.lower())
    if not token.isascii():
        token = "".join(c for c in unicodedata.normalize("NFKD", token) if not unicodedata.combining(c))
        if _DENSE.search(token):
            return tuple(token[i : i + 2] for i in range(len(token) - 1)) or (token,)
    if token in stop_words(language):
        return ()
    parts = _PART.findall(token)
    stem, stops = _stem(language), stop_words(language)
    words = tuple(part if not part.isalpha() else stem(part) for part in parts if part not in stops)
    return words if len(parts) == 1 else (token, *words)


def terms(text: str, language: str) -> list[str]:
    """All terms of `text`, in order."""
    return [term for token in TOKEN.findall(text) for term in token_terms(token, language)]


#: BM25: how soon more of the same term stops counting, and how much longer passages are held back.
K1, B = 1.2, 0.75


class PassageIndex:
    """The passages of a text, and the sentences that hold each of its terms. BM25 is computed from these."""

    def __init__(
        self, text: str, sentences: list[Span], vocabulary: dict[str, int], counts: np.ndarray, holders: np.ndarray
    ) -> None:
        """`vocabulary` numbers the terms. Term `i` occurs `counts[i]` times.

        `holders`, int32 [occurrences], are the sentences that hold the first term, in order with repeats, then those
        of the second, and so on.
        """
        self.text, self.language, self.sentences = text, language_of(text), sentences
        self.vocabulary, self.counts, self.holders = vocabulary, counts, holders
        self.firsts, self.lasts = passages(sentences)
        self._ends = np.cumsum(counts)
        before = np.concatenate(([0], np.cumsum(np.bincount(holders, minlength=len(sentences)))))
        lengths = before[self.lasts] - before[self.firsts]  # in terms
        mean = lengths.mean() if len(holders) else 1.0
        self._held_back = K1 * ((1 - B) + B * lengths / mean)

    def __len__(self) -> int:
        return len(self.firsts)

    def span(self, passage: int) -> Span:
        """Characters of a passage."""
        return self.sentences[self.firsts[passage]][0], self.sentences[self.lasts[passage] - 1][1]

    def held_by(self, term: str) -> np.ndarray:
        """The sentences that hold a term, in order, each as often as it does: int32 [occurrences]."""
        number = self.vocabulary.get(term)
        if number is None:
            return self.holders[:0]
        return self.holders[self._ends[number] - self.counts[number] : self._ends[number]]

    def occurrences(self, term: str) -> np.ndarray:
        """How often each passage holds a term: int64 [passages]."""
        held = self.held_by(term)
        return np.searchsorted(held, self.lasts) - np.searchsorted(held, self.firsts)

    def weight(self, term: str) -> float:
        """Inverse document frequency, the rarer the larger; of a term that is nowhere, as if it were in one passage."""
        frequency, passages = max(int(np.count_nonzero(self.occurrences(term))), 1), max(len(self), 1)
        return math.log(1 + (passages - frequency + 0.5) / (frequency + 0.5))

    def scores(self, weights: dict[str, float]) -> np.ndarray:
        """BM25 of every passage, float32 [passages], for terms with these factors."""
        total = np.zeros(len(self), dtype=np.float32)
        for term, factor in weights.items():
            count = self.occurrences(term)
            scores = np.float32(self.weight(term)) * (count / (self._held_back + count))
            total += factor * scores.astype(np.float32)
        return total

    def terms(self, start: int, end: int) -> list[str]:
        """The terms of text[start:end]."""
        return terms(self.text[start:end], self.language)

    def sentence_at(self, character: int) -> int:
        """The sentence that holds a character, or the one before it."""
        return max(bisect_right(self.sentences, character, key=lambda span: span[0]) - 1, 0)


def build(text: str) -> PassageIndex:
    """The index of a text."""
    language = language_of(text)
    spans = short_sentences(text)
    vocabulary: dict[str, int] = {}

    @cache
    def numbers(token: str) -> list[int]:
        return [vocabulary.setdefault(term, len(vocabulary)) for term in token_terms(token, language)]

    rows = [list(chain.from_iterable(map(numbers, TOKEN.findall(text, *span)))) for span in spans]
    held = np.fromiter(chain.from_iterable(rows), np.int32)
    holders = np.repeat(np.arange(len(rows), dtype=np.int32), [len(row) for row in rows])
    counts = np.bincount(held, minlength=len(vocabulary))
    return PassageIndex(text, spans, vocabulary, counts, holders[np.argsort(held, kind="stable")])


#: Characters of a passage, of which at least OVERLAP are the next one's too where sentences allow it.
SIZE, OVERLAP = 700, 150


def passages(spans: list[Span]) -> tuple[np.ndarray, np.ndarray]:
    """First and last sentence (excluded) of each passage, int32 [passages] each."""
    firsts, lasts, first = [], [], 0
    while first < len(spans):
        last = first + 1
        while last < len(spans) and spans[last][1] - spans[first][0] <= SIZE:
            last += 1
        firsts.append(first)
        lasts.append(last)
        if last == len(spans):
            break
        following = last
        while following - 1 > first and spans[last - 1][1] - spans[following - 1][0] <= OVERLAP:
            following -= 1
        first = following
    return np.array(firsts, dtype=np.int32), np.array(lasts, dtype=np.int32)


_HEAD = struct.Struct("<5I")
_NUMBER = np.dtype("<i4")


@dataclass(frozen=True)
class _Indexed:
    """A text, and what may be its stored index; as a key the text alone counts."""

    text: str
    stored: bytes | None = field(default=None, compare=False)


def index_of(text: str, stored: bytes | None = None) -> PassageIndex:
    """The index of a text, from its stored form if there is one. Of the texts asked about last it is kept.

    Raises MemoryFormatError where `stored` is no index; that of another text is passed over.
    """
    return _index_of(_Indexed(text, stored))


@lru_cache(maxsize=8)
def _index_of(key: _Indexed) -> PassageIndex:  # a text's hash is computed once
    index = unpacked(key.stored, key.text) if key.stored is not None else None
    return index or build(key.text)


def packed(index: PassageIndex) -> bytes:
    terms = "\n".join(index.vocabulary).encode("utf-8")
    head = _HEAD.pack(_crc(index.text), len(index.sentences), len(index.counts), len(index.holders), len(terms))
    arrays = (np.array(index.sentences), index.counts, index.holders)
    return b"".join((head, *(array.astype(_NUMBER).tobytes() for array in arrays), terms))


def unpacked(data: bytes, text: str) -> PassageIndex | None:
    """What `packed` was given, None for the index of another text.

    Raises MemoryFormatError for anything else: every number is looked at before it is used.
    """

    def check(sound: bool | np.bool_, otherwise: str) -> None:
        if not sound:
            raise MemoryFormatError(
                f"the index in this memory is damaged: {otherwise}. Ask a memory without it "
                "(replace(memory, index=None)), or read the document again"
            )

    check(len(data) >= _HEAD.size, "it is cut short")
    crc, spans, terms, occurrences, letters = _HEAD.unpack_from(data)
    if crc != _crc(text):
        return None
    numbers = 2 * spans + terms + occurrences
    check(len(data) == _HEAD.size + _NUMBER.itemsize * numbers + letters, "its parts do not fill it")
    parts = np.frombuffer(data, _NUMBER, numbers, _HEAD.size).astype(np.int32)
    borders, counts, holders = np.split(parts, [2 * spans, 2 * spans + terms])
    starts, ends = borders[::2], borders[1::2]
    inside = not spans or (starts[0] >= 0 and ends[-1] <= len(text))
    in_order = (starts < ends).all() and (ends[:-1] <= starts[1:]).all()
    check(inside and in_order, "its sentences are not spans of the text, one after another")
    check(counts.min(initial=1) >= 1 and counts.sum(dtype=np.int64) == occurrences, "its terms do not add up")
    check(holders.min(initial=0) >= 0 and holders.max(initial=-1) < spans, "it names sentences that are not there")
    same_term = np.diff(np.repeat(np.arange(terms), counts)) == 0
    check((np.diff(holders)[same_term] >= 0).all(), "the sentences of a term are not in order")
    written = data[len(data) - letters :].decode(errors="replace")
    check("\ufffd" not in written, "its terms are no text")
    words = written.split("\n") if terms else []
    vocabulary = {word: number for number, word in enumerate(words)}
    check(len(vocabulary) == terms == len(words), "its terms are not what it says")
    sentences = list(zip(starts.tolist(), ends.tolist(), strict=True))
    return PassageIndex(text, sentences, vocabulary, counts, holders)


def _crc(text: str) -> int:
    return zlib.crc32(text.encode("utf-8", "surrogatepass"))
