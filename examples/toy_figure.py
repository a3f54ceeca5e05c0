"""The paper's toy figure: loss by token index of a small Transformer without attention, and of the same with attention.

    python examples/toy_figure.py BOOKS/train-00.jsonl.zst BOOKS/valid.jsonl.zst --json toy.json --figure toy.png

Trains recipe `toy` in three ways on the same sequences and reads held-out text with each. Without attention a model
knows the current byte alone, unless it learns from the text while it reads:

    no TTT       trained without inner updates, read without them
    TTT-naive    the same model, read with updates it was never trained for (at its best inner learning rate)
    TTT-E2E      trained through its updates, b = 16 or b = 1 tokens each

A run that is stopped goes on where it was when the command is given again. Tensors this small gain nothing from a
second thread: set OMP_NUM_THREADS=1, and give one core to `--only no-attention-b=1`, which takes as long as all others
together; the whole figure is then drawn from what both trained. Recipe changes (`steps=100`) may follow.
"""

from __future__ import annotations

import argparse
import json
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ttt_docs import TTTReader
from ttt_docs.io import replacing
from ttt_docs.model.config import ReadingConfig
from ttt_docs.model.decoder import Decoder
from ttt_docs.training.data import find_texts, texts_of
from ttt_docs.training.parallel import Processes
from ttt_docs.training.recipe import load_recipe
from ttt_docs.training.record import read_log
from ttt_docs.training.trainer import prepare_data, train
from ttt_docs.ttt.state import ReadingState

#: Inner learning rates that TTT-naive may choose from, by its loss on sequences of the training books.
NAIVE_RATES = (0.01, 0.03, 0.1, 0.3, 1.0)
#: Changes of the recipe, for each training.
VARIANTS = {
    "naive": ["mode=naive"],
    "b=16": ["mode=meta", "reading.chunk=16"],
    "b=1": ["mode=meta", "reading.chunk=1", "reading.inner_lr=0.3"],
}
#: With attention the runs are for comparison, and dear: they get a third of the steps.
ATTENTION = {False: ["model.attention=false"], True: ["model.attention=true", "steps=400"]}
BUCKETS = 16
#: What is taken of each book.
EXCERPTS, CHARACTERS = 16, 4000
ALONE = Processes(0, 1, 0, torch.device("cpu"))


