"""Whether a sentence stands in the text it was written from, and where.

Names, numbers and quoted strings must stand there, and the sentence's other words near one another beside them. Who
does what to whom, a "not", and words that mean the opposite cannot be seen this way.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ttt_docs.text.index import POSSESSIVE, PassageIndex, stop_words, terms
from ttt_docs.text.names import word_list
from ttt_docs.text.numbers import NUMBER_WORDS
from ttt_docs.text.sentences import Span, quoted

#: Characters of one place of the source, and places that one sentence may be made of.
PLACE, PLACES = 500, 3
#: Share of a sentence's words that stand in those places.
LEAST = 0.5
#: Other words of the sentence that stand with each number, in the same sentence of the source or beside it.
COMPANY = 3
_NUMBER = re.compile(r"\d+(?:[.,:/-]?\d+)*")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_NAME = re.compile(r"[^\W\d_a-z][\w’'-]+")
_MONTH = "january|february|march|april|may|june|july|august|september|october|november|december"
_DAY = r"(\d{1,2})(?:st|nd|rd|th)?(?!\d)"
_DATE = re.compile(rf"(?<!\d){_DAY} (?:of )?({_MONTH})\b|\b({_MONTH}) {_DAY}", re.IGNORECASE)
_ENDS_BEFORE = re.compile(r"(?:^|[.!?:;—–-])[\s\"'“”‘’(\[]*$")
_JOINING = re.compile(
    r"\s+(?:about|after|against|among|and|as|at|before|between|by|for|from|her|his|in|into|of|on|over|that|the|their|this|"
    r"to|under|upon|with|without)(?!\w)"
)
#: Capitalized where a sentence begins, and no names.
_PLAIN = word_list("openers")
_WORDS = {str(value): word for word, value in NUMBER_WORDS.items()}
_MAGNITUDES = ("hundred", "thousand", "million", "billion", "trillion")
_SPELLED = re.compile(
    rf"(?<![\w-])(?:{'|'.join(sorted({*NUMBER_WORDS, *_MAGNITUDES} - {'one', 'zero'}, key=len)[::-1])})s?(?![\w-])"
)
_PAIR = ("both", "pair", "couple", "twice", "second")


@dataclass(frozen=True)
class Claim:
    """A name, number or quoted string, and the ways to write it (in lower case)."""

    text: str
    ways: tuple[str, ...]
    number: bool = False

    def stands_in(self, shown: str) -> bool:
        """Whether it stands in a text of `flat` form."""
        return any(way in shown and re.search(rf"(?<!\w){re.escape(way)}(?!\w)", shown) for way in self.ways)


def flat(text: str) -> str:
    """A text on one line, in lower case, numbers without commas at the thousands."""
    return _THOUSANDS.sub("", " ".join(text.split()).lower())


def claims(text: str, language: str = "english") -> list[Claim]:
    """The numbers, quoted strings and names of a text, each once."""
    found = [Claim(n, _number(_THOUSANDS.sub("", n)), True) for n in _NUMBER.findall(text)]
    found += [Claim(word, _number(word.removesuffix("s")), True) for word in _SPELLED.findall(text.lower())]
    found += [Claim(date.group(), _date(*date.groups())) for date in _DATE.finditer(text)]
    found += [Claim(string, (flat(string),)) for string in quoted(text)]
    for match in _NAME.finditer(text):
        name = POSSESSIVE.sub("", match.group()).lower()
        begins = bool(_ENDS_BEFORE.search(text, 0, match.start()))
        plain = begins and (name in _PLAIN or name.endswith("ly") or _JOINING.match(text, match.end()))
        if plain or name in stop_words(language) or name in NUMBER_WORDS:
            continue
        single = name.removesuffix("s") if len(name) > 4 else name
        found.append(Claim(match.group(), tuple(dict.fromkeys((name, single, f"{single}s")))))
    return list({claim.text: claim for claim in found}.values())


def _number(number: str) -> tuple[str, ...]:
    """A number in digits and in words; of a "two" also what says it without a number."""
    value = NUMBER_WORDS.get(number)
    digits = number if value is None else str(value)
    spelled = _WORDS.get(digits)
    ways = (digits, *((spelled, spelled.replace("-", " "), f"{spelled}s") if spelled else (f"{digits}s",)))
    return ways + _PAIR if digits == "2" else ways


def _date(day: str | None, month: str | None, second_month: str | None, second_day: str | None) -> tuple[str, ...]:
    """A day of a month as people write it."""
    day, month = str(int(day or second_day or 0)), (month or second_month or "").lower()
    days = [day, *(f"{day}{ending}" for ending in ("st", "nd", "rd", "th"))]
    return tuple(way for one in days for way in (f"{one} {month}", f"{one} of {month}", f"{month} {one}"))


def unsupported(answer: str, quotes: Sequence[str], question: str = "", language: str = "english") -> list[str]:
    """The numbers, names and quoted strings of an answer that stand neither in a quote nor in the question."""
    shown = flat(" ".join(quotes))
    if Claim(answer, (flat(answer),)).stands_in(shown):
        return []
    known = f"{shown} {flat(question)}"
    return [claim.text for claim in claims(answer, language) if not claim.stands_in(known)]


@dataclass(frozen=True)
class Grounds:
    """Where a sentence stands in its source."""

    spans: tuple[Span, ...]  # characters, in order
    share: float  # of the sentence's words that stand there, claims included
    missing: tuple[str, ...]  # names, numbers and quoted strings that do not

    @property
    def supported(self) -> bool:
        return bool(self.spans) and not self.missing and self.share >= LEAST


def grounds(index: PassageIndex, sentence: str, within: Span | None = None, places: int = PLACES) -> Grounds:
    """The places of the source, the characters `within` (None: all) of the index's text, that support a sentence."""
    start, end = within or (0, len(index.text))
    shown = _shown(index, start, end)
    made = claims(sentence, index.language)
    missing = [claim.text for claim in made if not claim.stands_in(shown)]
    first = bisect_right(index.sentences, start, key=lambda span: span[1])
    last = bisect_left(index.sentences, end, key=lambda span: span[0])
    spans = index.sentences[first:last]
    if not spans:
        return Grounds((), 0.0, tuple(missing))
    named = [{term for way in claim.ways for term in terms(way, index.language)} for claim in made]
    known = {term for one in named for term in one}
    wanted = [*named, *({term} for term in dict.fromkeys(terms(sentence, index.language)) if term not in known)]
    held = np.stack([_held(index, one, first, last) for one in wanted]) if wanted else np.zeros((0, len(spans)), bool)
    rows = [i for i, one in enumerate(wanted) if i >= len(made) or held[i].any() or not one]
    chosen, left = _places(spans, held, places)
    covered = held.any(1) & ~left
    # A claim that stands in the source, but not near the rest, is missing too.
    near = held | np.pad(held, ((0, 0), (1, 1)))[:, 2:] | np.pad(held, ((0, 0), (1, 1)))[:, :-2]
    for i, claim in enumerate(made):
        others = np.delete(near, i, 0)[:, held[i]].sum(0).max(initial=0)
        alone = claim.number and others < min(COMPANY, len(rows) // 2)
        if held[i].any() and (left[i] or alone):
            missing.append(claim.text)
    share = float(covered[rows].mean()) if rows else 0.0
    return Grounds(tuple(sorted(chosen)), share, tuple(dict.fromkeys(missing)))


@lru_cache(maxsize=16)
def _shown(index: PassageIndex, start: int, end: int) -> str:
    return flat(index.text[start:end])


def _held(index: PassageIndex, alternatives: Iterable[str], first: int, last: int) -> np.ndarray:
    """Which of the sentences hold any of the terms: bool [last - first]."""
    held = np.zeros(last - first, bool)
    for term in alternatives:
        sentences = index.held_by(term)
        held[sentences[np.searchsorted(sentences, first) : np.searchsorted(sentences, last)] - first] = True
    return held


def _places(spans: Sequence[Span], held: np.ndarray, places: int) -> tuple[list[Span], np.ndarray]:
    """The places that together hold the most of what is wanted, and what they leave: bool [wanted]."""
    starts, ends = np.array(spans).T
    beyond = np.maximum(np.searchsorted(ends, starts + PLACE, "right"), np.arange(len(spans)) + 1)
    before = np.concatenate([np.zeros((len(held), 1), int), held.cumsum(1)], axis=1)
    inside = before[:, beyond] > before[:, :-1]  # [wanted, place that begins with that sentence]
    left, chosen = np.ones(len(held), bool), []
    for _ in range(places):
        gain = inside[left].sum(0)
        if not len(gain) or not gain.max(initial=0):
            break
        at = int(gain.argmax())
        needed = at + _needed(held[left, at : beyond[at]])
        chosen.append((int(starts[needed.min()]), int(ends[needed.max()])))
        left &= ~inside[:, at]
    return chosen, left


def _needed(held: np.ndarray) -> np.ndarray:
    """As few sentences of held [wanted, sentences] as hold all that any of them holds."""
    left, needed = held.any(1), []
    while left.any():
        needed.append(int(held[left].sum(0).argmax()))
        left &= ~held[:, needed[-1]]
    return np.array(needed)
