"""Measures the router without some of its parts, on every set of questions.

    python benchmarks/router/ablate.py [--json OUT]

The parts keep the weights of the package. What is left is calibrated on the quarter of the training half that nothing
learned from; the share of the regression is the one with the least loss there. The threshold stays the package's.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
from train import HERE, Array, calibrate, labels, learned_from, load, sigmoid, template_weights

from ttt_docs.lookup import question_network
from ttt_docs.lookup.question_features import features, meaning
from ttt_docs.lookup.router import weights

SHARES = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
#: Groups of the regression's features; `form` is what no other group has: classes, question word, pointers, length.
GROUPS = ("words", "runs", "heads", "head classes", "first class", "pairs", "form", "meaning")
NETWORKS = ("network 1", "network 2")
SETS = ("held-out half", "first round", "fresh", "fresh-2", "plain")


def group(name: str) -> str:
    kind = name.partition("=")[0]
    if kind in ("w", "b", "lead", "head"):
        return {"w": "words", "b": "runs"}.get(kind, "heads")
    if "lead&" in name or "head&" in name:
        return "head classes"
    if "first=" in name:
        return "first class"
    return "pairs" if name.startswith("q=") and "&" in name else "form"


def parts_of(questions: list[str]) -> dict[str, Array]:
    """What each part adds to the score, [questions] by part."""
    w = weights()
    own: dict[str, Array] = {name: np.zeros(len(questions)) for name in (*GROUPS, *NETWORKS)}
    networks = question_network._networks()
    single = [
        replace(
            networks,
            own=networks.own[[i]],
            vector=networks.vector[[i]],
            classes=networks.classes[[i]],
            run={size: array[[i]] for size, array in networks.run.items()},
            bias={size: array[[i]] for size, array in networks.bias.items()},
            out=networks.out[[i]],
            out_bias=networks.out_bias[[i]],
        )
        for i in range(len(NETWORKS))
    ]
    for row, question in enumerate(questions):
        for name in features(question):
            own[group(name)][row] += w.features.get(name, 0.0)
        own["meaning"][row] = float(np.dot(w.meaning, meaning(question)))
        for name, one in zip(NETWORKS, single, strict=True):
            own[name][row] = question_network.network_score(question, one)
    return own


def score(parts: dict[str, Array], kept: tuple[str, ...], share: float) -> Array:
    regression = [parts[name] for name in kept if name in GROUPS]
    networks = [parts[name] for name in kept if name in NETWORKS]
    total = share * (weights().bias + sum(regression)) if regression else 0.0
    return total + np.mean(networks, axis=0) if networks else np.asarray(total)


def loss(scores: Array, y: Array, sizes: Array) -> tuple[float, float, float]:
    """Nats per question after calibration, and the calibration."""
    scale, offset = calibrate(scores, y, sizes)
    p = sigmoid(scale * scores + offset)
    return float(-np.average(np.log(np.where(y > 0, p, 1 - p)), weights=sizes)), scale, offset


def subsets() -> list[tuple[str, ...]]:
    """The regression and each network alone and together, then the regression with fewer and fewer groups."""
    models = [GROUPS, *((name,) for name in NETWORKS)]
    found = [sum(some, ()) for size in (3, 2, 1) for some in combinations(models, size)]
    order = ("meaning", "runs", "heads", "first class", "pairs", "head classes", "words")
    for dropped in (1, 3, 4, 5, 6, 7):
        found.append((*(name for name in GROUPS if name not in order[:dropped]), NETWORKS[0]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    rows = load(HERE / "questions.jsonl", "test")
    _, last = learned_from(load(HERE / "questions.jsonl", "train"))
    sets = {
        "last quarter": last,
        "held-out half": rows,
        "first round": [row for row in rows if "-2-" not in row["template"]],
        **{name: load(HERE / f"{name}.jsonl", None) for name in SETS[2:]},
    }
    parts = {name: parts_of([row["question"] for row in rows]) for name, rows in sets.items()}
    y, sizes, results = labels(last), template_weights(last), []
    for kept in subsets():
        shares = SHARES if set(kept) & set(GROUPS) and set(kept) & set(NETWORKS) else (1.0,)
        losses = {share: loss(score(parts["last quarter"], kept, share), y, sizes) for share in shares}
        share = min(shares, key=lambda one: losses[one][0])
        _, scale, offset = losses[share]
        right = {}
        for name in SETS:
            p = sigmoid(scale * score(parts[name], kept, share) + offset)
            right[name] = round(float(((p >= weights().threshold) == (labels(sets[name]) > 0)).mean()), 4)
        results.append({"kept": kept, "share": share, "scale": round(scale, 4), "offset": round(offset, 4), **right})
        print(*(f"{100 * right[name]:.1f}" for name in SETS), share, " + ".join(kept), sep=" | ", flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
