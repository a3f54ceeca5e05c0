"""Which way a question goes: to the memory, or to the document's passages.

A logistic regression over the words of the question decides; it is fitted by benchmarks/router/train.py, and
docs/router.md says what belongs where. The language model does not run. In doubt the passages are searched: a lookup
that was not needed costs seconds, a name or a date from memory may be wrong.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from ttt_docs.errors import UsageError
from ttt_docs.lookup.question_features import class_meanings, features

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
    """log(p / (1 - p)) = scale * (bias + sum of the weights of the features present) + offset."""

    bias: float
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
    score = w.scale * (w.bias + sum(w.features[name] for name in present)) + w.offset
    probability = 1 / (1 + math.exp(-max(-30.0, min(30.0, score))))
    lookup = probability >= w.threshold
    return Decision("lookup" if lookup else "memory", probability, _reason(present, w, lookup, probability))


def _reason(present: dict[str, str], w: Weights, lookup: bool, probability: float) -> str:
    sign = 1 if lookup else -1
    strengths: dict[str, float] = {}
    for name, words in present.items():
        if (phrase := _phrase(name, words)) and sign * w.features[name] > 0:
            strengths[phrase] = strengths.get(phrase, 0.0) + sign * w.features[name]
    strongest = sorted(strengths, key=lambda phrase: -strengths[phrase])[:NAMED]
    if lookup and (not strongest or probability < 0.5):
        return "; ".join(["in doubt, so the document is searched", *strongest])
    return "; ".join(strongest) or "asks about the document as a whole"


def _phrase(name: str, words: str) -> str:
    """What a feature says about the question; empty where it says nothing to a person."""
    kind, _, value = name.rpartition("&")[2].partition("=")
    if kind in ("c", "first"):
        return f"{class_meanings()[value]} (“{words}”)"
    if kind == "has":
        return {
            "place": f"points to a place in the document (“{words}”)",
            "quote": f"quotes words ({words})",
            "code": f"names something exact (“{words}”)",
            "year": f"names a year ({words})",
            "number": f"names a number ({words})",
            "name": f"names somebody or something (“{words}”)",
        }[value]
    if kind == "q":
        return f"asks “{words}”" if words else ""
    return f"says “{words}”" if kind in ("w", "b", "start") and words else ""
