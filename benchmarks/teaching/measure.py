"""How well a reader's skill answers from a passage that is given: exact, F1, ROUGE-L, and what it refuses.

    python benchmarks/teaching/measure.py ../shared --skill RUN/skill.safetensors --count 200

The passage is the right one (or, for the last columns, another of the same document). Figures are means over questions,
best of the gold answers; `refused` is the share that is more likely silent than not.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import string
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median

import torch

sys.path.insert(0, str(Path(__file__).parent))
from build import around, rows

from ttt_docs.lookup.reader import read_answers
from ttt_docs.text.tokenizer import Tokenizer
from ttt_docs.weights.pretrained import open_pretrained
from ttt_docs.weights.skill import load_skill


def words(text: str) -> list[str]:
    """As SQuAD compares answers: lower case, without punctuation and articles."""
    plain = "".join(" " if c in string.punctuation + "“”’‘—" else c for c in text.lower())
    return [w for w in plain.split() if w not in ("a", "an", "the")]


def f1(answer: str, gold: str) -> float:
    ours, theirs = words(answer), words(gold)
    same = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * same / (len(ours) + len(theirs)) if same else 0.0


def rouge_l(answer: str, gold: str) -> float:
    """F of the longest common subsequence of lower-case words."""
    a, b = (re.findall(r"[a-z0-9]+", text.lower()) for text in (answer, gold))
    row = [0] * (len(b) + 1)
    for x in a:
        new = [0]
        for j, y in enumerate(b):
            new.append(row[j] + 1 if x == y else max(row[j + 1], new[j]))
        row = new
    return 2 * row[-1] / (len(a) + len(b)) if row[-1] else 0.0


def best(measure, answer: str, golds: Sequence[str]) -> float:  # type: ignore[no-untyped-def]
    return max(measure(answer, gold) for gold in golds)


def fairytale(shared: Path) -> list[tuple[str, str, list[str], str]]:
    """(passage, question, answers, another passage)"""
    made = []
    for story in rows(shared / "questions/fairytale.dev.jsonl.zst"):
        for q in story["questions"]:
            passage = "\n\n".join(" ".join(story["sections"][i].split()) for i in sorted(q["sections"]))
            others = [s for i, s in enumerate(story["sections"]) if i not in q["sections"]]
            made.append((passage, q["question"], q["answers"], " ".join(random.choice(others).split())))
    return made


def covid(shared: Path) -> list[tuple[str, str, list[str], str]]:
    made, chance = [], random.Random(1)
    for paper in rows(shared / "questions/covidqa.dev.jsonl.zst"):
        text = paper["text"]
        for q in paper["questions"]:
            start = q["start"][0]
            far = chance.randrange(len(text))
            made.append(
                (
                    around(text, start, start + len(q["answers"][0]), chance),
                    q["question"],
                    q["answers"],
                    around(text, far, far, chance),
                )
            )
    return made


def policies(shared: Path) -> list[tuple[str, str, list[str], str]]:
    made, chance = [], random.Random(1)
    for policy in json.loads(_text(shared / "questions/policyqa.dev.json.zst"))["data"]:
        paragraphs = policy["paragraphs"]
        for paragraph in paragraphs:
            for q in paragraph["qas"]:
                golds = [a["text"] for a in q["answers"]]
                made.append((paragraph["context"], q["question"], golds, chance.choice(paragraphs)["context"]))
    return made


def _text(path: Path) -> bytes:
    import zstandard

    return zstandard.ZstdDecompressor().stream_reader(path.open("rb")).read()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("--skill", type=Path)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--show", type=int, default=0)
    options = parser.parse_args()
    random.seed(5)
    opened = open_pretrained("smollm2-135m", None, "cpu", None, None)
    tokenizer, model = Tokenizer(opened.folder), opened.model
    if options.skill:
        model = load_skill(options.skill).applied_to(model)
    columns = ["set", "questions", "exact", "F1", "ROUGE-L", "median-words", "refused", "refused-elsewhere", "seconds"]
    print("|", " | ".join(columns), "|\n|" + "---|" * len(columns))
    for name, made in (("FairytaleQA dev", fairytale), ("COVID-QA dev", covid), ("PolicyQA dev", policies)):
        asked = random.sample(made(options.shared), options.count)
        began, found = time.perf_counter(), []
        for passage, question, golds, other in asked:
            here = read_answers(model, tokenizer, [passage, other], question)
            by_passage = {answer.passage: answer for answer in here}
            found.append((by_passage[0], by_passage[1], golds, question))
        seconds = (time.perf_counter() - began) / len(asked)
        answers = [(a.text, golds) for a, _, golds, _ in found]
        figures = [
            mean(best(m, a, golds) for a, golds in answers)
            for m in (lambda a, g: float(words(a) == words(g)), f1, rouge_l)
        ]
        length = median(len(a.split()) for a, _ in answers)
        refused = [
            mean(answer.here < 0.5 for answer in column) for column in ([f[0] for f in found], [f[1] for f in found])
        ]
        print(
            f"| {name} | {len(asked)} | "
            + " | ".join(f"{x:.3f}" for x in figures)
            + f" | {length:.0f} | {refused[0]:.2f} | {refused[1]:.2f} | {seconds:.2f} |",
            flush=True,
        )
        for a, b, golds, question in found[: options.show]:
            print(
                f"    {question} -> {a.text} ({a.here:.2f}, {a.sure:.2f}; elsewhere {b.text} {b.here:.2f}) GOLD {golds}"
            )


if __name__ == "__main__":
    with torch.no_grad():
        main()
