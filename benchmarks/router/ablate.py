"""Measures the router without some of its parts, on every set of questions.

    python benchmarks/router/ablate.py [--json OUT]

The parts keep the weights of the package. What is left is calibrated on the quarter of the training half that nothing
learned from. The regression's share is the one with the least loss there. The threshold stays the package's.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from train import HERE, Array, calibrated_loss, labels, learned_from, load, sigmoid, template_weights

from ttt_docs.lookup.router.question_features import features
from ttt_docs.lookup.router.question_network import network_score
from ttt_docs.lookup.router.routing import weights

#: What the share of the package is multiplied by.
SHARES = (0.2, 0.5, 0.7, 1.0, 1.5)
#: Parts of the regression. "head classes" are those of the first and last word of what is asked for. "form" is the
#: rest: word classes, question word, pointers and length.
REGRESSION = ("words", "head classes", "form")
LEFT = ((*REGRESSION, "network"), ("words", "form", "network"), ("form", "network"), ("network",), REGRESSION)
SETS = ("held-out half", "first round", "fresh", "fresh-2", "plain")


def parts_of(questions: list[str]) -> dict[str, Array]:
    """What each part adds to the score, [questions] by part."""
    w, own = weights(), {name: np.zeros(len(questions)) for name in LEFT[0]}
    for row, question in enumerate(questions):
        own["form"][row] = w.bias
        for name in features(question):
            part = "head classes" if "lead&" in name or "head&" in name else "form"
            own["words" if name.startswith("w=") else part][row] += w.features.get(name, 0.0)
        own["network"][row] = network_score(question)
    return own


def score(parts: dict[str, Array], left: tuple[str, ...], share: float) -> Array:
    return np.sum([parts[name] * (1.0 if name == "network" else share) for name in left], axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    _, last = learned_from(load(HERE / "questions.jsonl", "train"))
    held_out = load(HERE / "questions.jsonl", "test")
    rows = {
        "last quarter": last,
        "held-out half": held_out,
        "first round": [row for row in held_out if "-2-" not in row["template"]],
        **{name: load(HERE / f"{name}.jsonl", None) for name in SETS[2:]},
    }
    parts = {name: parts_of([row["question"] for row in some]) for name, some in rows.items()}
    y, sizes, results = labels(last), template_weights(last), []
    for left in LEFT:
        losses = {share: calibrated_loss(score(parts["last quarter"], left, share), y, sizes) for share in SHARES}
        share = min(SHARES, key=lambda one: losses[one][0])
        _, scale, offset = losses[share]
        right = {}
        for name in SETS:
            p = sigmoid(scale * score(parts[name], left, share) + offset)
            right[name] = round(float(((p >= weights().threshold) == (labels(rows[name]) > 0)).mean()), 4)
        results.append({"left": left, "share": share, **right})
        print(*(f"{100 * right[name]:.1f}" for name in SETS), share, " + ".join(left), sep=" | ", flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
