"""A small convolutional network over a question's words. It sees their order, which the regression does not.

A word comes in as three things: a row of its own if the training questions have it, its vector, and its classes. The
network looks at runs of one, two and three words, and keeps what is strongest anywhere in the question.
benchmarks/router/network.py trains it. A question takes about a quarter of a millisecond.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from ttt_docs.lookup.router.question_features import (
    class_meanings,
    clause_words,
    vector_row,
    word_classes,
    word_vectors,
)

#: Words seen, with the marks of beginning and end.
LENGTH = 20
#: Neighbouring words looked at together.
RUNS = (1, 2, 3)
#: The unit vectors are longer beside the other inputs, so that training learns from them sooner.
VECTOR_SCALE = 3.0
BEGIN, END = "^", "$"
EMPTY, UNKNOWN = 0, 1  # rows of the table that stand for no word and for a word without a row


@dataclass(frozen=True)
class Words:
    """A question as the network takes it: its first `len(stems)` rows are words, the others are 0."""

    stems: list[str]
    vectors: np.ndarray  # float32 [LENGTH, dim]
    classes: np.ndarray  # float32 [LENGTH, classes]


@dataclass(frozen=True)
class QuestionNetwork:
    """The weights, float32."""

    rows: dict[str, int]
    own: np.ndarray  # [rows, width]
    vector: np.ndarray  # [dim, width]
    classes: np.ndarray  # [classes, width]
    run: dict[int, np.ndarray]  # [size * width, channels] by size of the run
    bias: dict[int, np.ndarray]  # [channels]
    out: np.ndarray  # [len(RUNS) * channels]
    out_bias: np.ndarray  # []


def words_of(question: str) -> Words:
    stems, spoken, _ = clause_words(question)
    stems, spoken = [BEGIN, *stems[: LENGTH - 2], END], ["", *spoken[: LENGTH - 2], ""]
    known, columns = word_classes(), list(class_meanings())
    table = word_vectors()[1]
    meant = np.zeros((LENGTH, table.shape[1]), np.float32)
    named = np.zeros((LENGTH, len(columns)), np.float32)
    for i, (stem, word) in enumerate(zip(stems, spoken, strict=True)):
        row = None if stem.startswith("<") else vector_row(word.lower())
        if row is not None:
            meant[i] = VECTOR_SCALE * table[row]
        for name in known.get(stem, ()):
            named[i, columns.index(name)] = 1
    return Words(stems, meant, named)


def network_score(question: str, network: QuestionNetwork | None = None) -> float:
    """Above 0 for lookup, below for memory: the log odds by `network`, or else by the package's."""
    n, words = network or _shipped(), words_of(question)
    ids = [n.rows.get(stem, UNKNOWN) for stem in words.stems]
    count = len(ids)
    x = np.zeros((LENGTH + 2, n.own.shape[1]), np.float32)  # an empty row at either end
    x[1 : count + 1] = n.own[ids] + words.vectors[:count] @ n.vector + words.classes[:count] @ n.classes
    peaks = []
    for size in RUNS:
        inner = x[1:-1] if size == 1 else x
        starts = len(inner) - size + 1
        runs = np.concatenate([inner[i : i + starts] for i in range(size)], axis=1)
        peaks.append(np.maximum(runs @ n.run[size] + n.bias[size], 0).max(0))
    return float(np.concatenate(peaks) @ n.out + n.out_bias)


@cache
def _shipped() -> QuestionNetwork:
    return read_network(Path(__file__).with_name("network.npz"))


def read_network(path: Path) -> QuestionNetwork:
    """From a file of 8-bit arrays, each with its scale."""
    with np.load(path) as file:
        words = str(file["words"]).split()
        names = [name for name in file.files if f"{name}.scale" in file.files]
        array = {name: file[name].astype(np.float32) * file[f"{name}.scale"] for name in names}
    return QuestionNetwork(
        rows={word: i + UNKNOWN + 1 for i, word in enumerate(words)},
        run={size: array[f"run{size}"] for size in RUNS},
        bias={size: array[f"bias{size}"] for size in RUNS},
        **{name: array[name] for name in ("own", "vector", "classes", "out", "out_bias")},
    )
