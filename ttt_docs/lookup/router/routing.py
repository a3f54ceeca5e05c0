"""Whether a question is about the document as a whole, or about something at one place of it.

A logistic regression over features of the question and a small network over its words decide together. Both are fitted
by benchmarks/router/train.py, and docs/router.md says what belongs where. No language model runs. In doubt the question
is looked up: that costs seconds, where a name or a date from memory may be wrong.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ttt_docs.errors import UsageError
from ttt_docs.generation.results import Route
from ttt_docs.lookup.router.question_features import class_meanings, features
from ttt_docs.lookup.router.question_network import network_score

if TYPE_CHECKING:  # it brings torch along
    from ttt_docs.memory.memory import Memory

AskRoute = Literal["auto", "memory", "lookup", "whole"]
#: Features named in a reason.
NAMED = 2
#: What a pointer says about the question.
_POINTERS = {
    "place": "points to a place in the document (“{}”)",
    "quote": "quotes words ({})",
    "form": "says how the answer is to be (“{}”)",
    "code": "names something exact (“{}”)",
    "year": "names a year ({})",
    "number": "names a number ({})",
    "name": "names somebody or something (“{}”)",
}


@dataclass(frozen=True)
class Decision:
    """A question's route. `probability` is the calibrated probability that it asks for something exact (lookup)."""

    route: Route
    probability: float
    reason: str


@dataclass(frozen=True)
class Weights:
    """log(p / (1 - p)) = scale * (bias + sum of the weights of the features present + network's score) + offset."""

    bias: float
    features: dict[str, float]
    scale: float
    offset: float
    threshold: float  # lookup from this probability on


@cache
def weights() -> Weights:
    return Weights(**json.loads(Path(__file__).with_name("weights.json").read_text("utf-8")))


def chosen_route(memories: Sequence[Memory], question: str, route: AskRoute) -> tuple[Route, str, float]:
    """The route of a question, why, and the probability that it asks for something exact: as asked for, as the memories
    allow, or as the router decides.

    Raises UsageError for an empty question, and for memories that were asked for what they do not hold.
    """
    if not question.strip():
        raise UsageError("the question is empty")
    if route in ("memory", "whole"):
        if len(memories) > 1:
            raise UsageError('several memories cannot answer as one: ask them one by one, or with route="lookup"')
        if route == "memory" and memories[0].unread:
            raise UsageError(
                'this memory holds only the text, nothing of it was read: ask with route="lookup", '
                "or ingest the document with learn=True"
            )
    if route != "auto":
        return route, f"route={route} was asked for", 0.0
    if len(memories) > 1:
        return "lookup", "several memories are looked up in", 1.0
    if memories[0].text is None:
        return "memory", "the memory was saved without its text, so this is a recollection", 0.0
    decision = decide(question)
    return decision.route, decision.reason, decision.probability


def decide(question: str) -> Decision:
    """Decides from the question's words alone. Raises UsageError for an empty question."""
    if not question.strip():
        raise UsageError("the question is empty")
    w = weights()
    present = {name: words for name, words in features(question).items() if name in w.features}
    own = w.bias + sum(w.features[name] for name in present)
    score = w.scale * (own + network_score(question)) + w.offset
    probability = 1 / (1 + math.exp(-max(-30.0, min(30.0, score))))
    lookup = probability >= w.threshold
    return Decision("lookup" if lookup else "whole", probability, _reason(present, w, lookup, probability))


def _reason(present: dict[str, str], w: Weights, lookup: bool, probability: float) -> str:
    """The strongest things in the question that speak for the route; single words only where nothing else does."""
    strength: dict[tuple[bool, str], float] = defaultdict(float)  # (whether it is a single word, what it says)
    for name, written in present.items():
        if phrase := _phrase(name, written):
            strength[name.startswith("w="), phrase] += w.features[name] * (1 if lookup else -1)
    ranked = sorted((one for one in strength if strength[one] > 0), key=lambda one: (one[0], -strength[one]))
    strongest = [phrase for word, phrase in ranked if word == ranked[0][0]][:NAMED]
    if lookup and (not strongest or probability < 0.5):
        strongest.insert(0, "in doubt, so the document is searched")
    return "; ".join(strongest) or "asks about the document as a whole"


def _phrase(name: str, written: str) -> str:
    """What a feature says about the question; empty where it says nothing to a person."""
    kind, _, value = name.rpartition("&")[2].partition("=")
    if kind == "c" and class_meanings()[value]:
        return f"{class_meanings()[value]} (“{written}”)"
    if kind == "has":
        return _POINTERS[value].format(written)
    if kind in ("q", "w") and written:
        return f"{'asks' if kind == 'q' else 'says'} “{written}”"
    return ""
