"""`ttt-docs eval`: loss against context length for several systems, and values hidden in long texts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ttt_docs import UsageError
from ttt_docs.io import check_writable, write_json
from ttt_docs_cli.options import DEFAULT_MODEL, dtype_option, model_options, options, quiet_option, route_option
from ttt_docs_cli.output import note, say

if TYPE_CHECKING:
    from ttt_docs.evaluation.context import Reading
    from ttt_docs.evaluation.needle import Asked


def _list_option(name: str, target: str, default: str, metavar: str, help: str) -> Callable[..., Any]:
    """A list such as window,retrofit or, where metavar is TOKENS, 8192,32768."""

    def parse(ctx: click.Context, parameter: click.Parameter, value: str) -> list[Any]:
        if metavar != "TOKENS":
            return [name.strip() for name in value.split(",") if name.strip()]
        try:
            lengths = sorted({int(part) for part in value.split(",")})
        except ValueError:
            raise click.BadParameter(f"{value!r} is not a list of numbers such as 8192,32768") from None
        if lengths[0] <= 0:
            raise click.BadParameter("lengths are positive")
        return lengths

    return click.option(name, target, default=default, show_default=True, callback=parse, metavar=metavar, help=help)


def _outputs(picture: str) -> Callable[..., Any]:
    path = click.Path(path_type=Path)
    return options(
        click.option("--json", "out", type=path, metavar="OUT", help="Kept up to date while it runs."),
        click.option("--plot", "picture", type=path, metavar="OUT.png", help=f"Draws {picture}."),
    )


@click.group(
    "eval",
    epilog="""\b
