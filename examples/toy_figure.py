"""The paper's toy figure: loss by token index of a small Transformer without attention, and of the same with attention.

    python examples/toy_figure.py BOOKS/train-00.jsonl.zst BOOKS/valid.jsonl.zst --json toy.json --figure toy.png

Trains recipe `toy` in four ways (five or six with --b1) and reads held-out text with each. Without attention a model
knows the current byte alone, unless it learns from the text while it reads:

    no TTT       trained without inner updates, read without them
    TTT-naive    the same model, read with updates it was never trained for (its best inner learning rate is searched)
    TTT-E2E      trained through its updates, b = 16 tokens each (with --b1 on from there with b = 1)

Excerpts from all over the books are enough: the runs are short. One that is stopped goes on where it was when the
command is given again. Tensors this small gain nothing from a second thread: set OMP_NUM_THREADS=1, and give the second
core to `--attention on` while the first does `--attention off`; the whole figure is then drawn from what they trained.
"""

from __future__ import annotations

import argparse
import json
import platform
from datetime import datetime, timezone
from pathlib import Path

import torch
from torch import Tensor

from ttt_docs import TTTReader
from ttt_docs.memory.files import replacing
from ttt_docs.model.config import ReadingConfig
from ttt_docs.model.decoder import Decoder
from ttt_docs.model.state import ReadingState
from ttt_docs.training.processes import Processes
from ttt_docs.training.recipe import load_recipe
from ttt_docs.training.record import read_log
from ttt_docs.training.sources import documents, find_sources
from ttt_docs.training.trainer import prepare_data, train

#: Inner learning rates that TTT-naive may choose from, by its loss on the first half of the held-out sequences.
NAIVE_RATES = (0.01, 0.03, 0.1, 0.3, 1.0)
BUCKETS = 16
#: b = 1 costs sixteen times the updates: it goes on from the weights of b = 16, for fewer steps.
ONE_TOKEN = ["mode=meta", "reading.chunk=1", "reading.inner_lr=0.3", "optimizer.lr=2e-3"]
ONE_TOKEN += ["steps=70", "batch=4", "compute.micro_batch=4", "checkpoint.every=10"]
#: What is taken of each book.
EXCERPTS, CHARACTERS = 8, 4000
ALONE = Processes(0, 1, 0, torch.device("cpu"))


def run_folder(options: argparse.Namespace, kind: str, name: str) -> Path:
    return options.folder / f"{kind}-{name}".replace(" ", "-")


