"""`ttt-docs eval context`: loss against context length, for several systems."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ttt_docs import UsageError
from ttt_docs_cli.options import DEFAULT_MODEL, dtype_option, quiet_option
from ttt_docs_cli.output import note, say

if TYPE_CHECKING:
    from ttt_docs.evaluation.context import Reading


def numbers(ctx: click.Context, parameter: click.Parameter, value: str) -> list[int]:
    """A list such as 8192,32768."""
    try:
        lengths = [int(part) for part in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of numbers such as 8192,32768") from None
    if min(lengths) <= 0:
        raise click.BadParameter("lengths are positive")
    return sorted(set(lengths))


@click.command(
    "context",
    epilog="""\b
Example:
  ttt-docs eval context book.txt --system window,retrofit --length 8192,32768
  ttt-docs eval context books.jsonl.zst --system retrofit,adapter --adapter adapter.safetensors \\
      --length 8192,32768,131072 --json context.json --plot context.png

\b
Systems: window (attention only), retrofit (TTT, untrained), inplace (existing MLPs updated),
adapter and adapter-off (the trained initialization, TTT on and off), control (trained without
the inner loop), full (attention over the base model's trained length).""",
)
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--system", "systems", default="window,retrofit", show_default=True, metavar="NAMES", help="See below.")
@click.option(
    "--length",
    "lengths",
    default="8192,32768",
    show_default=True,
    callback=numbers,
    metavar="TOKENS",
    help="First tokens of each document, several with commas.",
)
@click.option("-m", "--model", default=DEFAULT_MODEL, show_default=True, help="The base model of all systems.")
@click.option("--window", default=2048, show_default=True, metavar="TOKENS", help="Keys a query sees.")
@click.option(
    "--adapter",
    type=click.Path(),
    metavar="FILE",
    help="Of the systems adapter and adapter-off.  [default: the model's own]",
)
@click.option("--control", type=click.Path(), metavar="FILE", help="Adapter of the system control.")
@click.option("--json", "out", type=click.Path(path_type=Path), metavar="OUT", help="Kept up to date while it runs.")
@click.option("--plot", "picture", type=click.Path(path_type=Path), metavar="OUT.png", help="Draws both curves.")
@dtype_option
@quiet_option
def context(
    files: tuple[str, ...],
    systems: str,
    lengths: list[int],
    model: str,
    window: int,
    adapter: str | None,
    control: str | None,
    out: Path | None,
    picture: Path | None,
    dtype: str | None,
    quiet: bool,
) -> None:
    """Measure the loss of documents against context length, side by side for several systems.

    FILE is a document, or JSON lines (also .zst) of documents. The same command, started again with the same --json
    file, reads only what is missing there.
    """
    from tqdm import tqdm

    from ttt_docs.evaluation import context as evaluation
    from ttt_docs.evaluation.collections import read_collection
    from ttt_docs.io import check_writable
    from ttt_docs.weights.adapter import SHIPPED

    names = [name.strip() for name in systems.split(",") if name.strip()]
    unknown = [name for name in names if name not in evaluation.SYSTEMS]
    if unknown or not names:
        raise UsageError(f"there is no system {', '.join(unknown)}: choose from {', '.join(evaluation.SYSTEMS)}")
    wrong = [length for length in lengths if length % evaluation.BUCKET]
    if wrong:
        raise UsageError(f"a length of {wrong[0]:,} is not a multiple of {evaluation.BUCKET:,}")
    for path in filter(None, (out, picture)):
        check_writable(path)
    books = list(read_collection(files))
    base = evaluation.Base(model, window, dtype, adapter or SHIPPED, control)
    known = _known(out)
    readings: list[Reading] = []
    with tqdm(total=len(names) * len(books) * lengths[-1], unit="tok", unit_scale=True, disable=quiet or None) as bar:
        for reading in evaluation.measure(books, names, base, lengths[-1], known, bar.update):
            readings.append(reading)
            bar.set_postfix(system=reading.system, book=reading.book[:20], refresh=False)
            if out is not None:
                _write(out, evaluation.report(readings, lengths), known, readings)
    _print(evaluation.report(readings, lengths), names, lengths, quiet)
    if picture is not None:
        evaluation.plot(readings, lengths, picture)
        note(f"Both curves are in {picture}", quiet)


def _known(out: Path | None) -> list[Reading]:
    """The readings an earlier run left in OUT."""
    from ttt_docs.evaluation.context import Reading

    if out is None or not out.exists() or not out.stat().st_size:
        return []
    try:
        return [Reading(**row) for row in json.loads(out.read_text("utf-8"))["readings"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{out} is there but not from `ttt-docs eval context`: give another --json file") from error


def _write(out: Path, report: dict[str, Any], known: list[Reading], readings: list[Reading]) -> None:
    from ttt_docs.io import replacing

    kept = {(r.system, r.sha256, r.fingerprint, str(r.reading)): r for r in [*known, *readings]}
    rows = [r.model_dump(mode="json") for r in kept.values()]
    with replacing(out) as file:
        file.write(json.dumps(report | {"readings": rows}, indent=1).encode() + b"\n")


def _print(report: dict[str, Any], names: list[str], lengths: list[int], quiet: bool) -> None:
    from ttt_docs.evaluation.context import ABOUT

    by_system = {(row["system"], row["length"]): row for row in report["results"]}
    say("Loss in nats per token over the first tokens of each book; in brackets, how many books are so long\n")
    say(_row("", [f"{length:,}" for length in lengths]))
    for name in names:
        rows = [by_system[name, length] for length in lengths]
        cells = ["-" if r["nats"] is None else f"{r['nats']:.4f} ({len(r['books'])})" for r in rows]
        say(_row(name, cells))
    ends = sorted({row["end"] for row in report["positions"]})
    say(f"\nBy position, books of at least {lengths[-1]:,} tokens; columns are where each bin ends\n")
    say(_row("", [f"{end:,}" for end in ends]))
    for name in names:
        rows = [row for row in report["positions"] if row["system"] == name]
        say(_row(name, ["-" if row["nats"] is None else f"{row['nats']:.4f}" for row in rows]))
    for name in names:
        note(f"{name}: {ABOUT[name]}", quiet)


def _row(name: str, cells: list[str]) -> str:
    return f"{name:<12}" + "".join(f"{cell:>13}" for cell in cells)
