"""Needle tests: a value hidden in a long text is asked for, as a user would ask. Ingest the text, then `ask`.

The texts are the retrieval tasks of RULER (arXiv 2404.06654), at any length. A needle is a sentence that gives a key
its value. The question names one key or several. Around the needles stands one line of noise again and again, prose,
or nothing but other needles.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from ttt_docs.errors import UsageError
from ttt_docs.figures import new_figure, save_figure
from ttt_docs.text.sentences import short_sentences

if TYPE_CHECKING:
    from ttt_docs.lookup.router.routing import AskRoute
    from ttt_docs.reader import TTTReader

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


#: Bands of depth in tables and pictures.
BANDS = 10


class Asked(BaseModel):
    """One question of a needle test and how it went."""

    task: str
    length: int  # tokens of text and question, at most
    route: Literal["auto", "memory", "lookup"]
    depth: float  # of the needle: 0 at the start of the text, 1 at its end
    taken: str  # the route that was taken
    score: float  # share of the expected values that stand in the answer
    verified: bool
    ingest_seconds: float
    seconds: float  # of `ask`, the index included


def measure(
    reader: TTTReader,
    tasks: Sequence[str],
    lengths: Sequence[int],
    samples: int,
    route: AskRoute,
    haystack: Iterable[str] = (),
    seed: int = 0,
) -> Iterator[Asked]:
    """Asks `samples` questions for each task and length, with needles at depths spread evenly from start to end.

    `haystack` are texts for the tasks in prose. The text is read into fast weights for the route `memory` only, else
    `ingest(learn=False)` takes it.

    Raises UsageError for an unknown task, or one in prose without `haystack`.
    """
    unknown = [task for task in tasks if task not in TASKS]
    if unknown:
        raise UsageError(f"there is no task {', '.join(unknown)}: choose from {', '.join(TASKS)}")

    def count(text: str) -> int:
        return len(reader.tokenizer.encode(text))

    prose, in_prose = None, [task for task in tasks if TASKS[task].haystack == "prose"]
    if in_prose:
        prose = prose_of(list(haystack), count, 2 * max(lengths))
        if not prose:
            raise UsageError(
                f"{', '.join(in_prose)} hide needles in prose: give texts to hide them in (--haystack FILE)"
            )
    for length, task, i in product(lengths, tasks, range(samples)):
        depth = 0.5 if samples == 1 else i / (samples - 1)
        # Each sample has a seed of its own: it is the same whatever else is measured with it.
        own_seed = random.Random(f"{seed} {task} {length} {i}").getrandbits(62)
        hidden = sample(TASKS[task], length, depth, prose, count, own_seed)
        began = time.perf_counter()
        memory = reader.ingest(text=hidden.text, learn=route == "memory", progress=False)
        ingested = time.perf_counter()
        answer = reader.ask(memory, hidden.question, route=route)
        seconds = time.perf_counter() - ingested
        yield Asked(
            task=task,
            length=length,
            route=route,
            depth=depth,
            taken=answer.route,
            score=score(answer.text, hidden.expected),
            verified=answer.verified,
            ingest_seconds=ingested - began,
            seconds=seconds,
        )


def report(asked: Sequence[Asked]) -> dict[str, Any]:
    """`results`, one row for each task, length and route; `depths`, the same in bands of depth."""
    groups: dict[tuple[str, int, str], list[Asked]] = {}
    for one in asked:
        groups.setdefault((one.task, one.length, one.route), []).append(one)
    results, depths = [], []
    for (task, length, route), group in groups.items():
        named = {"task": task, "length": length, "route": route}
        row = {
            "samples": len(group),
            "accuracy": fmean(one.score for one in group),
            "seconds_per_question": fmean(one.seconds for one in group),
            "slowest_seconds": max(one.seconds for one in group),
            "ingest_seconds": fmean(one.ingest_seconds for one in group),
            "verified": fmean(one.verified for one in group),
        }
        results.append(named | row)
        for band in range(BANDS):
            inside = [one.score for one in group if min(int(one.depth * BANDS), BANDS - 1) == band]
            if inside:
                depths.append(named | {"depth": band / BANDS, "samples": len(inside), "accuracy": fmean(inside)})
    return {"results": results, "depths": depths}


def plot(asked: Sequence[Asked], path: Path) -> None:
    """A heat map for each task: accuracy by length (across) and depth (down).

    The suffix of `path` chooses the format. Raises UsageError for a format that matplotlib cannot write, or without it.
    """
    rows = report(asked)["depths"]
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    lengths = sorted({row["length"] for row in rows})
    figure = new_figure((1.2 + 1.1 * len(tasks) * max(1.0, len(lengths) / 2), 3.6))
    panels = figure.subplots(1, len(tasks), squeeze=False, sharey=True)[0]
    for panel, task in zip(panels, tasks, strict=True):
        grid = [[float("nan")] * len(lengths) for _ in range(BANDS)]
        for row in rows:
            if row["task"] == task:
                grid[round(row["depth"] * BANDS)][lengths.index(row["length"])] = row["accuracy"]
        image = panel.imshow(grid, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
        panel.set_title(task, fontsize=9)
        panel.set_xticks(range(len(lengths)), [f"{length // 1024}K" for length in lengths], fontsize=8)
        panel.set_yticks(range(BANDS), [f"{100 * band // BANDS}%" for band in range(BANDS)], fontsize=8)
    panels[0].set_ylabel("depth of the needle")
    figure.supxlabel("tokens", fontsize=9)
    figure.colorbar(image, ax=list(panels), label="accuracy")
    save_figure(figure, path)
