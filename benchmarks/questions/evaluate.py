"""Natural questions on whole books: is the answer in the evidence, and is it in the answer?

    python benchmarks/questions/evaluate.py BOOKS.jsonl.zst --json questions.json

Every book is taken in as text alone (`learn=False`), and every question is looked up. The answer counts as found where
its words stand, white space and case aside; `place` asks for more: that the evidence covers the very characters the
question was made from. Every second question of a book, in the order of their answers, was used during development;
the others are held out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from itertools import groupby
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from books import books
from shared import facts

from ttt_docs import Answer, TTTReader

QUESTIONS = Path(__file__).with_name("natural.jsonl")
HALVES = ("development", "held out")
#: Pieces of evidence that count.
TOP = 3


def load(path: Path = QUESTIONS) -> list[dict[str, Any]]:
    """Questions with their half, grouped by book in the file's order."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [
        row | {"half": HALVES[place % 2]}
        for _, group in groupby(rows, key=lambda row: row["book"])
        for place, row in enumerate(group)
    ]


def plain(text: str) -> str:
    return " ".join(text.lower().split())


def judged(row: dict[str, Any], answer: Answer) -> dict[str, Any]:
    wanted, start, end = plain(row["answer"]), row["start"], row["start"] + len(row["answer"])
    top = answer.evidence[:TOP]
    return {
        "book": row["book"],
        "question": row["question"],
        "wanted": row["answer"],
        "half": row["half"],
        "text": answer.text,
        "evidence": any(wanted in plain(found.quote) for found in top),
        "place": any(found.start <= start and end <= found.end for found in top),
        "answer": wanted in plain(answer.text),
        "verified": answer.verified,
        "seconds": round(answer.seconds, 3),
    }


def shares(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "questions": len(rows),
        **{name: round(mean(row[name] for row in rows), 4) for name in ("evidence", "place", "answer", "verified")},
        "seconds_median": median(row["seconds"] for row in rows),
        "seconds_most": max(row["seconds"] for row in rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("books", type=Path)
    parser.add_argument("--questions", type=Path, default=QUESTIONS)
    parser.add_argument("--half", choices=HALVES, help="only these")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    reader = TTTReader.from_pretrained(options.model)
    asked = [row for row in load(options.questions) if options.half in (None, row["half"])]
    rows = []
    for book in books(options.books):
        memory = reader.ingest(text=book["text"], name=book["title"], learn=False)
        for row in asked:
            if row["book"] == book["id"]:
                rows.append(judged(row, reader.ask(memory, row["question"], route="lookup")))
                marks = "".join(name[0] if rows[-1][name] else "-" for name in ("evidence", "place", "answer"))
                print(f"{marks} {row['question']} | {plain(row['answer'])} | {rows[-1]['text']}", flush=True)
    if len(rows) < len(asked):
        raise SystemExit(
            f"Error: {len(asked) - len(rows)} questions are about books that are not in {options.books.name}"
        )
    halves = {half: [row for row in rows if row["half"] == half] for half in HALVES}
    figures = {name: shares(group) for name, group in {"all": rows, **halves}.items() if group}
    print(json.dumps(figures, indent=1))
    if options.json:
        options.dtype, options.window = str(reader.model.dtype).removeprefix("torch."), None
        result = facts(options, "12 validation books") | {"figures": figures, "questions": rows}
        options.json.write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
