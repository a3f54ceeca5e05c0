"""Texts with needles in them: the retrieval tasks of RULER (arXiv 2404.06654), at any length.

A needle is a sentence that gives a key its value; the question names one key or several. What lies around it is one
line of noise repeated, prose, or nothing but other needles.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

from ttt_docs.text.sentences import short_sentences

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NEEDLE = "One of the special magic {kind}s for {key} is: {value}."
_QUIZ = "hidden within the following text. Make sure to memorize it. I will quiz you about the"
HEAD = {
    1: f"A special magic {{kind}} is {_QUIZ} {{kind}} afterwards.",
    2: f"Some special magic {{kind}}s are {_QUIZ} {{kind}}s afterwards.",
}
QUESTION = {
    1: "What is the special magic {kind} for {keys} mentioned in the provided text?",
    2: "What are all the special magic {kind}s for {keys} mentioned in the provided text?",
}

Form = Literal["word", "number", "uuid"]
Count = Callable[[str], int]
#: Sentences to hide needles between, each with its number of tokens.
Prose = Sequence[tuple[str, int]]


@dataclass(frozen=True)
class Task:
    """What is hidden where. `keys` needles have `values` values each, and `queries` of the keys are asked for."""

    haystack: Literal["noise", "prose", "needles"]
    key: Form = "word"
    value: Form = "number"
    keys: int = 1
    values: int = 1
    queries: int = 1


TASKS: dict[str, Task] = {
    "single_1": Task("noise"),
    "single_2": Task("prose"),
    "single_3": Task("prose", value="uuid"),
    "multikey_1": Task("prose", keys=4),
    "multikey_2": Task("needles"),
    "multikey_3": Task("needles", key="uuid", value="uuid"),
    "multivalue": Task("prose", values=4),
    "multiquery": Task("prose", keys=4, queries=4),
}


@dataclass(frozen=True)
class Sample:
    """A text, a question about it, what the answer must hold, and where that stands (0: at the start, 1: the end)."""

    text: str
    question: str
    expected: tuple[str, ...]
    depth: float


def sample(task: Task, length: int, depth: float, prose: Prose | None, count: Count, seed: int) -> Sample:
    """A text of at most `length` tokens and nearly as many, with the first asked needle at `depth`.

    The other needles lie anywhere. `prose` is needed for tasks in prose.
    """
    draw = random.Random(seed)
    keys = _distinct(draw, task.key, task.keys)
    values = {key: _distinct(draw, task.value, task.values) for key in keys}
    kind = task.value
    needles = [NEEDLE.format(kind=kind, key=key, value=value) for key in keys for value in values[key]]
    asked = keys[: task.queries]
    form = 2 if task.values * task.queries > 1 else 1
    named = asked[0] if len(asked) == 1 else f"{', '.join(asked[:-1])}, and {asked[-1]}"
    question = QUESTION[form].format(kind=kind, keys=named)
    head = HEAD[form].format(kind=kind)
    room = length - count(head) - count(question) - sum(map(count, needles)) - 2 * len(needles)
    hay, joint = _hay(task, room, prose, count, draw, keys)
    slots = [round(depth * len(hay))] + [draw.randrange(len(hay) + 1) for _ in needles[1:]]
    for slot, needle in sorted(zip(slots, needles, strict=True), key=lambda pair: -pair[0]):
        hay.insert(slot, needle)
    expected = tuple(value for key in asked for value in values[key])
    return Sample(f"{head}\n{joint.join(hay)}", question, expected, depth)


def prose_of(texts: Sequence[str], count: Count, longest: int) -> Prose:
    """The sentences of `texts`, one after the other, until there are `longest` tokens of them."""
    found: list[tuple[str, int]] = []
    total = 0
    for text in texts:
        spans = short_sentences(text)
        for (start, _), (following, _) in zip(spans, [*spans[1:], (len(text), 0)], strict=True):
            sentence = text[start:following].rstrip(" ")
            found.append((sentence, count(" " + sentence)))
            total += found[-1][1]
            if total >= longest:
                return found
    return found


def score(answer: str, expected: Sequence[str]) -> float:
    """Share of the expected strings that stand in the answer, in any case (RULER's string_match_all)."""
    return sum(value.lower() in answer.lower() for value in expected) / len(expected)


def _hay(
    task: Task, room: int, prose: Prose | None, count: Count, draw: random.Random, keys: Sequence[str]
) -> tuple[list[str], str]:
    """Pieces of the haystack, of `room` tokens in all, and what stands between them."""
    if task.haystack == "noise":
        return [NOISE] * max(1, room // (count(NOISE) + 1)), "\n"
    hay: list[str] = []
    if task.haystack == "needles":
        while True:
            key, value = _one(draw, task.key), _one(draw, task.value)
            needle = NEEDLE.format(kind=task.value, key=key, value=value)
            room -= count(needle) + 1
            if room < 0:
                return hay, "\n"
            if key not in keys:
                hay.append(needle)
    assert prose is not None
    at = draw.randrange(len(prose))
    while (room := room - prose[at % len(prose)][1]) > 0:
        hay.append(prose[at % len(prose)][0])
        at += 1
    return hay, " "


def _distinct(draw: random.Random, form: Form, count: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found[_one(draw, form)] = None
    return list(found)


def _one(draw: random.Random, form: Form) -> str:
    if form == "number":
        return str(draw.randint(1_000_000, 9_999_999))
    if form == "uuid":
        return str(uuid.UUID(int=draw.getrandbits(128), version=4))
    adjectives, nouns = _words()
    return f"{draw.choice(adjectives)}-{draw.choice(nouns)}"


@cache
def _words() -> tuple[list[str], list[str]]:
    first, second = files("ttt_docs.evaluation").joinpath("needle_words.txt").read_text("utf-8").splitlines()
    return first.split(), second.split()
