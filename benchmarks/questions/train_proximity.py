"""Learns how much each sign of a place says: questions on the training books -> ttt_docs/lookup/proximity.json.

    python benchmarks/questions/train_proximity.py BOOKS.jsonl.zst ...

training.jsonl holds questions as natural.jsonl does, on books that none of its questions are about. The sentences near
an answer are to have a larger score than all others of the book: the log-likelihood of that choice is maximized, over
the sentences that a first look finds. Before the weights are written, the books are parted into four, and the places of
each part are found with weights that never saw it.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from books import books

from ttt_docs import TTTReader
from ttt_docs.lookup import proximity
from ttt_docs.lookup.answer import APART, SHOWN
from ttt_docs.lookup.proximity import related
from ttt_docs.lookup.question import understand
from ttt_docs.text.index import PassageIndex, build

QUESTIONS = Path(__file__).with_name("training.jsonl")
WEIGHTS = Path(proximity.__file__).with_name("proximity.json")
#: Sentences of a book that are told apart from the right ones: those with most of the question near them.
LOOKED_AT = 800
#: Characters from the answer within which a sentence is a right one; how much less one counts that far off.
NEAR, FADES = 350, 200
EPOCHS, BATCH, RATE, DECAY = 8, 16, 0.03, 1e-3
FOLDS = 4
FIRST = (1, 3, 5, 8, 12, 16, 20, 30)


@dataclass(frozen=True)
class Example:
    book: str
    index: PassageIndex
    answer: tuple[int, int]
    features: Tensor  # float32 [sentences looked at, features]
    sentences: np.ndarray  # int64 [sentences looked at]
    fits: Tensor  # float32 [sentences looked at]: 1 beside the answer, less farther off, 0 where it is not near


def examples(reader: TTTReader, questions: list[dict[str, Any]], texts: dict[str, str]) -> list[Example]:
    found, index = [], None
    for row in sorted(questions, key=lambda row: row["book"]):
        if index is None or index.text is not texts[row["book"]]:
            index = build(texts[row["book"]])
        query = understand(row["question"], index.language)
        near = related(reader.model, reader.tokenizer, list(query.words.values()))
        signs = proximity.features(index, query, near)
        start, end = row["start"], row["start"] + len(row["answer"])
        spans = np.array(index.sentences)
        away = np.maximum(0, np.maximum(start - spans[:, 1], spans[:, 0] - end))
        first = np.argsort(-signs[:, :-1].sum(1), kind="stable")[:LOOKED_AT]
        kept = np.union1d(first, (away <= NEAR).nonzero()[0])
        fits = np.where(away[kept] <= NEAR, np.exp(-away[kept] / FADES), 0)
        found.append(
            Example(
                row["book"],
                index,
                (start, end),
                torch.from_numpy(signs[kept]),
                kept,
                torch.from_numpy(fits).float(),
            )
        )
    return found


def fit(data: list[Example]) -> Tensor:
    """Weights [features]."""
    torch.manual_seed(0)
    every = torch.cat([one.features for one in data])
    sizes = every.std(0) + 1e-3
    w = torch.zeros(len(sizes), requires_grad=True)
    steps = EPOCHS * -(-len(data) // BATCH)
    descent = torch.optim.AdamW([w], RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(descent, RATE, total_steps=steps)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(data)).split(BATCH):
            losses = []
            for one in (data[row] for row in rows.tolist()):
                scores, right = (one.features / sizes) @ w, one.fits > 0
                losses.append(scores.logsumexp(0) - (scores[right] + one.fits[right].log()).logsumexp(0))
            descent.zero_grad()
            torch.stack(losses).mean().backward()
            descent.step()
            schedule.step()
    return (w / sizes).detach()


def rank(one: Example, weights: Tensor) -> float:
    """Which of the places, in their order, is the first whose evidence would show the answer."""
    scores = np.zeros(len(one.index.sentences), np.float32)
    scores[one.sentences] = np.maximum((one.features @ weights).numpy(), 0)
    start, end = one.answer
    for number, hit in enumerate(proximity.hits(one.index, scores, FIRST[-1], APART), 1):
        first, last = proximity.surroundings(one.index, hit.sentence, SHOWN)
        if one.index.sentences[first][0] <= start and end <= one.index.sentences[last - 1][1]:
            return number
    return float("inf")


def shares(ranks: list[float]) -> str:
    return ", ".join(f"{count}: {np.mean([rank <= count for rank in ranks]):.3f}" for count in FIRST)


def cross_validated(data: list[Example]) -> list[float]:
    """The rank of each, by weights that never saw its book."""
    names = np.random.default_rng(0).permutation(sorted({one.book for one in data}))
    fold = {name: place % FOLDS for place, name in enumerate(names)}
    ranks = []
    for held in range(FOLDS):
        weights = fit([one for one in data if fold[one.book] != held])
        ranks += [rank(one, weights) for one in data if fold[one.book] == held]
    return ranks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("books", type=Path, nargs="+")
    options = parser.parse_args()
    rows = [json.loads(line) for line in QUESTIONS.read_text("utf-8").splitlines()]
    asked = {row["book"] for row in rows}
    texts = {book["id"]: book["text"] for path in options.books for book in books(path) if book["id"] in asked}
    if missing := asked - texts.keys():
        raise SystemExit(f"Error: {len(missing)} books of {QUESTIONS.name} are in none of these files")
    data = examples(TTTReader.from_pretrained("smollm2-135m"), rows, texts)
    print(f"{len(data)} questions; share with the answer in the first places")
    print(f"  other books: {shares(cross_validated(data))}")
    weights = fit(data)
    kept = {name: round(float(weight), 4) for name, weight in zip(proximity.FEATURES, weights, strict=True)}
    WEIGHTS.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
    print(f"wrote {WEIGHTS}")


if __name__ == "__main__":
    main()
