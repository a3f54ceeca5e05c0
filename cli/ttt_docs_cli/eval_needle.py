"""`ttt-docs eval needle`: values hidden in long texts, asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ttt_docs_cli.eval_context import numbers
from ttt_docs_cli.opening import open_reader
from ttt_docs_cli.options import model_options, quiet_option
from ttt_docs_cli.output import note, say

if TYPE_CHECKING:
    from ttt_docs.evaluation.needle import Asked


@click.command(
    "needle",
    epilog="""\b
Example:
  ttt-docs eval needle --task single_1,multikey_2 --length 32768,131072 --samples 20
  ttt-docs eval needle --task single_2,multiquery --haystack books.jsonl.zst --json needle.json --plot needle.png

\b
Tasks: single_1 (noise), single_2 (prose), single_3 (prose, UUID), multikey_1 (four needles),
multikey_2 (needles all over), multikey_3 (the same, UUID for UUID), multivalue (four values),
multiquery (four keys). All but single_1, multikey_2 and multikey_3 need --haystack.""",
)
@click.option("--task", "tasks", default="single_1", show_default=True, metavar="NAMES", help="With commas; see below.")
@click.option(
    "--length",
    "lengths",
    default="4096,32768",
    show_default=True,
    callback=numbers,
    metavar="TOKENS",
    help="Of the texts, several with commas.",
)
@click.option("--samples", type=click.IntRange(min=1), default=10, show_default=True, metavar="N", help="Of each.")
@click.option(
    "--route",
    type=click.Choice(["auto", "memory", "lookup"]),
    default="auto",
    show_default=True,
    help="memory: every text is read first, seconds for each thousand tokens.",
)
@click.option("--haystack", multiple=True, metavar="FILE", help="Prose: a document, or JSON lines (.zst) of documents.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N", help="Of texts and depths."
)
@click.option("--json", "out", type=click.Path(path_type=Path), metavar="OUT", help="Kept up to date while it runs.")
@click.option("--plot", "picture", type=click.Path(path_type=Path), metavar="OUT.png", help="Draws a heat map.")
@model_options
@quiet_option
def needle(
    tasks: str,
    lengths: list[int],
    samples: int,
    route: Any,
    haystack: tuple[str, ...],
    seed: int,
    out: Path | None,
    picture: Path | None,
    model: str | None,
    device: str,
    dtype: str | None,
    quiet: bool,
) -> None:
    """Hide values in long texts (RULER's tasks), ingest each text, ask for the values, and count what comes back."""
    from tqdm import tqdm

    from ttt_docs.evaluation import needle as evaluation
    from ttt_docs.evaluation.collections import read_collection
    from ttt_docs.io import check_writable

    for path in filter(None, (out, picture)):
        check_writable(path)
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    texts = (book.text for book in read_collection(haystack))
    reader = open_reader(model, device, dtype)
    asked: list[Asked] = []
    with tqdm(total=len(names) * len(lengths) * samples, unit="question", disable=quiet or None) as bar:
        for one in evaluation.measure(reader, names, lengths, samples, route, texts, seed):
            asked.append(one)
            bar.update()
            bar.set_postfix(task=one.task, length=one.length, refresh=False)
            if out is not None and (len(asked) % samples == 0):
                _write(out, asked, reader.name, seed)
    if not quiet:
        _print(evaluation.report(asked))
    if picture is not None:
        evaluation.plot(asked, picture)
        note(f"The heat map is in {picture}", quiet)


def _write(out: Path, asked: list[Asked], model: str, seed: int) -> None:
    from datetime import datetime, timezone

    import torch

    from ttt_docs._version import __version__
    from ttt_docs.evaluation.needle import report
    from ttt_docs.io import replacing

    facts = {
        "model": model,
        "seed": seed,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {"ttt-docs": __version__, "torch": str(torch.__version__)},
        "threads": torch.get_num_threads(),
    }
    with replacing(out) as file:
        file.write(json.dumps(report(asked) | facts, indent=1).encode() + b"\n")


def _print(report: dict[str, Any]) -> None:
    say(f"{'task':<12}{'tokens':>9}  {'route':<7}{'samples':>8}{'accuracy':>10}{'s/question':>12}")
    for row in report["results"]:
        say(
            f"{row['task']:<12}{row['length']:>9,}  {row['route']:<7}{row['samples']:>8}{row['accuracy']:>10.3f}"
            f"{row['seconds_per_question']:>12.2f}"
        )
    bands = sorted({row["depth"] for row in report["depths"]})
    say("\nAccuracy by the depth of the needle; columns are where each band begins\n")
    say(f"{'task':<12}{'tokens':>9}  " + "".join(f"{band:>6.0%}" for band in bands))
    for row in report["results"]:
        same = {
            d["depth"]: d["accuracy"]
            for d in report["depths"]
            if all(d[name] == row[name] for name in ("task", "length", "route"))
        }
        cells = (f"{same[band]:>6.2f}" if band in same else f"{'-':>6}" for band in bands)
        say(f"{row['task']:<12}{row['length']:>9,}  {''.join(cells)}")
