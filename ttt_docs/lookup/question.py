"""What a question asks for: its terms, the keys it names, the kind of answer it wants and what that looks like.

Only the form of a question is looked at, never a document, so nothing depends on what documents are about. Forms of
answers are known for English questions only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ttt_docs.lookup.patterns import compiled, patterns
from ttt_docs.text.index import POSSESSIVE, TOKEN, language_of, stop_words, token_terms
from ttt_docs.text.names import word_list
from ttt_docs.text.sentences import QUOTED, Span, quoted

#: What the answer is to be: a string that names a thing, a quantity, a point in time, yes or no, or any span.
Kind = Literal["uuid", "email", "url", "identifier", "number", "date", "mention", "span"]

#: Words about asking say little about where the answer stands; words for a document count for nothing in a question
#: whether it mentions something.
_ASKING, _DOCUMENT = word_list("asking"), word_list("documents")
_ASKING_WEIGHT = 0.3
#: Where several kinds fit, the first does.
_ASKED_KINDS: list[tuple[Kind, re.Pattern[str]]] = [(kind, compiled(one)) for kind, one in patterns()["kinds"]]
_MANY = re.compile(
    r"^\W*(?:what|which|who) (?:are|were)\b|^\W*(?:list|name|enumerate)\b|\b(?:all|every|each)\b.*\b\w+s\b",
    re.IGNORECASE,
)
_NAMED_IN = re.compile(r"(?<!^)(?<![.?!:]\s)\b[^\W\d_a-z][\w’']*(?:\s+[^\W\d_a-z][\w’']*)*")
_LEADING = re.compile(
    r"\b(?:for|of|to|about|on|with|from|at|called|named|is|are|was|has|does|and|or|,|:)\W*$", re.IGNORECASE
)


@dataclass(frozen=True)
class Query:
    """A question taken apart. `keys` are strings to be found as they stand; `names` are its proper names."""

    text: str
    kind: Kind
    many: bool  # it asks for all values, not for one
    weights: dict[str, float]  # term -> factor
    words: dict[str, str]  # term -> the word it comes from, in lower case
    keys: tuple[str, ...]
    names: tuple[str, ...]


def understand(text: str, language: str | None = None) -> Query:
    """Takes a question apart; `language` is the document's, whose terms the question's are compared with."""
    language = language or language_of(text)
    kind: Kind = next((kind for kind, pattern in _ASKED_KINDS if pattern.search(text)), "span")
    weights: dict[str, float] = {}
    words: dict[str, str] = {}
    for token in TOKEN.findall(text):
        word = token.lower()
        if kind == "mention" and word in _ASKING | _DOCUMENT:
            continue
        factor = _ASKING_WEIGHT if word in _ASKING else 1.0
        for term in token_terms(token, language):
            weights[term] = max(factor, weights.get(term, 0.0))
            words.setdefault(term, word)
    stops = stop_words(language) | _ASKING
    # Only English has capitals for names alone, and only an English question is known by its first word.
    named = _NAMED_IN.findall(text) if language_of(text) == "english" else []
    names = tuple(name for name in named if name.lower() not in stops and name != "I")
    return Query(text, kind, bool(_MANY.search(text)), weights, words, _keys(text), names)


def only(query: Query, key: str, language: str) -> Query:
    """The question about one of its keys alone."""
    text = query.text
    for other in query.keys:
        if other != key:
            text = text.replace(other, " ")
    return replace(understand(text, language), kind=query.kind, many=query.many, keys=(key,))


_LEANS = re.compile(
    r"^\W*(?:and|or|but|what about|how about|why|then)\b|\b(?:he|she|it|they|him|her|them|his|its|their|that|this|"
    r"those|these|there|one|ones)\b",
    re.IGNORECASE,
)
#: A follow-up of no more terms than this leans on what was said before; what the terms said there count for.
_FEW, _BEFORE = 2, 0.4


_REASON = re.compile(
    r"^\W*(?:and |but |so )?(?:why\b|how come\b|for what reason\b|what (?:was|is) the reason\b)", re.IGNORECASE
)


def asks_why(question: str) -> bool:
    """Whether a question asks for a reason: what is asked about may be the whole, the reason stands at some place."""
    return _REASON.search(question) is not None


def leans(question: str) -> bool:
    """Whether a question has words that stand for something said before."""
    return _LEANS.search(question) is not None


def following(query: Query, history: Sequence[tuple[str, str]]) -> Query:
    """The question with the terms of the turn before it, where it leans on that."""
    if not history or not (leans(query.text) or len(query.weights) <= _FEW):
        return query
    before = understand(" ".join(history[-1]))
    weights = {term: _BEFORE * factor for term, factor in before.weights.items()}
    return replace(query, weights=weights | query.weights, words=before.words | query.words)


def _keys(text: str) -> tuple[str, ...]:
    """Strings that can only be meant as they stand: quoted ones, and tokens with digits or joined words in them."""
    keys = quoted(text)
    rest = QUOTED.sub(" ", text)
    for match in TOKEN.finditer(rest):
        token = POSSESSIVE.sub("", match.group())
        if any(c.isdigit() for c in token):
            if not re.fullmatch(r"\d{1,2}|(?:1\d|20)\d\d", token):  # "chapter 3" and years are ordinary words
                keys.append(token)
        elif re.search(r"[^\W_][-_/@:#][^\W_]", token) and _LEADING.search(rest[: match.start()]):
            keys.append(token)
    return tuple(dict.fromkeys(keys))


_SPAN_PATTERNS: dict[Kind, list[re.Pattern[str]]] = {
    kind: [compiled(pattern) for pattern in written] for kind, written in patterns()["spans"].items()
}


def candidates(text: str, kind: Kind) -> list[Span]:
    """Spans of the text that are of that kind, in order; those of the most telling pattern that is there at all.

    Kinds without a form of their own (`span`, `mention`) have none.
    """
    found = ([m.span() for m in pattern.finditer(text)] for pattern in _SPAN_PATTERNS.get(kind, ()))
    return next(filter(None, found), [])


@dataclass(frozen=True)
class Form:
    """What answers look like: a sentence can hold one if all `patterns` are found in it."""

    name: str
    patterns: tuple[re.Pattern[str], ...]

    def within(self, text: str, span: Span) -> bool:
        return all(pattern.search(text, *span) for pattern in self.patterns)


#: "how old", "where", "what year" -> the form asked for.
_ASKED_FORMS = {
    asked: Form(name, tuple(compiled(pattern) for pattern in form["patterns"]))
    for name, form in patterns()["forms"].items()
    for asked in form["asked"].split(", ")
}
_ASKED = re.compile(
    r"\b(?:(?P<how>how \w+)|(?P<word>who|whom|whose|where|when)\b|(?P<which>what|which)(?P<nouns>(?: [\w'’-]+){0,4}))",
    re.IGNORECASE,
)


def form_of(question: str) -> Form | None:
    """What the answer to a question looks like, by the first words that ask; None where that is not said."""
    asked = _ASKED.search(question)
    if asked is None:
        return None
    said, nouns = ((found or "").lower() for found in (asked["how"] or asked["word"], asked["nouns"]))
    words = [said] if said else ["what " + noun.removesuffix("'s") for noun in nouns.split()]
    if said == "how much" and re.search(r"\bweigh", question, re.IGNORECASE):
        words = ["how heavy"]
    names = (asked["which"] or "").lower() == "which" or re.search(r"\b(?:nick)?names?\b", nouns)
    return next(filter(None, map(_ASKED_FORMS.get, words)), _ASKED_FORMS["who"] if names else None)
