"""Quotes with their places, and whether an answer stands in them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ttt_docs.generation.results import Evidence
from ttt_docs.lookup.terms import stop_words
from ttt_docs.memory.memory import Memory

_NUMBER = re.compile(r"\d+(?:[.,:/-]?\d+)*")
_NAME = re.compile(r"[^\W\d_a-z][\w’'-]+")
_POSSESSIVE = re.compile(r"['’]s?$")
#: Capitalized where a sentence begins, and no names.
_PLAIN = {"yes", "no", "according"}
_QUOTED = re.compile(r"[“\"«„]([^“”\"«»„]{2,})[”\"»“]")


def quote(memory: Memory, start: int, end: int, score: float, which: int = 0, at: int | None = None) -> Evidence:
    """The memory's text[start:end] with the page, chapter and document of character `at` (its start).

    Raises ValueError for a span outside the text.
    """
    text, at = memory.text, start if at is None else at
    if text is None or not 0 <= start < end <= len(text):
        raise ValueError(f"there is no text at characters {start} to {end}")
    document = memory.document_at(at)
    return Evidence(
        text[start:end],
        memory.label_at(at, "page"),
        start,
        end,
        score,
        chapter=memory.label_at(at, "chapter"),
        document=document.name if document else None,
        memory=which,
    )


def unsupported(answer: str, quotes: Sequence[str], question: str = "", language: str = "english") -> list[str]:
    """The numbers, names and quoted strings of an answer that stand neither in a quote nor in the question."""
    shown = " ".join(" ".join(quotes).split()).lower()
    if re.search(rf"(?<!\w){re.escape(' '.join(answer.split()).lower())}(?!\w)", shown):
        return []
    known = f"{shown} {question.lower()}"
    missing = [n for n in _NUMBER.findall(answer) if not re.search(rf"(?<!\d){re.escape(n)}(?!\d)", known)]
    missing += [q for q in _QUOTED.findall(answer) if " ".join(q.split()).lower() not in shown]
    for word in _NAME.findall(answer):
        name = _POSSESSIVE.sub("", word).lower()
        if name not in stop_words(language) | _PLAIN and not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", known):
            missing.append(word)
    return list(dict.fromkeys(missing))
