"""Fits the router's weights on the training half of questions.jsonl, and measures them.

    python benchmarks/router/train.py --judged build/router/judged.jsonl       fits, and writes the package's weights
    python benchmarks/router/train.py --measure FILE   measures the weights of the package; changes nothing
                                       [--half test] [--json OUT] [--misses]

A regression over features learns from three quarters of the training half's templates, from questions made of frames
(frames.py) and from plain ones (plain.jsonl). A network over words learns from the same, and from what a teacher says
of invented questions (teacher.py). Their scores are added. The share of the regression, calibration and threshold are
chosen on the last quarter, which neither they nor the teacher saw.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any

import network
import numpy as np
import torch
from frames import bare, frame_questions
from make_questions import templates
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from shared import facts

from ttt_docs.lookup.router import question_features
from ttt_docs.lookup.router.routing import decide

features = lru_cache(None)(question_features.features)

HERE = Path(__file__).resolve().parent
WEIGHTS = HERE.parents[1] / "ttt_docs" / "lookup" / "router" / "weights.json"
NETWORK = WEIGHTS.with_name("network.npz")
FRAME_WEIGHT = 0.3
#: The teacher's log odds are divided by this. Of a labelled question's target the label is so much; what it weighs.
SOFTENED, OWN_LABEL, OWN_WEIGHT = 2.0, 0.7, 2.0
MIN_QUESTIONS = 6  # a word has a row in the network once this many questions have it
LEAST = 0.003  # weights below are left out of the file
PENALTY = 0.8  # of 0.1 to 1.6 the best or nearly so, by template and by kind, whenever tried during development
PARTS = 4
MIN_TEMPLATES = 2  # a word counts once this many templates of the training half have it
#: What the regression's score may be multiplied by before the network's is added.
SHARES = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
#: Probability from which on a question is looked up: never above one half, so that doubt goes to the lookup.
THRESHOLDS = (0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)

#: What weights are drawn to, instead of 0: what a word of each class is for, before any question was seen.
PRIOR = {"summary": -2, "theme": -2, "style": -2, "character": -2, "audience": -2, "compare": -1.5, "opinion": -1.5}
PRIOR |= {"meaning": -1, "explain": -1, "whole": -0.7, "argument": -1, "create": -1, "structure": -1.5}
PRIOR |= {
    "exact": 2,
    "speech": 1,
    "number": 1.5,
    "time": 1.5,
    "spot": 1.5,
    "id": 1.5,
    "name": 1,
    "find": 1.5,
    "define": 2,
}
PRIOR |= {"inward": -1, "state": 1, "thing": 1, "technical": 1, "terms": 1, "handling": 1}
PRIOR |= {"action": 1, "has=place": 2.5, "has=quote": 1, "has=code": 1, "has=form": -1}

Array = np.ndarray


def load(path: Path, half: str | None) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
    return [row for row in rows if half in (None, row.get("half"))]


def bare_texts(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The texts of the rows' templates and frames, by name, with slots that say nothing."""
    texts = {template["id"]: [bare(template["text"])] for template in templates()}
    kept: dict[str, list[str]] = {}
    for row in rows:
        if "bare" in row:
            kept.setdefault(f"{row['template']} {row['bare']}", [row["bare"]])
        else:
            kept[row["template"]] = texts[row["template"]]
    return kept


def vocabulary(rows: list[dict[str, Any]]) -> list[str]:
    """Features to weigh. Words count by the templates that have them outside of their slots."""
    own: Counter[str] = Counter()
    for texts in bare_texts(rows).values():
        own.update({name for text in texts for name in features(text)})
    seen = Counter(name for row in rows for name in features(row["question"]))
    frequent = {name for name, count in own.items() if count >= MIN_TEMPLATES}
    general = {name for name, count in seen.items() if count >= 3 and not name.startswith("w=")}
    return sorted({name for name in frequent if name in seen} | general)


def matrix(rows: list[dict[str, Any]], names: list[str]) -> Array:
    """[questions, features]: 0 and 1."""
    column = {name: i for i, name in enumerate(names)}
    out = np.zeros((len(rows), len(names)))
    for i, row in enumerate(rows):
        for name in features(row["question"]):
            if name in column:
                out[i, column[name]] = 1
    return out


def prior(names: list[str]) -> Array:
    """[features + 1], the bias last."""

    def centre(name: str) -> float:
        own = PRIOR.get(name.removeprefix("head&").removeprefix("c="), 0.0)
        return own / 2 if name.startswith("head&") else own

    return np.array([*map(centre, names), 0.0])