def excerpts(books: str, target: Path) -> Path:
    """Writes excerpts of every book, at equal distances, each a document of `target`; once."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as file:
            for source in find_sources((books,), "text", None, "train"):
                for text in documents(source):
                    for start in range(0, len(text), -(-len(text) // EXCERPTS)):
                        file.write(json.dumps({"text": text[start : start + CHARACTERS]}).encode() + b"\n")
    return target


def loss_by_index(model: Decoder, reading: ReadingConfig, tokens: Tensor) -> Tensor:
    """Mean loss [length] over tokens [sequences, length + 1], each sequence read by itself; nats."""
    state = ReadingState(model, reading, len(tokens))
    pieces: list[Tensor] = []
    while (left := (tokens.shape[1] - 1 - state.position) // reading.chunk) > 0:
        count = min(left, state.slots_left)
        here = tokens[:, state.position : state.position + count * reading.chunk + 1]
        pieces += [result.nll for result in state.read(here)]
    return torch.cat(pieces, dim=1).mean(dim=0)


def naive(model: Decoder, reading: ReadingConfig, tokens: Tensor) -> tuple[float, Tensor]:
    """The best inner learning rate on one half of the sequences, and the losses with it on the other."""
    half = len(tokens) // 2
    tried = {r: reading.model_copy(update={"inner_lr": r}) for r in NAIVE_RATES}
    best = min(NAIVE_RATES, key=lambda rate: float(loss_by_index(model, tried[rate], tokens[:half]).mean()))
    return best, loss_by_index(model, tried[best], tokens[half:])


def measure(options: argparse.Namespace, attention: bool) -> dict[str, dict[str, object]]:
    """Every curve of the models with or without attention."""
    kind, curves = "attention" if attention else "no attention", {}
    train_file = excerpts(options.train, options.folder / "train.jsonl")
    valid_file = excerpts(options.valid, options.folder / "valid.jsonl")
    shared = [f"data.train={train_file}", f"data.valid={valid_file}", f"model.attention={str(attention).lower()}"]
    shared += [f"steps={options.steps}", "checkpoint.evaluate_sequences=8"]
    one_token = options.b1 == "both" or (options.b1 == "off" and not attention)
    variants = {"naive": ["mode=naive"], "b=16": ["mode=meta"]}
    if one_token:
        variants["b=1"] = [*ONE_TOKEN, f"model.pretrained={run_folder(options, kind, 'b=16') / 'model'}"]
    for name, changes in variants.items():
        output = run_folder(options, kind, name)
        recipe = load_recipe("toy", [*shared, *changes, f"output={output}"])
        done = train(recipe)
        steps = [line for line in read_log(done.folder) if "loss" in line]
        seconds = sum(recipe.tokens_per_step / line["tokens_per_second"] for line in steps)
        model = TTTReader.from_pretrained(done.exported, dtype="float32").model
        data = prepare_data(recipe, ALONE, progress=False).valid
        assert data is not None
        tokens = torch.from_numpy(data.take(data.spread(options.sequences)))
        half = tokens[len(tokens) // 2 :]
        facts = {"train_seconds": seconds, "train_loss": done.loss}
        reading = recipe.reading
        if name != "naive":
            curves[f"{kind}, TTT-E2E {name}"] = {**facts, "nll": loss_by_index(model, reading, half)}
            continue
        off = reading.model_copy(update={"learn": False})
        curves[f"{kind}, no TTT"] = {**facts, "nll": loss_by_index(model, off, half)}
        for chunk in (16, 1) if one_token else (16,):
            rate, nll = naive(model, reading.model_copy(update={"chunk": chunk}), tokens)
            curves[f"{kind}, TTT-naive b={chunk}"] = {"inner_lr": rate, "nll": nll}
    return curves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train")
    parser.add_argument("valid")
    parser.add_argument("--folder", type=Path, default=Path("runs/toy"))
    parser.add_argument("--steps", type=int, default=320)
    parser.add_argument("--sequences", type=int, default=256, help="held-out ones, of which half choose naive's rate")
    parser.add_argument("--b1", choices=["off", "both"], help="b = 1 too: with attention off, or with both")
    parser.add_argument("--attention", choices=["both", "off", "on"], default="both")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--figure", type=Path, required=True)
    options = parser.parse_args()
    curves: dict[str, dict[str, object]] = {}
    for attention in (False, True):
        if options.attention in ("both", "on" if attention else "off"):
            curves |= measure(options, attention)
    rows = []
    for name, curve in curves.items():
        nll = curve["nll"]
        assert isinstance(nll, Tensor)
        quarters = nll.view(4, -1).mean(dim=1).tolist()
        curve |= {"nll": [round(x, 4) for x in nll.tolist()], "mean": float(nll.mean()), "quarters": quarters}
        rows.append(f"| {name} | {float(nll.mean()):.3f} | " + " | ".join(f"{q:.3f}" for q in quarters) + " |")
    facts = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "steps": options.steps,
        "sequences": options.sequences // 2,
    }
    options.json.write_text(json.dumps({**facts, "curves": curves}) + "\n")
    draw(curves, options.figure)
    print("\n".join(["| | all | 1st quarter | 2nd | 3rd | 4th |", "|---|---|---|---|---|---|", *rows]))


def draw(curves: dict[str, dict[str, object]], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        values = torch.tensor(curve["nll"]).view(BUCKETS, -1).mean(dim=1)
        middle = (torch.arange(BUCKETS) + 0.5) * (len(curve["nll"]) / BUCKETS)  # type: ignore[arg-type]
        axes.plot(middle, values, "--" if name.startswith("attention") else "-", marker="o", ms=3, label=name)
    axes.set(xlabel="token index (bytes)", ylabel="loss (nats per byte)")
    axes.legend(fontsize=8, loc="lower left", bbox_to_anchor=(1, 0))
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
