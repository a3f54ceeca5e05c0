"""How probable it is that an answer is right, learned from questions nobody was taught with: confidence.json.

    python benchmarks/teaching/calibrate.py ../shared --count 150 --json candidates.json
    python benchmarks/teaching/calibrate.py --from candidates.json

Every question is looked up as `ask` does, and what each passage answered is kept with the signs that
`ttt_docs.lookup.confidence` knows. A logistic regression tells right answers (F1 of 0.5 or more) from wrong ones. The
figures printed are of weights fitted on the other half of the documents; those written are fitted on all.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from answer_sets import SETS
from answers import RIGHT, calibration_error, drawn, f1

from ttt_docs import TTTReader
from ttt_docs.lookup import confidence
from ttt_docs.lookup.answer import MAX_CONTEXT, look, places_of

#: PolicyQA is left out: its answers are pieces of the text that need not answer in words ("use the information").
WHICH = ("fairytale", "covid", "fairytale-elsewhere", "covid-elsewhere", "near-misses")
OUT = Path(confidence.__file__).with_name("confidence.json")
#: L2 penalty of the weights.
PENALTY = 1e-3


def candidates(shared: Path, count: int, skill: Path | None) -> list[dict[str, Any]]:
    """A row a question: its set, document, and for each passage the signs, the answer and whether it is right."""
    reader = TTTReader.from_pretrained()
    passages, found = reader.passages, []
    if skill:
        from ttt_docs.lookup.reader import PassageReader
        from ttt_docs.weights.skill import load_skill

        passages = PassageReader(load_skill(skill).applied_to(reader.model), reader.tokenizer, skilled=True)
    for name in WHICH:
        asked = SETS[name](shared)
        for document, group in groupby(drawn(asked, count), key=lambda question: question.document):
            memory = reader.ingest(text=asked.texts[document], name=document, learn=False)
            for question in group:
                places = places_of(passages, [look(0, memory, question.question)], MAX_CONTEXT)
                texts = [place.text for place in places]
                answers = passages.read(texts, question.question) if texts else []
                row = {"set": name, "document": document, "question": question.question, "golds": question.answers}
                row["answers"] = [answer.text for answer in answers]
                row["right"] = [max((f1(a.text, g) for g in question.answers), default=0.0) >= RIGHT for a in answers]
                row["signs"] = confidence.features(answers, texts).tolist()
                found.append(row)
        print(name, len(found), flush=True)
    return found


def fitted(rows: list[dict[str, Any]]) -> tuple[np.ndarray, float]:
    """Weights and bias from all passages' answers; each question counts the same."""
    signs = torch.tensor([s for row in rows for s in row["signs"]])
    right = torch.tensor([float(r) for row in rows for r in row["right"]])
    counts = torch.tensor([1 / len(row["right"]) for row in rows for _ in row["right"]])
    weights = torch.zeros(signs.shape[1] + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        odds = signs @ weights[:-1] + weights[-1]
        value = torch.nn.functional.binary_cross_entropy_with_logits(odds, right, counts) * len(counts) / counts.sum()
        value = value + PENALTY * weights[:-1].square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weights[:-1].detach().numpy(), float(weights[-1].detach())


def chosen(row: dict[str, Any], weights: np.ndarray, bias: float) -> tuple[float, bool]:
    """Confidence of the best answer, and whether it is right."""
    if not row["signs"]:
        return 0.0, False
    odds = np.array(row["signs"]) @ weights + bias
    best = int(odds.argmax())
    return float(1 / (1 + np.exp(-odds[best]))), bool(row["right"][best])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path, nargs="?")
    parser.add_argument("--count", type=int, default=150, help="questions of each set")
    parser.add_argument("--skill", type=Path, help="another skill than the package's")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where what was found is kept")
    parser.add_argument("--from", dest="kept", type=Path, metavar="FILE", help="what was found before")
    options = parser.parse_args()
    if options.kept is None and options.shared is None:
        parser.error("give the folder that has questions/, or --from FILE")
    kept = json.loads(options.kept.read_text("utf-8")) if options.kept else None
    rows = kept or candidates(options.shared, options.count, options.skill)
    rows = [row for row in rows if row["set"] in WHICH]
    if options.json:
        options.json.write_text(json.dumps(rows, ensure_ascii=False), "utf-8")
    documents = sorted({(row["document"]) for row in rows})
    halves = [[row for row in rows if documents.index(row["document"]) % 2 == half] for half in (0, 1)]
    judged = []
    for one, other in (halves, halves[::-1]):
        weights, bias = fitted([row for row in other if row["signs"]])
        judged += [(row, *chosen(row, weights, bias)) for row in one]
    for least in (0.1, 0.15, 0.2, 0.25, 0.3):
        print(f"answered from {least:.2f}:")
        for name in WHICH:
            own = [(sure, right) for row, sure, right in judged if row["set"] == name]
            given = [pair for pair in own if pair[0] >= least]
            sure = [right for probability, right in given if probability >= 0.8]
            refused, right = 1 - len(given) / len(own), sum(right for _, right in given) / len(own)
            error = calibration_error(given) if given else 0.0
            of_sure = f"sure {len(sure) / len(own):.2f}, of them right {sum(sure) / max(len(sure), 1):.2f}"
            print(f"  {name:20} refused {refused:.2f}  right {right:.2f}  calibration {error:.3f}  {of_sure}")
    weights, bias = fitted([row for row in rows if row["signs"]])
    named = {name: round(float(w), 4) for name, w in zip(confidence.FEATURES, weights, strict=True)}
    OUT.write_text(json.dumps(named | {"bias": round(bias, 4)}, indent=1) + "\n", "utf-8")
    print(OUT.name, named, bias)


if __name__ == "__main__":
    main()
