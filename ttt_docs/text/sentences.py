"""The sentences of a passage that can stand alone in a summary."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ttt_docs.generation.passages import Passage, sentences
from ttt_docs.text.names import Name, word_set

#: Characters of a sentence that a summary quotes; scripts without spaces say as much in fewer.
SIZE = (45, 260)
DENSE_SIZE = (12, 120)
#: A sentence that opens with one of these needs the one before it.
_LEANING = word_set(
    "he she it they we you this that these those his her their its him them such there here both neither either thus "
    "hence therefore another others nor or because which who whom whose what when where why how instantly "
    "immediately suddenly presently afterwards later upon meantime once"
)
_PRONOUN = re.compile(r"(?<!\w)(?:he|she|it|they|his|her|him|them|their|this|that|these|those|you|your)(?!\w)", re.I)
_FIRST_PERSON = re.compile(r"(?<!\w)(?:I|my|me|we|our|us|you|your)(?!\w)")
_CONNECTIVE = re.compile(
    r"(?:(?:and|but|now|so|for|yet|then|still|moreover|however|indeed|again|also|besides|accordingly|meanwhile),?\s+)+",
    re.IGNORECASE,
)
_SPOKEN = re.compile(r"[\"“”«»„?!\[\]{}|=<>]|^\W*[—–-]|\.\.\.|…|(?<!\w)'(?=\w)|^\S+:")
_MARKS = re.compile(r"(?<!\w)_|_(?!\w)")


@dataclass(frozen=True)
class Quote:
    """A sentence `text[start:end]` of the document, how a summary writes it, and its score."""

    start: int
    end: int
    written: str
    score: float


def written(sentence: str) -> str:
    """A sentence on one line, without emphasis marks and without the conjunction that ties it to the one before."""
    line = _MARKS.sub("", " ".join(sentence.split())).replace("--", "—")
    line = re.sub(r"(?<=\w)- (?=[a-z])", "-", line)
    opening = _CONNECTIVE.match(line)
    if opening and not line[opening.end() :][:1].isspace() and len(line) > opening.end():
        rest = line[opening.end() :]
        line = rest[0].upper() + rest[1:]
    return line


def quotes(text: str, passage: Passage, names: Sequence[Name]) -> list[Quote]:
    """The sentences of a passage that are understood without the ones around them, in order."""
    low, high = SIZE if text.count(" ") > 0.05 * len(text) else DENSE_SIZE
    found = []
    for start, end in sentences(text, passage.start, passage.end):
        line = written(text[start:end])
        if _inside_speech(text[passage.start : start]):
            continue
        if not low <= len(line) <= high or _SPOKEN.search(line) or line.count("(") != line.count(")"):
            continue
        first = re.match(r"\W*(\w+)", line)
        if first is None or first.group(1).lower() in _LEANING or not first.group(1)[0].isalnum():
            continue
        if first.group(1)[0].islower() or line[-1] not in ".。":
            continue
        found.append(Quote(start, end, line, _score(line, names) + 0.5 * passage.score))
    return found


def _inside_speech(before: str) -> bool:
    """Whether a quotation that began earlier in the passage is still open."""
    return before.count("“") > before.count("”") or before.count("„") > before.count("“") or before.count('"') % 2 == 1


def _score(line: str, names: Sequence[Name]) -> float:
    named = [name for name in names if name.within(line)]
    weight = sum((name.count / names[0].count) ** 0.5 for name in named[:3]) if names else 0.0
    early = any(name.within(line[:60]) for name in named)
    leaning = len(_PRONOUN.findall(line)) + 1.0 * len(_FIRST_PERSON.findall(line))
    size = min(len(line), 140) / 140
    return 1.5 * weight + 0.7 * early + 0.8 * size - 0.25 * leaning - 0.3 * line.count(";") - 0.1 * line.count("—")
