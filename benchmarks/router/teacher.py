"""A teacher for the router's networks: SmolLM2-135M, fine-tuned on labelled questions, judges invented ones.

    python benchmarks/router/teacher.py --out build/router        (about half an hour on 2 cores with AMX)

It learns from three quarters of the training half's templates, from frames and plain questions; what it says of the
last quarter is printed. Its log odds of lookup for all it learned from and for the invented questions (invent.py) go to
OUT/judged.jsonl, which train.py learns from. It is never asked when a question is routed.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from frames import frame_questions
from invent import Inventor
from torch import Tensor, nn
from train import HERE, labels, learned_from, load, plain_questions, template_weights

from ttt_docs import TTTReader
from ttt_docs.model.decoder import Decoder
from ttt_docs.text.tokenizer import Tokenizer

INVENTED = 120_000
#: How often each kind of question is drawn from: templates, plain ones, frames, those about books (training.jsonl).
SHARES = (0.45, 0.27, 0.2, 0.08)
EPOCHS, BATCH, RATE, HEAD_RATE, WARM, CLIP = 1, 64, 7e-5, 1e-3, 60, 1.0
LONGEST = 48  # tokens


class Teacher(nn.Module):
    """The log odds of lookup, read off the state after the question's last token. Products in bfloat16."""

    def __init__(self, model: Decoder, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.out = nn.Linear(model.config.dim, 1)
        nn.init.normal_(self.out.weight, std=0.01)
        nn.init.zeros_(self.out.bias)

    def tokens(self, questions: list[str]) -> list[list[int]]:
        return [self.tokenizer.encode(f"Question: {question}\nAnswer:")[:LONGEST] for question in questions]

    def forward(self, questions: list[str]) -> Tensor:
        rows = self.tokens(questions)
        lasts = torch.tensor([len(row) - 1 for row in rows])
        ids = torch.zeros(len(rows), int(lasts.max()) + 1, dtype=torch.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
        model, config = self.model, self.model.config
        x = model.run(
            model.hidden(ids),
            range(config.blocks),
            model.positions(0, ids.shape[1], None),
            model.new_caches(None, differentiable=True),
        )
        x = F.rms_norm(x[torch.arange(len(rows)), lasts], (config.dim,), model.final_norm.weight, config.norm_eps)
        return self.out(x.float())[:, 0]


def taught(questions: list[str], y: np.ndarray, weight: np.ndarray, epochs: float) -> Teacher:
    """The base model, in bfloat16 with its weights kept in float32 beside it, fine-tuned for `epochs`."""
    reader = TTTReader.from_pretrained("smollm2-135m", adapter=None, dtype="bfloat16")
    teacher = Teacher(reader.model, reader.tokenizer)
    reader.model.requires_grad_(True)
    reader.model.embed.requires_grad_(False)
    low = [parameter for parameter in reader.model.parameters() if parameter.requires_grad]
    exact = [parameter.detach().float().clone().requires_grad_() for parameter in low]
    every = [*exact, *teacher.out.parameters()]
    groups = [{"params": exact, "lr": RATE}, {"params": list(teacher.out.parameters()), "lr": HEAD_RATE}]
    descent = torch.optim.AdamW(groups, weight_decay=0.01, fused=True)
    steps = math.ceil(epochs * len(questions) / BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        descent, lambda step: min(1.0, (step + 1) / WARM) * max(0.0, 1 - step / steps)
    )
    targets, sizes = torch.from_numpy(y).float(), torch.from_numpy(weight).float()
    began = time.perf_counter()
    for step, rows in enumerate(_batches(questions, steps)):
        errors = F.binary_cross_entropy_with_logits(
            teacher([questions[row] for row in rows]), targets[rows], sizes[rows]
        )
        errors.backward()
        for mine, parameter in zip(exact, low, strict=True):
            mine.grad, parameter.grad = None if parameter.grad is None else parameter.grad.float(), None
        nn.utils.clip_grad_norm_(every, CLIP)
        descent.step()
        schedule.step()
        descent.zero_grad()
        with torch.no_grad():
            torch._foreach_copy_(low, exact)
        if step % 10 == 9:
            print(f"step {step + 1} of {steps}: {errors.item():.3f}, {time.perf_counter() - began:.0f} s", flush=True)
    return teacher.eval()


def _batches(questions: list[str], steps: int) -> list[list[int]]:
    """Rows of `steps` batches, each of questions of similar length."""
    generator = np.random.default_rng(0)
    found: list[list[int]] = []
    while len(found) < steps:
        order = generator.permutation(len(questions))
        for part in np.array_split(order, max(1, len(order) // (16 * BATCH))):
            rows = sorted(part.tolist(), key=lambda row: len(questions[row]))
            found += [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
    chosen = found[:steps]
    return [chosen[i] for i in generator.permutation(steps)]


@torch.no_grad()
def judged(teacher: Teacher, questions: list[str]) -> np.ndarray:
    """Log odds of lookup [questions]."""
    scores = np.zeros(len(questions))
    order = sorted(range(len(questions)), key=lambda row: len(questions[row]))
    for first in range(0, len(order), 2 * BATCH):
        rows = order[first : first + 2 * BATCH]
        scores[rows] = teacher([questions[row] for row in rows]).numpy()
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--epochs", type=float, default=EPOCHS)
    parser.add_argument("--invented", type=int, default=INVENTED, help="questions to invent and judge")
    options = parser.parse_args()
    torch.manual_seed(0)
    kept, last = learned_from(load(HERE / "questions.jsonl", "train"))
    frames, more = frame_questions(), plain_questions()
    rows = [*kept, *frames, *more]
    questions = [row["question"] for row in rows]
    teacher = taught(questions, labels(rows), template_weights(rows), options.epochs)
    unseen = [row["question"] for row in last]
    right = (judged(teacher, unseen) > 0) == (labels(last) > 0)
    print(f"right of the {len(last)} questions it has not seen: {right.mean():.4f}")
    about_books = [row["question"] for row in load(HERE.parent / "questions" / "training.jsonl", None)]
    sources = [[row["question"] for row in part] for part in (kept, more, frames)] + [about_books]
    forbidden = [row["question"] for row in load(HERE / "questions.jsonl", "test")]
    invented = Inventor(list(zip(SHARES, sources, strict=True)), forbidden).questions(options.invented)
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "judged.jsonl").open("w", encoding="utf-8") as file:
        every = questions + unseen + invented
        for question, score in zip(every, judged(teacher, every), strict=True):
            file.write(json.dumps({"question": question, "score": round(float(score), 3)}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
