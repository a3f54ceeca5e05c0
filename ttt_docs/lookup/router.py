"""Which way a question goes: to the memory, or to the document's passages.

A logistic regression over features of the question and a small network over its words decide together; both are
fitted by benchmarks/router/train.py, and docs/router.md says what belongs where. The language model does not run. In
doubt the passages are searched: a lookup that was not needed costs seconds, a name or a date from memory may be wrong.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from ttt_docs.errors import UsageError
from ttt_docs.lookup.question_features import class_meanings, features, meaning
from ttt_docs.lookup.question_network import network_score

#: Features named in a reason.
NAMED = 2


@dataclass(frozen=True)
class Decision:
    """The way of a question. `probability` is the calibrated probability that it asks for something exact (lookup)."""

    route: Literal["memory", "lookup"]
    probability: float
    reason: str


@dataclass(frozen=True)
class Weights:
    """log(p / (1 - p)) = scale * (bias + sum of the weights of the features present + meaning * meanings + network's
    score) + offset."""

    bias: float
    meaning: list[float]
    features: dict[str, float]
    scale: float
    offset: float
    threshold: float  # lookup from this probability on


@cache
def weights() -> Weights:
    return Weights(**json.loads(Path(__file__).with_name("router.json").read_text("utf-8")))


def route(question: str) -> Decision:
    """Decides from the question's words alone. Raises UsageError for an empty question."""
    if not question.strip():
        raise UsageError("the question is empty")
    w = weights()
    present = {name: words for name, words in features(question).items() if name in w.features}
    meant = sum(map(float.__mul__, w.meaning, meaning(question).tolist()))
    own = w.bias + sum(w.features[name] for name in present) + meant
    score = w.scale * (own + network_score(question)) + w.offset
    probability = 1 / (1 + math.exp(-max(-30.0, min(30.0, score))))
    lookup = probability >= w.threshold
    return Decision("lookup" if lookup else "memory", probability, _reason(present, w, lookup, probability))


def _reason(present: dict[str, str], w: Weights, lookup: bool, probability: float) -> str:
    """The strongest things in the question that speak for the route; single words only where nothing else does."""
    sign = 1 if lookup else -1
    telling: dict[str, float] = {}
    words: dict[str, float] = {}
    for name, written in present.items():
        phrase, group = _phrase(name, written), words if name[0] in "wb" else telling
        if phrase:
            group[phrase] = group.get(phrase, 0.0) + sign * w.features[name]
    group = telling if max(telling.values(), default=0.0) > 0 else words
    strongest = [phrase for phrase in sorted(group, key=lambda phrase: -group[phrase]) if group[phrase] > 0][:NAMED]
    if lookup and (not strongest or probability < 0.5):
        strongest.insert(0, "in doubt, so the document is searched")
    return "; ".join(strongest) or "asks about the document as a whole"


def _phrase(name: str, written: str) -> str:
    """What a feature says about the question; empty where it says nothing to a person."""
    kind, _, value = name.rpartition("&")[2].partition("=")
    if kind in ("c", "first"):
        meaning = class_meanings()[value]
        return f"{meaning} (“{written}”)" if meaning else ""
    if kind == "has":
        return {
            "place": f"points to a place in the document (“{written}”)",
            "quote": f"quotes words ({written})",
            "form": f"says how the answer is to be (“{written}”)",
            "code": f"names something exact (“{written}”)",
            "year": f"names a year ({written})",
            "number": f"names a number ({written})",
            "name": f"names somebody or something (“{written}”)",
        }[value]
    if kind == "q":
        return f"asks “{written}”" if written else ""
    return f"says “{written}”" if kind in ("w", "b") and written else ""
