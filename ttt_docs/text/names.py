"""The proper names of a text, found by how the text writes them.

A word is a name if it has a capital in the middle of sentences and is hardly ever written small. There is no list of
names, and no model runs. This works for every script that has capitals; a text without names gives none.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_WORD_LISTS: dict[str, str] = json.loads(Path(__file__).with_name("words.json").read_text("utf-8"))


@cache
def word_list(name: str) -> frozenset[str]:
    """One of the word lists of `words.json`, in lower case."""
    return frozenset(_WORD_LISTS[name].split())


#: Not names by themselves; before a name they do not end a sentence ("Mr. Smith").
TITLES = word_list("titles")
_NO_NAMES, _DETERMINERS = word_list("no names"), word_list("determiners")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_APOSTROPHE = re.compile(r"['’](s|S)?$|['’].*$")


@dataclass(frozen=True)
class Name:
    """A proper name: the words that stand for it (any one names it), most telling first, and how often they occur."""

    full: str
    words: tuple[str, ...]
    count: int

    def within(self, text: str) -> bool:
        """Whether `text` names it: any of its words, as a whole word."""
        return any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) for word in self.words)


def proper_names(text: str, limit: int = 5, least: int = 2) -> list[Name]:
    """The most frequent proper names of `text`, the most frequent first; each occurs at least `least` times.

    Words that mostly stand together are one name ("Moby Dick"); a title before a name is not part of it.
    """
    inside: Counter[str] = Counter()  # capitalized, in the middle of a sentence
    anywhere: Counter[str] = Counter()  # capitalized
    small: Counter[str] = Counter()
    determined: Counter[str] = Counter()
    pairs: Counter[tuple[str, str]] = Counter()
    before, before_end, before_named = "", 0, False
    for match in _WORD.finditer(text):
        word = _APOSTROPHE.sub("", match.group())
        named = len(word) > 1 and word[0].isupper() and word[1:].islower() and word.lower() not in _NO_NAMES
        if named:
            gap = text[before_end : match.start()]
            anywhere[word] += 1
            if _in_sentence(gap, before):
                inside[word] += 1
                determined[word] += before.lower() in _DETERMINERS
                if before_named and gap in (" ", "\n", " \n"):
                    pairs[before, word] += 1
        elif word.islower():
            small[word] += 1
        before, before_end = match.group(), match.end()
        before_named = named and before.lower() not in TITLES
    words = sum(small.values()) + sum(anywhere.values())
    nouns_are_capitalized = sum(inside.values()) > 0.12 * max(words, 1)

    def is_name(word: str) -> bool:
        seen = inside[word]
        if not seen or anywhere[word] < least or word.lower() in TITLES:
            return False
        if nouns_are_capitalized and determined[word] > 0.2 * seen:
            return False
        return seen >= 0.1 * anywhere[word] and small[word.lower()] <= 0.2 * anywhere[word]

    counts = {word: count for word, count in anywhere.items() if is_name(word)}
    return _grouped(counts, pairs)[:limit]


def _in_sentence(gap: str, before: str) -> bool:
    """Whether a word after the word `before` and `gap` stands in the middle of a sentence."""
    if not before:
        return False
    if gap in (" ", "\n", " \n", ", ", ",\n", "; ", ";\n", "-"):
        return True
    return gap.rstrip() == "." and len(gap) > 1 and before.lower() in TITLES


def _grouped(counts: dict[str, int], pairs: Counter[tuple[str, str]]) -> list[Name]:
    """Joins two words where one hardly stands without the other."""
    partner: dict[str, str] = {}
    for (first, second), together in pairs.most_common():
        if first not in counts or second not in counts or first == second:
            continue
        rare, common = sorted((counts[first], counts[second]))
        if together > 0.5 * rare and rare >= 0.15 * common and first not in partner and second not in partner:
            partner[first] = partner[second] = f"{first} {second}"
    groups: dict[str, list[str]] = {}
    for word in counts:
        groups.setdefault(partner.get(word, word), []).append(word)
    names = []
    for full, words in groups.items():
        words.sort(key=lambda word: (-counts[word], word))
        names.append(Name(full, tuple(words), counts[words[0]]))
    return sorted(names, key=lambda name: (-name.count, name.full))
