"""How probable it is that a passage's answer is right: a logistic regression over what the reader says of itself.

Its weights are fitted on questions that nobody was taught with (benchmarks/teaching/calibrate.py).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from ttt_docs.lookup.reader import PassageAnswer

#: What is known of a passage's answer:
FEATURES = (
    "here",  # log odds that the passage answers
    "sure",  # log of the answer's probability, per token
    "words",  # of the answer, in twenties
    "verbatim",  # the passage holds the answer as it is
    "agrees",  # another passage gives the same answer
    "rival",  # the largest log odds of a passage that answers otherwise
    "rank",  # of the passage in the search: 0 is the best, 1 the last
)
_MOST = 8.0  # log odds beyond this say no more
_LEAST = 0.05  # a probability below this says no more
_WORD = re.compile(r"[^\W_]+")


def same_words(text: str) -> str:
    """What two answers share that differ in case and punctuation only."""
    return " ".join(_WORD.findall(text.lower()))


def features(answers: Sequence[PassageAnswer], passages: Sequence[str]) -> np.ndarray:
    """The values of `FEATURES`, float32 [answers, features]. `passages` are in the order of the search."""
    odds = [max(-_MOST, min(_MOST, math.log((a.here + 1e-9) / (1 - a.here + 1e-9)))) for a in answers]
    said = [same_words(a.text) for a in answers]
    found = []
    for i, answer in enumerate(answers):
        same = any(said[j] == said[i] and odds[j] > 0 for j in range(len(answers)) if j != i)
        rival = max((odds[j] for j in range(len(answers)) if said[j] != said[i]), default=-_MOST)
        verbatim = f" {said[i]} " in f" {same_words(passages[answer.passage])} "
        rank = answer.passage / max(len(passages) - 1, 1)
        words = min(len(said[i].split()), 20) / 20
        found.append([odds[i], math.log(max(answer.sure, _LEAST)), words, verbatim, same, rival, rank])
    return np.array(found, dtype=np.float32).reshape(-1, len(FEATURES))


@cache
def _weights() -> tuple[np.ndarray, float]:
    kept = json.loads(Path(__file__).with_name("confidence.json").read_text("utf-8"))
    return np.array([kept[name] for name in FEATURES], dtype=np.float32), kept["bias"]


def probabilities(answers: Sequence[PassageAnswer], passages: Sequence[str]) -> list[float]:
    """For each answer the probability that it is right."""
    weights, bias = _weights()
    return (1 / (1 + np.exp(-(features(answers, passages) @ weights + bias)))).tolist()