def fit(x: Array, y: Array, weight: Array, penalty: float, mean: Array | None = None) -> Array:
    """Logistic regression with a Gaussian prior around `mean` (next to none on the bias, which comes last)."""
    inputs = torch.from_numpy(np.hstack([x, np.ones((len(x), 1))])).float()
    targets, sizes = torch.from_numpy(y).float(), torch.from_numpy(weight).float()
    ridge = torch.full((inputs.shape[1],), penalty, dtype=torch.float32)
    ridge[-1] = 1e-3
    centre = torch.zeros(inputs.shape[1], dtype=torch.float32) if mean is None else torch.from_numpy(mean).float()
    w = centre.clone().requires_grad_()
    descent = torch.optim.LBFGS([w], max_iter=80, tolerance_grad=1e-3, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        descent.zero_grad()
        errors = binary_cross_entropy_with_logits(inputs @ w, targets, sizes, reduction="sum")
        total = errors + (ridge * (w - centre) ** 2).sum() / 2
        total.backward()
        return total

    descent.step(loss)
    return w.detach().double().numpy()


def sigmoid(score: Array) -> Array:
    return 1 / (1 + np.exp(-np.clip(score, -30, 30)))


def template_weights(rows: list[dict[str, Any]]) -> Array:
    """Every template weighs the same, however many questions it makes; a question made of a frame, `FRAME_WEIGHT`."""
    count = Counter(row["template"] for row in rows)
    framed = (row["template"].startswith("frame") for row in rows)
    return np.array(
        [FRAME_WEIGHT if one else 1 / count[row["template"]] for row, one in zip(rows, framed, strict=True)]
    )


@dataclass(frozen=True)
class Model:
    names: list[str]
    weights: Array  # [features + 1], the bias last
    words: list[str]
    net: network.Network

    def regression(self, rows: list[dict[str, Any]]) -> Array:
        return matrix(rows, self.names) @ self.weights[:-1] + self.weights[-1]

    def network(self, rows: list[dict[str, Any]]) -> Array:
        return network.scores(self.net, [row["question"] for row in rows], self.words)


def fitted(rows: list[dict[str, Any]], judged: dict[str, float]) -> Model:
    """`judged`: the teacher's log odds, for the rows' questions too."""
    y, weight, names = labels(rows), template_weights(rows), vocabulary(rows)
    w = fit(matrix(rows, names), y, weight, PENALTY, prior(names))
    own = [row["question"] for row in rows]
    known = set(own)
    invented = [question for question in judged if question not in known]
    said = sigmoid(np.array([judged[question] for question in own + invented]) / SOFTENED)
    said[: len(own)] = OWN_LABEL * y + (1 - OWN_LABEL) * said[: len(own)]
    sizes = np.concatenate([np.full(len(own), OWN_WEIGHT), np.ones(len(invented))])
    words = network.vocabulary(own + invented, MIN_QUESTIONS)
    return Model(names, w, words, network.train(own + invented, said, sizes, words))


def learned_from(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows to learn from, and those by whose templates, a quarter, choices are made."""
    ids = sorted({row["template"] for row in rows})
    order = np.random.default_rng(0).permutation(len(ids))
    chosen = {name for i, name in enumerate(ids) if order[i] % PARTS == PARTS - 1}
    return [row for row in rows if row["template"] not in chosen], [row for row in rows if row["template"] in chosen]


def plain_questions() -> list[dict[str, Any]]:
    """Questions written one by one, each with a phrasing of its own, for training only."""
    rows = load(HERE / "plain.jsonl", None)
    return [row | {"template": f"plain-{i:04}", "bare": row["question"]} for i, row in enumerate(rows)]


def labels(rows: list[dict[str, Any]]) -> Array:
    return np.array([row["label"] == "lookup" for row in rows], dtype=float)


def calibrate(scores: Array, y: Array, weight: Array) -> tuple[float, float]:
    """Platt's scale and offset."""
    scale, offset = fit(scores[:, None], y, weight, 1e-3)
    return float(scale), float(offset)


def calibrated_loss(scores: Array, y: Array, weight: Array) -> tuple[float, float, float]:
    """Nats per question after calibration, and the calibration."""
    scale, offset = calibrate(scores, y, weight)
    p = sigmoid(scale * scores + offset)
    return float(-np.average(np.log(np.where(y > 0, p, 1 - p)), weights=weight)), scale, offset


def calibration_error(p: Array, y: Array, bins: int = 10) -> tuple[float, list[dict[str, float]]]:
    """Expected calibration error, and the table it comes from: bins of equal width of the probability of lookup."""
    table, error = [], 0.0
    for i in range(bins):
        inside = (p >= i / bins) & ((p < (i + 1) / bins) | (i == bins - 1))
        if inside.any():
            gap = abs(p[inside].mean() - y[inside].mean())
            error += inside.mean() * gap
            table.append(
                {
                    "from": i / bins,
                    "count": int(inside.sum()),
                    "mean": round(float(p[inside].mean()), 3),
                    "lookup": round(float(y[inside].mean()), 3),
                }
            )
    return error, table


def train(path: Path) -> None:
    kept, last = learned_from(load(HERE / "questions.jsonl", "train"))
    judged = {row["question"]: row["score"] for row in load(path, None)}
    model = fitted([*kept, *frame_questions(), *plain_questions()], judged)
    y, weight = labels(last), template_weights(last)
    regression, net = model.regression(last), model.network(last)
    losses = {share: calibrated_loss(share * regression + net, y, weight) for share in SHARES}
    share = min(losses, key=lambda one: losses[one][0])
    print(f"nats of the last quarter by the regression's share: { {one: round(losses[one][0], 4) for one in SHARES} }")
    _, scale, offset = losses[share]
    p = sigmoid(scale * (share * regression + net) + offset)
    right = {t: float(((p >= t) == (y > 0)).mean()) for t in THRESHOLDS}
    threshold = min(t for t, part in right.items() if part >= max(right.values()) - 0.002)
    print(f"scale {scale:.3f}, offset {offset:.3f}, threshold {threshold}, right {right}")
    network.save(model.net, model.words, NETWORK)
    write_weights(replace(model, weights=share * model.weights), scale, offset, threshold)


def write_weights(model: Model, scale: float, offset: float, threshold: float) -> None:
    names, w = model.names, model.weights
    kept = {name: round(float(value), 3) for name, value in zip(names, w, strict=False) if abs(value) >= LEAST}
    settings = {
        "bias": round(float(w[-1]), 4),
        "scale": round(scale, 4),
        "offset": round(offset, 4),
        "threshold": threshold,
    }
    lines = ",\n".join(f"  {json.dumps(name, ensure_ascii=False)}: {value}" for name, value in kept.items())
    text = json.dumps(settings)[:-1] + ', "features": {\n' + lines + "\n}}\n"
    WEIGHTS.write_text(text, "utf-8")
    print(f"{len(kept)} features in {WEIGHTS.name}, {len(text) / 1000:.0f} KB; {NETWORK.stat().st_size / 1000:.0f} KB")


def rounds(rows: list[dict[str, Any]], right: list[bool]) -> dict[str, float]:
    """The share right among the templates of the first and of the second round."""
    shares = {}
    for name, second in (("right_first_round", False), ("right_second_round", True)):
        own = [
            r for row, r in zip(rows, right, strict=True) if "template" in row and ("-2-" in row["template"]) == second
        ]
        if own:
            shares[name] = round(float(np.mean(own)), 4)
    return shares


def measure(path: Path, half: str | None, out: Path | None, misses: bool) -> None:
    """Prints figures; the questions that went wrong only with `misses`, which is not for held-out ones."""
    rows = load(path, half)
    decide(rows[0]["question"])
    seconds, p, right = [], [], []
    for row in rows:
        began = time.perf_counter()
        decision = decide(row["question"])
        seconds.append(time.perf_counter() - began)
        p.append(decision.probability)
        right.append(decision.route == row["label"])
        if misses and not right[-1]:
            print(f"  {decision.probability:.2f} {row['label']}: {row['question']}  [{decision.reason}]")
    y = labels(rows)
    error, table = calibration_error(np.array(p), y)
    result = {
        "questions": len(rows),
        "right": round(float(np.mean(right)), 4),
        "right_lookup": round(float(np.mean([r for r, a in zip(right, y, strict=True) if a])), 4),
        "right_whole": round(float(np.mean([r for r, a in zip(right, y, strict=True) if not a])), 4),
        **rounds(rows, right),
        "calibration_error": round(error, 4),
        "milliseconds_median": round(1000 * median(seconds), 3),
        "milliseconds_most": round(1000 * max(seconds), 3),
        "reliability": table,
    }
    print(json.dumps(result, indent=1))
    if out is not None:
        none = argparse.Namespace(model=None, dtype=None, window=None)
        stamp = {name: value for name, value in facts(none, path.name).items() if value is not None}
        out.write_text(json.dumps(stamp | result, indent=1) + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judged", type=Path, metavar="FILE", help="what teacher.py wrote")
    parser.add_argument("--measure", type=Path, metavar="FILE", help="JSON lines with question and label")
    parser.add_argument("--half", choices=["train", "test"])
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--misses", action="store_true", help="print the questions that went wrong")
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.half, options.json, options.misses)
    elif options.judged:
        train(options.judged)
    else:
        parser.error("give --judged FILE to train or --measure FILE to measure")


if __name__ == "__main__":
    main()