def excerpts(books: str, target: Path) -> Path:
    """Writes excerpts of every book, at equal distances, each a document of `target`; once."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as file:
            for source in find_texts((books,), "text", None, "train"):
                for text in texts_of(source):
                    for start in range(0, len(text), -(-len(text) // EXCERPTS)):
                        file.write(json.dumps({"text": text[start : start + CHARACTERS]}).encode() + b"\n")
    return target


def loss_by_index(model: Decoder, reading: ReadingConfig, tokens: Tensor) -> Tensor:
    """Mean loss [length] over tokens [sequences, length + 1], each sequence read by itself; nats."""
    state = ReadingState(model, reading, len(tokens))
    return torch.cat([result.nll for result in state.read_whole(tokens)], dim=1).mean(dim=0)


def best_rate(model: Decoder, reading: ReadingConfig, tokens: Tensor) -> float:
    def loss(rate: float) -> float:
        return float(loss_by_index(model, reading.model_copy(update={"inner_lr": rate}), tokens).mean())

    return min(NAIVE_RATES, key=loss)


def measure(options: argparse.Namespace, attention: bool) -> dict[str, dict[str, Any]]:
    """Every curve of the models with or without attention."""
    kind, curves = "attention" if attention else "no attention", {}
    train_file = excerpts(options.train, options.folder / "train.jsonl")
    valid_file = excerpts(options.valid, options.folder / "valid.jsonl")
    shared = [f"data.train={train_file}", f"data.valid={valid_file}", *ATTENTION[attention]]
    for name, changes in VARIANTS.items():
        output = options.folder / f"{kind}-{name}".replace(" ", "-")
        if options.only and output.name not in options.only:
            continue
        recipe = load_recipe("toy", [*shared, *changes, *options.changes, f"output={output}"])
        done = train(recipe)
        model = TTTReader.from_pretrained(done.exported, dtype="float32").model
        data = prepare_data(recipe, ALONE, progress=False)
        assert data.valid is not None
        held_out, known = (
            torch.from_numpy(part.take(part.spread(options.sequences))) for part in (data.valid, data.train)
        )
        facts = {
            "train_seconds": sum(line["seconds"] for line in read_log(done.folder) if "loss" in line),
            "train_tokens": done.tokens,
        }
        reading = recipe.reading
        if name != "naive":
            curves[f"{kind}, TTT-E2E {name}"] = {**facts, "nll": loss_by_index(model, reading, held_out)}
            continue
        off = reading.model_copy(update={"learn": False})
        curves[f"{kind}, no TTT"] = {**facts, "nll": loss_by_index(model, off, held_out)}
        for chunk in (16, 1):
            reading = recipe.reading.model_copy(update={"chunk": chunk})
            best = reading.model_copy(update={"inner_lr": best_rate(model, reading, known)})
            nll = loss_by_index(model, best, held_out)
            curves[f"{kind}, TTT-naive b={chunk}"] = {"inner_lr": best.inner_lr, "nll": nll}
    return curves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train")
    parser.add_argument("valid")
    parser.add_argument("--folder", type=Path, default=Path("runs/toy"))
    parser.add_argument("changes", nargs="*", help="recipe changes for all trainings, such as steps=100")
    parser.add_argument("--sequences", type=int, default=192, help="held-out ones; naive's rate has as many")
    names = [f"{kind}-{name}" for kind in ("no-attention", "attention") for name in VARIANTS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="RUN", help=f"of {', '.join(names)}")
    parser.add_argument("--json", type=Path, help="needed unless --only")
    parser.add_argument("--figure", type=Path, help="needed unless --only")
    options = parser.parse_intermixed_args()
    if not options.only and not (options.json and options.figure):
        parser.error("give --json and --figure, or --only")
    curves = measure(options, False) | measure(options, True)
    if options.only:
        return
    rows = []
    for name, curve in curves.items():
        nll = curve["nll"]
        quarters = nll.view(4, -1).mean(dim=1).tolist()
        curve |= {"nll": [round(x, 4) for x in nll.tolist()], "mean": float(nll.mean()), "quarters": quarters}
        rows.append(f"| {name} | {float(nll.mean()):.3f} | " + " | ".join(f"{q:.3f}" for q in quarters) + " |")
    facts = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "sequences": options.sequences,
    }
    options.json.write_text(json.dumps({**facts, "curves": curves}) + "\n")
    draw(curves, options.figure)
    print("\n".join(["| | all | 1st quarter | 2nd | 3rd | 4th |", "|---|---|---|---|---|---|", *rows]))


def draw(curves: dict[str, dict[str, Any]], path: Path) -> None:
    """Losses, and beside them what updates change, as means over `BUCKETS` parts of the sequence."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.5), layout="constrained")
    losses, gains = figure.subplots(1, 2)
    for name, curve in curves.items():
        kind = name.partition(",")[0]
        nll, plain = torch.tensor(curve["nll"]), torch.tensor(curves[f"{kind}, no TTT"]["nll"])
        middle = (torch.arange(BUCKETS) + 0.5) * (len(nll) / BUCKETS)
        for axes, values in ((losses, nll), (gains, nll - plain)):
            style = "-" if kind == "no attention" else "--"
            axes.plot(middle, values.view(BUCKETS, -1).mean(dim=1), style, marker="o", ms=3, label=name)
    losses.set(xlabel="token index (bytes)", ylabel="loss (nats per byte)")
    gains.set(xlabel="token index (bytes)", ylabel="the same, less that of no TTT")
    gains.legend(fontsize=8, loc="lower left", bbox_to_anchor=(1, 0))
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
