"""What an answer looks like, by the words that ask for it: an age, a sum of money, a date, a place.

Only a question's form is looked at, and only in English. A form says which sentences can hold an answer at all, so that
of two passages with the same words the one with a sum of money answers "how much".
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ttt_docs.lookup.candidates import NUMBER_WORDS
from ttt_docs.lookup.query import Kind
from ttt_docs.text.sentences import Span

_NUMBER = rf"\d[\d.,/]*|{NUMBER_WORDS}"
_MONTHS = "january february march april may june july august september october november december"
_MONTH = "|".join([m.capitalize() for m in _MONTHS.split()] + [f"{m[:3].capitalize()}\\." for m in _MONTHS.split()])
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
        rf"(?-i:{_MONTH})|{_YEAR}|(?:mon|tues|wednes|thurs|fri|satur|sun)day|spring|summer|autumn|winter|"
        r"christmas|easter|michaelmas|midsummer",
    ),
    "place": (r"(?:in|at|from|to|of|near|for|into|through|off|on|towards?) (?:the )?(?-i:[A-Z])[\w’'-]+",),
    "name": (r"(?-i:(?<=[a-z,;] )[A-Z])[\w’'-]+",),
}
_KINDS: dict[str, Kind] = {"hour": "date", "year": "date", "date": "date", "place": "name", "name": "name"}
_FORMS = {
    name: Form(
        name,
        _KINDS.get(name, "number"),
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
