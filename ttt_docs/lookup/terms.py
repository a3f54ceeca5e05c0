"""Text to the terms an index counts: stems of words, and rare strings as they stand.

A string such as `4f1c-99e0`, `user@host.org`, `10:45` or `north-west` is kept whole and also taken apart, so that it is
found by the whole of it and by its words. Scripts written without spaces are cut into pairs of characters.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from functools import lru_cache

#: A word, or words joined by a single mark without space. Underscores join too.
TOKEN = re.compile(r"[^\W_]+(?:[-_./:@'’,&+#][^\W_]+)*")
_PART = re.compile(r"[^\W_]+")
_POSSESSIVE = re.compile(r"['’]s?$")
_DENSE = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]")
#: Language -> the names of its stop words in bm25s and of its stemmer.
_LANGUAGES = {
    "english": ("STOPWORDS_EN_PLUS", "english"),
    "german": ("STOPWORDS_GERMAN", "german"),
    "dutch": ("STOPWORDS_DUTCH", "dutch"),
    "french": ("STOPWORDS_FRENCH", "french"),
    "spanish": ("STOPWORDS_SPANISH", "spanish"),
    "portuguese": ("STOPWORDS_PORTUGUESE", "portuguese"),
    "italian": ("STOPWORDS_ITALIAN", "italian"),
    "russian": ("STOPWORDS_RUSSIAN", "russian"),
    "swedish": ("STOPWORDS_SWEDISH", "swedish"),
    "norwegian": ("STOPWORDS_NORWEGIAN", "norwegian"),
    "danish": ("STOPWORDS_DANISH", "danish"),
    "turkish": ("STOPWORDS_TURKISH", "turkish"),
}
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

    return frozenset(getattr(bm25s.stopwords, _LANGUAGES[language][0]))


@lru_cache(maxsize=16)
def _stem(language: str) -> Callable[[str], str]:
    import Stemmer

    return Stemmer.Stemmer(_LANGUAGES[language][1]).stemWord


def token_terms(token: str, language: str) -> tuple[str, ...]:
    """The terms of one match of `TOKEN`: none for a stop word; the whole, then its words, for a joined string."""
    token = _POSSESSIVE.sub("", token.lower())
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
