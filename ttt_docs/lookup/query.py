"""What a question asks for: its terms with their weights, the keys it names, and the kind of answer it wants.

Only the form of a question is looked at here, never a document, so nothing depends on what documents are about.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from ttt_docs.lookup.terms import TOKEN, language_of, stop_words, token_terms
from ttt_docs.text.names import word_list

#: What the answer is to be: a quantity, a string that names a thing, a point in time, a proper name, or any span.
Kind = Literal["uuid", "email", "url", "identifier", "number", "date", "name", "mention", "span"]

#: Words about asking say little about where the answer stands; words for a document count for nothing in a question
#: whether it mentions something.
_ASKING, _DOCUMENT = word_list("asking"), word_list("documents")
_ASKING_WEIGHT = 0.3
_DURATION = "year|date|day|month|time|century|season"
_PLACE = "city|town|village|country|place|street|island|river|ship|state|region"
_PATTERNS: tuple[tuple[Kind, str], ...] = (
    (
        "mention",
        r"^\s*(?:do|does|did|is|are|was|were|has|have)\b.*"
        r"\b(?:mention|contain|say anything|refer|appear|occur|include)",
    ),
    ("uuid", r"\b(?:uuid|guid)s?\b"),
    ("email", r"\be-?mail(?: address(?:es)?)?\b"),
    ("url", r"\b(?:url|link|web ?site|web address)s?\b"),
    ("date", rf"^\W*(?:and |so |since |until )?when\b|\b(?:what|which) (?:\w+ )?(?:{_DURATION})s?\b"),
    ("number", r"\bhow (?:many|much|old|far|long|tall|high|deep|wide|large|big|heavy|often|fast)\b"),
    (
        "identifier",
        r"\b(?:id|ids|identifier|code|codes|password|passcode|pass-?key|pin|serial|token|hash|checksum|version|"
        r"reference|model number|part number|order number|phone number|account number|ticket)s?\b",
    ),
    (
        "number",
        r"\b(?:numbers?|percent(?:age)?s?|amounts?|price|cost|total|age|quantity|height|weight|distance|length|"
        r"depth|width|temperature|speed|size|sum|rate|score|count|population|figure)\b",
    ),
    (
        "name",
        r"\b(?:who|whom|whose|(?:what|which) (?:\w+ ){0,4}?names?|by what name|"
        r"what (?:is|was|were) .{0,40}\b(?:called|named))\b",
    ),
    ("name", rf"\b(?:what|which) (?:{_PLACE})\b"),
)
#: Where several kinds fit, the first does.
_KINDS = tuple((kind, re.compile(pattern, re.IGNORECASE)) for kind, pattern in _PATTERNS)
_MANY = re.compile(
    r"^\W*(?:what|which|who) (?:are|were)\b|^\W*(?:list|name|enumerate)\b|\b(?:all|every|each)\b.*\b\w+s\b",
    re.IGNORECASE,
)
_QUOTED = re.compile(r"[“\"«„]([^“”\"«»„]{2,})[”\"»“]|(?<!\w)[‘'`]([^‘’'`]{2,}?)[’'`](?!\w)")
_NAME = re.compile(r"(?<!^)(?<![.?!:]\s)\b[^\W\d_a-z][\w’']*(?:\s+[^\W\d_a-z][\w’']*)*")
_LEADING = re.compile(
    r"\b(?:for|of|to|about|on|with|from|at|called|named|is|are|was|has|does|and|or|,|:)\W*$", re.IGNORECASE
)
_ITEM = r"[\w'’-]+(?:\s[\w'’-]+){0,2}"
_AFTER_LIST = r"(?=\s+(?:mentioned|in|of|from|at|by|on|given|stated|according)\b|\W*$)"
_LIST = re.compile(rf"((?:{_ITEM},\s+)*{_ITEM}),?\s+(?:and|or)\s+({_ITEM}?){_AFTER_LIST}")


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
    items: tuple[str, ...]  # members of a list in it ("A, B and C")


def understand(text: str, language: str | None = None) -> Query:
    """Takes a question apart; `language` is the document's, whose terms the question's are compared with."""
    language = language or language_of(text)
    kind: Kind = next((kind for kind, pattern in _KINDS if pattern.search(text)), "span")
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
    names = tuple(n for n in (m.group() for m in _NAME.finditer(text)) if n.lower() not in stops and n != "I")
    return Query(text, kind, bool(_MANY.search(text)), weights, words, _keys(text), names, _items(text))


def only(query: Query, keep: str, others: tuple[str, ...], language: str) -> Query:
    """The question about one of several keys or items alone."""
    text = query.text
    for other in others:
        if other != keep:
            text = text.replace(other, " ")
    return replace(understand(text, language), kind=query.kind, many=query.many, keys=_keys(keep) or (keep,), items=())


def _keys(text: str) -> tuple[str, ...]:
    """Strings that can only be meant as they stand: quoted ones, and tokens with digits or joined words in them."""
    keys = [a or b for a, b in _QUOTED.findall(text)]
    rest = _QUOTED.sub(" ", text)
    for match in TOKEN.finditer(rest):
        token = match.group()
        token = re.sub(r"['’]s?$", "", token)
        if any(c.isdigit() for c in token):
            if not re.fullmatch(r"\d{1,2}|(?:1\d|20)\d\d", token):  # "chapter 3" and years are ordinary words
                keys.append(token)
        elif re.search(r"[^\W_][-_/@:#][^\W_]", token) and _LEADING.search(rest[: match.start()]):
            keys.append(token)
    return tuple(dict.fromkeys(keys))


def _items(text: str) -> tuple[str, ...]:
    match = _LIST.search(text)
    if match is None:
        return ()
    first = re.split(r",\s+", match.group(1))
    # The first item stands after the words of the question itself: only its last word is certainly its own.
    return (first[0].rsplit(" ", 1)[-1], *first[1:], match.group(2))
