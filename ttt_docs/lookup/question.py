"""What a question asks for: its terms, the keys it names, the kind of answer it wants and what that looks like.

Only the form of a question is looked at, never a document, so nothing depends on what documents are about. Forms of
answers are known for English questions only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from ttt_docs.lookup.index import TOKEN, language_of, stop_words, token_terms
from ttt_docs.text.names import TITLES, word_list
from ttt_docs.text.sentences import Span

#: What the answer is to be: a quantity, a string that names a thing, a point in time, a proper name, or any span.
Kind = Literal["uuid", "email", "url", "identifier", "number", "date", "name", "mention", "span"]

#: Words about asking say little about where the answer stands; words for a document count for nothing in a question
#: whether it mentions something.
_ASKING, _DOCUMENT = word_list("asking"), word_list("documents")
_ASKING_WEIGHT = 0.3
_DURATION = "year|date|day|month|time|century|season"
_PLACE = "city|town|village|country|place|street|island|river|ship|state|region"
_ASKED_FOR: tuple[tuple[Kind, str], ...] = (
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
_ASKED_KINDS = tuple((kind, re.compile(pattern, re.IGNORECASE)) for kind, pattern in _ASKED_FOR)
_MANY = re.compile(
    r"^\W*(?:what|which|who) (?:are|were)\b|^\W*(?:list|name|enumerate)\b|\b(?:all|every|each)\b.*\b\w+s\b",
    re.IGNORECASE,
)
_QUOTED = re.compile(r"[“\"«„]([^“”\"«»„]{2,})[”\"»“]|(?<!\w)[‘'`]([^‘’'`]{2,}?)[’'`](?!\w)")
_NAMED_IN = re.compile(r"(?<!^)(?<![.?!:]\s)\b[^\W\d_a-z][\w’']*(?:\s+[^\W\d_a-z][\w’']*)*")
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
    names = tuple(n for n in (m.group() for m in _NAMED_IN.finditer(text)) if n.lower() not in stops and n != "I")
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


_UNITS = "one two three four five six seven eight nine"
_TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_LARGE = "hundred thousand million billion dozen score"
_ALL_WORDS = "|".join(f"{_UNITS} {_TEENS} {_TENS} {_LARGE}".split()[::-1])
_SMALL_WORDS = "|".join(f"{_UNITS} {_TEENS} {_TENS}".split()[::-1])
NUMBER_WORDS = (
    rf"\b(?:(?:a|half a|several|many)\s+)?(?:{_ALL_WORDS}|twice|thrice|once)s?"
    rf"(?:(?:[\s-]+(?:and\s+)?)(?:{_ALL_WORDS}|half)s?)*\b"
)
_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|"
    r"oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"
)
_DAY = r"(?:monday|tuesday|wednesday|thursday|friday|saturday|sunday)"
_DATES = (
    rf"\b(?:{_DAY},?\s+)?\d{{1,2}}(?:st|nd|rd|th)?\s+(?:of\s+)?{_MONTH}(?:,?\s+\d{{4}})?\b",
    rf"\b{_MONTH}\s+\d{{1,2}}(?:st|nd|rd|th)?(?:,?\s+\d{{4}})?\b",
    rf"\b{_MONTH},?\s+\d{{4}}\b",
    r"\b\d{4}-\d{2}-\d{2}\b|\b\d{1,2}[./]\d{1,2}[./]\d{2,4}\b",
    r"\b\d{1,2}:\d{2}(?::\d{2})?(?:\s*[ap]\.?m\b\.?)?",
    rf"\b(?:\d{{1,2}}|{_SMALL_WORDS})\s+o['’]clock\b",
    r"\b1\d{3}\b|\b20\d{2}\b",
    rf"\b{_DAY}\b",
    r"\b(?:january|february|april|june|july|august|september|october|november|december)\b",
    r"\b(?:midnight|noon|midsummer|christmas|easter|michaelmas|spring|summer|autumn|winter)\b",
)
_NUMERAL = r"[-+−]?[$€£¥]?\d+(?:[.,:/ ]?\d+)*(?:\s?%)?"
_NAME = r"[^\W\d_a-z][\w’'-]*\.?(?:(?:\s+(?:of|the|de|du|la|le|von|van|and))*\s+[^\W\d_a-z][\w’'-]*)*"
_IDENTIFIER = r"(?<![\w#+])[#+]?(?=[\w./:#@-]*\d)\w+(?:[-_./:#@]\w+)*"
_CAPITALS = r"\b[A-Z][A-Z0-9]+(?:[-_][A-Z0-9]+)*\b"


def _compiled(*patterns: str, flags: int = re.IGNORECASE) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(pattern, flags) for pattern in patterns)


_SPAN_PATTERNS: dict[Kind, tuple[re.Pattern[str], ...]] = {
    "uuid": _compiled(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"),
    "email": _compiled(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+\b"),
    "url": _compiled(r"\b(?:https?://|www\.)[^\s<>\"”’)]+[^\s<>\"”’).,;:!?]"),
    "identifier": _compiled(_IDENTIFIER, _CAPITALS, flags=0),
    "number": _compiled(_NUMERAL, NUMBER_WORDS),
    "date": _compiled(*_DATES),
    "name": _compiled(_NAME, flags=0),
}


def candidates(text: str, start: int, end: int, kind: Kind) -> list[Span]:
    """Spans of text[start:end] of that kind, in order; those of the most telling pattern that is there at all.

    Kinds without a form of their own (`span`, `mention`) have none.
    """
    for pattern in _SPAN_PATTERNS.get(kind, ()):
        spans = [m.span() for m in pattern.finditer(text, start, end)]
        if kind == "name":
            spans = [span for span in (_bare(text, start, *span) for span in spans) if span is not None]
        if spans:
            return spans
    return []


def measured(text: str, start: int, end: int) -> list[Span]:
    """All numbers of text[start:end] with what they count: "five feet four inches", "eighteen thousand men"."""
    found: list[Span] = []
    for a, b in sorted(m.span() for pattern in _SPAN_PATTERNS["number"] for m in pattern.finditer(text, start, end)):
        unit = _UNIT.match(text, b, end)
        if unit is not None and unit.group(1) not in _NO_UNITS:
            b = unit.end()
        if found and not text[found[-1][1] : a].strip():
            a = found.pop()[0]
        found.append((a, b))
    return found


def _bare(text: str, start: int, a: int, b: int) -> Span | None:
    """A capitalized run without the first word of a sentence that is no name, titles kept."""
    words = text[a:b].split()
    if text[a:b].endswith(".") and words[-1].rstrip(".").lower() not in TITLES:
        b -= 1
    if a == start and words[0].lower() in _OPENERS:
        a += len(words[0])
        a += len(text[a:b]) - len(text[a:b].lstrip())
    if b - a < 2 or text[a:b].lower() in _OPENERS:
        return None
    return a, b


_UNIT = re.compile(r"[\s-]+([a-z]\w*)")
_NO_UNITS, _OPENERS = word_list("no units"), word_list("openers")


_NUMBER = rf"\d[\d.,/]*|{NUMBER_WORDS}"
_MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
_MONTH_WRITTEN = "|".join([*_MONTHS, *(rf"{month[:3]}\." for month in _MONTHS)])
_YEAR = r"1\d{3}|20\d\d"


@dataclass(frozen=True)
class Form:
    """A sentence can hold the answer if all `patterns` are found in it; of what `kind` it is."""

    name: str
    kind: Kind
    patterns: tuple[re.Pattern[str], ...]

    def within(self, text: str, span: Span) -> bool:
        return all(pattern.search(text, *span) for pattern in self.patterns)


#: Form -> what is found in a sentence that holds such an answer.
_LOOKS = {
    "number": (_NUMBER,),
    "age": (_NUMBER, r"aged?|years?|old|past|turned|\w+teen|(?:twent|thirt|fort|fift|sixt|sevent|eight|ninet)\w+"),
    "size": (
        _NUMBER,
        r"inch(?:es)?|feet|foot|yards?|miles?|leagues?|fathoms?|acres?|(?:kilo|centi|milli)?met(?:re|er)s?|[ckm]?m\.?",
    ),
    "weight": (
        _NUMBER,
        r"pounds?|lbs?\.?|stones?|ounces?|oz\.?|tons?|tonnes?|grains?|(?:kilo|milli)?gram(?:me)?s?|k?g",
    ),
    "money": (
        _NUMBER,
        r"[£$€¥]\s?\d[\d.,]*|francs?|pounds?|dollars?|shillings?|guineas?|pence|penny|sous?|crowns?|livres?|ducats?|"
        r"cents?|florins?|marks?|roubles?|rupees?|euros?|USD|EUR|GBP",
    ),
    "duration": (
        rf"{_NUMBER}|an?|half|some|few|several|many",
        r"seconds?|minutes?|hours?|days?|nights?|weeks?|fortnights?|months?|moons?|years?|decades?|centur(?:y|ies)",
    ),
    "hour": (r"o['’]clock|midnight|noon|half[- ]past|quarter|\d{1,2}[:.]\d\d|[ap]\.?m\.",),
    "year": (_YEAR,),
    "date": (
        rf"(?-i:{_MONTH_WRITTEN})|{_YEAR}|(?:mon|tues|wednes|thurs|fri|satur|sun)day|spring|summer|autumn|winter|"
        r"christmas|easter|michaelmas|midsummer",
    ),
    "place": (r"(?:in|at|from|to|of|near|for|into|through|off|on|towards?) (?:the )?(?-i:[A-Z])[\w’'-]+",),
    "name": (r"(?-i:(?<=[a-z,;] )[A-Z])[\w’'-]+",),
}
_FORM_KINDS: dict[str, Kind] = {"hour": "date", "year": "date", "date": "date", "place": "name", "name": "name"}
_FORMS = {
    name: Form(
        name,
        _FORM_KINDS.get(name, "number"),
        tuple(re.compile(rf"(?<!\w)(?:{pattern})(?!\w)", re.IGNORECASE) for pattern in patterns),
    )
    for name, patterns in _LOOKS.items()
}
_ASKED = re.compile(
    r"\b(?:how (?P<how>\w+)|(?P<word>who|whom|whose|where|when)\b|(?P<which>what|which)(?P<noun>(?: [\w'’-]+){0,4}))",
    re.IGNORECASE,
)
_HOW = {
    "age": "old",
    "size": "tall high deep wide far large big thick broad",
    "weight": "heavy",
    "money": "much",
    "duration": "long",
    "number": "many often",
}
_WORDS = {"who": "name", "whom": "name", "whose": "name", "where": "place", "when": "date"}
#: Nouns after "what" and "which".
_NOUNS = {
    "year": "year",
    "date": "date day month season",
    "hour": "hour time clock",
    "age": "age",
    "money": "sum fine income price cost salary amount fee rent reward wage wages debt",
    "size": "height length distance depth width size",
    "weight": "weight",
    "number": "number average percentage share total count",
    "place": "town city country street place village parish island county state port region river",
}


def form_of(question: str) -> Form | None:
    """What the answer to a question looks like, by the first words that ask; None where that is not said."""
    asked = _ASKED.search(question)
    if asked is None:
        return None
    if word := asked["word"]:
        return _FORMS[_WORDS[word.lower()]]
    if how := asked["how"]:
        name = _named(_HOW, how)
        if name == "money" and re.search(r"\bweigh", question, re.IGNORECASE):
            name = "weight"
        return _FORMS.get(name or "")
    nouns = asked["noun"].split()
    name = next((name for noun in nouns if (name := _named(_NOUNS, noun))), None)
    if name is None and (asked["which"].lower() == "which" or _NAMED.search(asked["noun"])):
        name = "name"
    return _FORMS.get(name or "")


_NAMED = re.compile(r"\b(?:nick)?names?\b", re.IGNORECASE)


def _named(table: dict[str, str], word: str) -> str | None:
    return next((name for name, words in table.items() if word.lower().removesuffix("'s") in words.split()), None)
