"""Does a memory's answer know that it should have been looked up? Its log-probability, by kind of question.

    python benchmarks/questions/second_signal.py BOOKS.jsonl.zst --json second-signal.json

Two kinds are asked of the memory of a book's beginning: those of natural.jsonl that the router sends to the memory by
mistake, and questions about the whole, which belong there. A second signal would hand over the first kind by a
threshold between the two; `auc` is how often one of the first kind is less sure than one of the second (0.5: no better
than chance).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from books import beginning, books
from evaluate import QUESTIONS, load
from shared import facts

from ttt_docs import Memory, TTTReader
from ttt_docs.generation.chat import PART_WINDOW, PARTS, SYSTEM, end_tokens, prompt_tokens
from ttt_docs.generation.decoding import Decoding, generate
from ttt_docs.generation.sampling import sampling_of
from ttt_docs.generation.sections import outline
from ttt_docs.lookup.router.routing import decide

WHOLE = (
    "What are the main themes of the book?",
    "How would you describe the style of the writing?",
    "What does the author want the reader to think about?",
)


class Recorded(Decoding):
    """A decoding that keeps the log-probabilities [vocab] each token was chosen from."""

    def feed(self, tokens: Any = ()) -> Tensor:
        return self._kept(super().feed(tokens))

    def step(self, token: int) -> Tensor:
        return self._kept(super().step(token))

    def _kept(self, logits: Tensor) -> Tensor:
        self.seen = [*getattr(self, "seen", []), logits.float().log_softmax(0)]
        return logits


def sureness(reader: TTTReader, memory: Memory, question: str, most: int) -> float:
    """Mean log-probability per token of the memory's answer, decoded greedily as `ask` does."""
    about = outline(memory, reader.tokenizer, min(PARTS, memory.reading.window // PART_WINDOW))
    prompt = prompt_tokens(reader.tokenizer, [("system", SYSTEM), ("user", f"{about}\n\n{question}")])
    sampling = sampling_of(max_new_tokens=most, temperature=0.0)
    decoding = Recorded(reader.model, memory, learn=False)
    tokens = list(generate(decoding, prompt, sampling, end_tokens(reader.model.config, reader.tokenizer)))
    return mean(float(seen[token]) for seen, token in zip(decoding.seen, tokens, strict=False)) if tokens else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("books", type=Path)
    parser.add_argument("--questions", type=Path, default=QUESTIONS)
    parser.add_argument("--tokens", type=int, default=4096, help="read of each book (default 4096)")
    parser.add_argument("--answer", type=int, default=60, help="tokens of an answer at most (default 60)")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    asked = load(options.questions)
    strayed = [row for row in asked if decide(row["question"]).route == "memory"]
    reader = TTTReader.from_pretrained(options.model)
    rows = []
    for book in books(options.books):
        own = [row["question"] for row in strayed if row["book"] == book["id"]]
        if not own:
            continue
        memory = reader.ingest(text=beginning(reader, book["text"], options.tokens), progress=False)
        for kind, questions in (("strayed", own), ("whole", WHOLE)):
            for question in questions:
                rows.append({"kind": kind, "sure": sureness(reader, memory, question, options.answer)})
    sure = {kind: [row["sure"] for row in rows if row["kind"] == kind] for kind in ("strayed", "whole")}
    figures = {
        "questions": len(asked),
        "sent_to_memory": len(strayed),
        "asked": {kind: len(values) for kind, values in sure.items()},
        "median": {kind: round(median(values), 3) for kind, values in sure.items()},
        "auc": round(mean((a < b) + 0.5 * (a == b) for a in sure["strayed"] for b in sure["whole"]), 3),
    }
    print(json.dumps(figures, indent=1))
    if options.json:
        options.dtype, options.window = str(reader.model.dtype).removeprefix("torch."), reader.reading.window
        result = facts(options, "validation books") | {"figures": figures, "answers": rows}
        options.json.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