Example:
  ttt-docs eval context book.txt --system window,retrofit --length 8192,32768
  ttt-docs eval needle --task single_1,multikey_2 --length 32768 --samples 20""",
)
def evaluate() -> None:
    """Measure a model on documents: loss by context length, needles found."""


@evaluate.command(
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
@_list_option("--system", "systems", "window,retrofit", "NAMES", "See below.")
@_list_option("--length", "lengths", "8192,32768", "TOKENS", "First tokens of each document, several with commas.")
@click.option("-m", "--model", default=DEFAULT_MODEL, show_default=True, help="The base model of all systems.")
@click.option("--window", default=2048, show_default=True, metavar="TOKENS", help="Keys a query sees.")
@click.option(
    "--adapter",
    type=click.Path(),
    metavar="FILE",
    help="Of the systems adapter and adapter-off.  [default: the model's own]",
)
@click.option("--control", type=click.Path(), metavar="FILE", help="Adapter of the system control.")
@_outputs("both curves")
@dtype_option
@quiet_option
def context(
    files: tuple[str, ...],
    systems: list[str],
    lengths: list[int],
    adapter: str | None,
    out: Path | None,
    picture: Path | None,
    quiet: bool,
    **base: Any,
) -> None:
    """Measure the loss of documents against context length, side by side for several systems.

    FILE is a document, or JSON lines (also .zst) of documents. The same command, started again with the same --json
    file, reads only what is missing there.
    """
    from tqdm import tqdm

    from ttt_docs.evaluation import context as evaluation
    from ttt_docs.evaluation.books import read_collection
    from ttt_docs.weights.adapter import SHIPPED

    unknown = [name for name in systems if name not in evaluation.SYSTEMS]
    if unknown or not systems:
        raise UsageError(f"there is no system {', '.join(unknown)}: choose from {', '.join(evaluation.SYSTEMS)}")
    wrong = [length for length in lengths if length % evaluation.BUCKET]
    if wrong:
        raise UsageError(f"a length of {wrong[0]:,} is not a multiple of {evaluation.BUCKET:,}")
    for path in filter(None, (out, picture)):
        check_writable(path)
    books = list(read_collection(files))
    known: list[Reading] = []
    if out is not None and out.exists() and out.stat().st_size:
        try:
            known = [evaluation.Reading(**row) for row in json.loads(out.read_text("utf-8"))["readings"]]
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{out} is not from `ttt-docs eval context`: give another --json file") from error
    kept = {evaluation.key_of_reading(reading): reading for reading in known}
    readings: list[Reading] = []
    total = len(systems) * len(books) * lengths[-1]
    with tqdm(total=total, unit="tok", unit_scale=True, disable=quiet or None) as bar:
        chosen = evaluation.Base(adapter=adapter or SHIPPED, **base)
        for reading in evaluation.measure(books, systems, chosen, lengths[-1], known, bar.update):
            readings.append(reading)
            kept[evaluation.key_of_reading(reading)] = reading
            bar.set_postfix(system=reading.system, book=reading.book[:20], refresh=False)
            if out is not None:
                rows = [reading.model_dump(mode="json") for reading in kept.values()]
                write_json(out, evaluation.report(readings, lengths) | {"readings": rows}, indent=1)
    _print_context(evaluation.report(readings, lengths), systems, lengths)
    for name in systems:
        note(f"{name}: {evaluation.ABOUT[name]}", quiet)
    if picture is not None:
        evaluation.plot(readings, lengths, picture)
        note(f"Both curves are in {picture}", quiet)


def _print_context(report: dict[str, Any], systems: list[str], lengths: list[int]) -> None:
    def rows(kind: str, name: str) -> list[dict[str, Any]]:
        return [row for row in report[kind] if row["system"] == name]

    def line(name: str, cells: Iterable[str]) -> None:
        say(f"{name:<12}" + "".join(f"{cell:>13}" for cell in cells))

    say("Loss in nats per token over the first tokens of each book; in brackets, how many books are so long\n")
    line("", (f"{length:,}" for length in lengths))
    for name in systems:
        cells = [("-" if r["nats"] is None else f"{r['nats']:.4f} ({len(r['books'])})") for r in rows("results", name)]
        line(name, cells)
    ends = sorted({row["end"] for row in report["positions"]})
    say(f"\nBy position, books of at least {lengths[-1]:,} tokens; columns are where each bin ends\n")
    line("", (f"{end:,}" for end in ends))
    for name in systems:
        line(name, ("-" if r["nats"] is None else f"{r['nats']:.4f}" for r in rows("positions", name)))


@evaluate.command(
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
@_list_option("--task", "tasks", "single_1", "NAMES", "With commas; see below.")
@_list_option("--length", "lengths", "4096,32768", "TOKENS", "Of the texts, several with commas.")
@click.option("--samples", type=click.IntRange(min=1), default=10, show_default=True, metavar="N", help="Of each.")
@route_option("memory: every text is read first, seconds for each thousand tokens.")
@click.option("--haystack", multiple=True, metavar="FILE", help="Prose: a document, or JSON lines (.zst) of documents.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N", help="Of texts and depths."
)
@_outputs("a heat map")
@model_options
@quiet_option
def needle(
    tasks: list[str],
    lengths: list[int],
    samples: int,
    route: Any,
    haystack: tuple[str, ...],
    seed: int,
    out: Path | None,
    picture: Path | None,
    quiet: bool,
    **opening: Any,
) -> None:
    """Hide values in long texts (RULER's tasks), ingest each text, ask for the values, and count what comes back."""
    import torch
    from tqdm import tqdm

    from ttt_docs._version import __version__
    from ttt_docs.evaluation import needle as evaluation
    from ttt_docs.evaluation.books import read_collection
    from ttt_docs_cli.opening import open_reader

    for path in filter(None, (out, picture)):
        check_writable(path)
    texts = (book.text for book in read_collection(haystack))
    reader = open_reader(**opening)
    facts = {
        "model": reader.name,
        "seed": seed,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {"ttt-docs": __version__, "torch": str(torch.__version__)},
        "threads": torch.get_num_threads(),
    }
    asked: list[Asked] = []
    with tqdm(total=len(tasks) * len(lengths) * samples, unit="question", disable=quiet or None) as bar:
        for one in evaluation.measure(reader, tasks, lengths, samples, route, texts, seed):
            asked.append(one)
            bar.update()
            bar.set_postfix(task=one.task, length=one.length, refresh=False)
            if out is not None and (len(asked) % samples == 0):
                write_json(out, evaluation.report(asked) | facts, indent=1)
    if not quiet:
        _print_needle(evaluation.report(asked))
    if picture is not None:
        evaluation.plot(asked, picture)
        note(f"The heat map is in {picture}", quiet)


def _print_needle(report: dict[str, Any]) -> None:
    say(f"{'task':<12}{'tokens':>9}  {'route':<7}{'samples':>8}{'accuracy':>10}{'s/question':>12}")
    for row in report["results"]:
        say(
            f"{row['task']:<12}{row['length']:>9,}  {row['route']:<7}{row['samples']:>8}{row['accuracy']:>10.3f}"
            f"{row['seconds_per_question']:>12.2f}"
        )
    bands = sorted({row["depth"] for row in report["depths"]})
    found = {(row["task"], row["length"], row["route"], row["depth"]): row["accuracy"] for row in report["depths"]}
    say("\nAccuracy by the depth of the needle; columns are where each band begins\n")
    say(f"{'task':<12}{'tokens':>9}  " + "".join(f"{band:>6.0%}" for band in bands))
    for row in report["results"]:
        at = (found.get((row["task"], row["length"], row["route"], band)) for band in bands)
        cells = (f"{'-':>6}" if accuracy is None else f"{accuracy:>6.2f}" for accuracy in at)
        say(f"{row['task']:<12}{row['length']:>9,}  {''.join(cells)}")
