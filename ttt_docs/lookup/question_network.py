"""A small convolutional network over a question's words: unlike the regression in router.py, it sees their order.

Each word is a row of its own where the training questions have it, plus its vector, plus its classes. Runs of one, two
and three words are looked at; what is strongest anywhere counts. A few networks, trained alike from different starts,
are averaged (benchmarks/router/network.py trains them). About a quarter of a millisecond in numpy.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from ttt_docs.lookup.question_features import class_meanings, clause_words, vector_row, vectors, word_classes

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
class Networks:
    """All networks side by side, float32."""

    rows: dict[str, int]
    own: np.ndarray  # [networks, rows, width]
    vector: np.ndarray  # [networks, dim, width]
    classes: np.ndarray  # [networks, classes, width]
    run: dict[int, np.ndarray]  # [networks, size * width, channels] by size of the run
    bias: dict[int, np.ndarray]  # [networks, 1, channels]
    out: np.ndarray  # [networks, len(RUNS) * channels]
    out_bias: np.ndarray  # [networks, 1]


def words_of(question: str) -> Words:
    stems, spoken = clause_words(question)
    stems, spoken = [BEGIN, *stems[: LENGTH - 2], END], ["", *spoken[: LENGTH - 2], ""]
    known, names = word_classes(), _class_columns()
    table = vectors()
    meant = np.zeros((LENGTH, table.shape[1]), np.float32)
    named = np.zeros((LENGTH, len(names)), np.float32)
    for i, (stem, word) in enumerate(zip(stems, spoken, strict=True)):
        row = None if stem.startswith("<") else vector_row(word.lower())
        if row is not None:
            meant[i] = VECTOR_SCALE * table[row]
        for name in known.get(stem, ()):
            named[i, names[name]] = 1
    return Words(stems, meant, named)


def network_score(question: str, networks: Networks | None = None) -> float:
    """Above 0 for lookup, below for memory: the mean log odds of `networks`, or else of the package's."""
    n, words = networks or _networks(), words_of(question)
    ids = [n.rows.get(stem, UNKNOWN) for stem in words.stems]
    x = np.zeros((len(n.own), LENGTH + 2, n.own.shape[2]), np.float32)  # an empty place at either end
    count = len(ids)
    x[:, 1 : count + 1] = n.own[:, ids] + words.vectors[:count] @ n.vector + words.classes[:count] @ n.classes
    peaks = []
    for size in RUNS:
        inner = x[:, 1:-1] if size == 1 else x
        places = inner.shape[1] - size + 1
        runs = np.concatenate([inner[:, i : i + places] for i in range(size)], axis=2)
        peaks.append(np.maximum(runs @ n.run[size] + n.bias[size], 0).max(1))
    odds = (np.concatenate(peaks, axis=1) * n.out).sum(1) + n.out_bias[:, 0]
    return float(odds.mean())


@cache
def _class_columns() -> dict[str, int]:
    return {name: i for i, name in enumerate(class_meanings())}


@cache
def _networks() -> Networks:
    return read_networks(Path(__file__).with_name("router_network.npz"))


def read_networks(path: Path) -> Networks:
    """From a file of 8-bit arrays, each with its scale."""
    with np.load(path) as file:
        words = str(file["words"]).split()
        scales = {name: file[name] for name in file.files if name.endswith(".scale")}
        array = {
            name.removesuffix(".scale"): file[name.removesuffix(".scale")].astype(np.float32) * scale
            for name, scale in scales.items()
        }
    return Networks(
        rows={word: i + UNKNOWN + 1 for i, word in enumerate(words)},
        own=array["own"],
        vector=array["vector"],
        classes=array["classes"],
        run={size: array[f"run{size}"] for size in RUNS},
        bias={size: array[f"bias{size}"] for size in RUNS},
        out=array["out"],
        out_bias=array["out_bias"],
    )
