"""`ttt-docs eval`: loss against context length for several systems, and values hidden in long texts."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ttt_docs import UsageError
from ttt_docs.figures import picture_format
from ttt_docs.io import write_json
from ttt_docs_cli.answer import SOURCE, Opened, from_source
from ttt_docs_cli.options import (
    DEFAULT_MODEL,
    ROUTES,
    dtype_option,
    examples,
    gathered,
    keep_sources,
    number,
    opening_options,
    output_file,
    quiet_option,
)
from ttt_docs_cli.output import Result, note, quiet, say, table, with_json

if TYPE_CHECKING:
    from ttt_docs.evaluation.context import Reading
    from ttt_docs.evaluation.needle import Asked


def _names(context: click.Context, parameter: click.Parameter, value: str) -> list[str]:
    names = [name.strip() for name in value.split(",") if name.strip()]
    if not names:
        raise click.BadParameter("give at least one name")
    return names


def _lengths(context: click.Context, parameter: click.Parameter, value: str) -> list[int]:
    try:
        lengths = sorted({int(part) for part in value.split(",")})
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of numbers such as 8192,32768") from None
    if lengths[0] <= 0:
        raise click.BadParameter("lengths are positive")
    return lengths


def _check_targets(out: Path | None, picture: Path | None, sources: tuple[str, ...]) -> None:
    for target in (out, picture):
        keep_sources(target, *sources)
    if picture is not None:
        picture_format(picture)


names_option = partial(click.option, metavar="NAMES", callback=_names)
length_option = partial(click.option, "--length", "lengths", metavar="TOKENS", callback=_lengths)
json_file = output_file("--json", "out", metavar="OUT", help="Write the results here; kept up to date while it runs.")
picture_option = partial(output_file, "--plot", "picture", metavar="OUT.png")


@click.group(
    "eval",
    epilog=examples(
        "ttt-docs eval context book.txt --system window,retrofit --length 8192,32768",
        "ttt-docs eval needle --task single_1,multikey_2 --length 32768 --samples 20",
        "ttt-docs eval summary book.ttt summary.txt",
    ),
)
def evaluate() -> None:
    """Measure a model on documents: loss by context length, needles found, how likely a summary is."""


@evaluate.command(
    "context",
    epilog=examples(
        "ttt-docs eval context book.txt --system window,retrofit --length 8192,32768",
        "ttt-docs eval context books.jsonl.zst --system retrofit,adapter --adapter adapter.safetensors \\",
        "    --length 8192,32768,131072 --json context.json --plot context.png",
        more="""\b
Systems: window (attention only), retrofit (TTT, untrained), inplace (existing MLPs updated),
adapter and adapter-off (the trained initialization, TTT on and off), control (trained without
the inner loop), full (attention over the base model's trained length).""",
    ),
)
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@names_option("--system", "systems", default="window,retrofit", help="Which systems, with commas; see below.")
@length_option(default="8192,32768", help="How many tokens of each document to read; several with commas.")
@gathered(
    "base",
    click.option("-m", "--model", default=DEFAULT_MODEL, help="The base model of all systems."),
    number("--window", "How far attention sees back.", metavar="TOKENS", default=2048),
    click.option(
        "--adapter", metavar="FILE", help="Adapter of the systems adapter and adapter-off.  [default: the model's own]"
    ),
    click.option("--control", metavar="FILE", help="Adapter of the system control."),
    dtype_option,
)
@json_file
@picture_option(help="Draws both curves (png, svg, pdf).")
@quiet_option
def context(
    files: tuple[str, ...],
    systems: list[str],
    lengths: list[int],
    base: dict[str, Any],
    out: Path | None,
    picture: Path | None,
) -> None:
    """Measure the loss of documents against context length, side by side for several systems.

    FILE is a document, or JSON lines (also .zst) of documents. The same command, started again with the same --json
    file, reads only what is missing there.
    """
    from tqdm import tqdm

    from ttt_docs.evaluation import context as evaluation
    from ttt_docs.evaluation.books import read_collection

    wrong = [length for length in lengths if length % evaluation.BUCKET]
    if wrong:
        raise UsageError(f"a length of {wrong[0]:,} is not a multiple of {evaluation.BUCKET:,}")
    _check_targets(out, picture, files)
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
    with tqdm(total=total, unit="tok", unit_scale=True, disable=quiet() or None) as bar:
        for reading in evaluation.measure(books, systems, evaluation.Base(**base), lengths[-1], known, bar.update):
            readings.append(reading)
            kept[evaluation.key_of_reading(reading)] = reading
            bar.set_postfix(system=reading.system, book=reading.book[:20], refresh=False)
            if out is not None:
                rows = [reading.model_dump(mode="json") for reading in kept.values()]
                write_json(out, evaluation.report(readings, lengths) | {"readings": rows}, indent=1)
    _print_context(evaluation.report(readings, lengths), systems, lengths)
    for name in systems:
        note(f"{name}: {evaluation.SYSTEMS[name].about}")
    if picture is not None:
        evaluation.plot(readings, lengths, picture)
        note(f"Both curves are in {picture}")


def _print_context(report: dict[str, Any], systems: list[str], lengths: list[int]) -> None:
    def print_rows(kind: str, columns: list[int]) -> None:
        def cell(row: dict[str, Any]) -> str:
            books = f" ({len(row['books'])})" if kind == "results" else ""
            return "-" if row["nats"] is None else f"{row['nats']:.4f}{books}"

        rows = [[name, *(cell(row) for row in report[kind] if row["system"] == name)] for name in systems]
        table([["", *(f"{column:,}" for column in columns)], *rows], numbers=True)

    say("Loss in nats per token over the first tokens of each book; in brackets, how many books are so long\n")
    print_rows("results", lengths)
    say(f"\nBy position, books of at least {lengths[-1]:,} tokens; columns are where each bin ends\n")
    print_rows("positions", sorted({row["end"] for row in report["positions"]}))


@evaluate.command(
    "needle",
    epilog=examples(
        "ttt-docs eval needle --task single_1,multikey_2 --length 32768,131072 --samples 20",
        "ttt-docs eval needle --task single_2,multiquery --haystack books.jsonl.zst --json out.json --plot out.png",
        more="""\b
Tasks: single_1 (noise), single_2 (prose), single_3 (prose, UUID), multikey_1 (four needles),
multikey_2 (needles all over), multikey_3 (the same, UUID for UUID), multivalue (four values),
multiquery (four keys). All but single_1, multikey_2 and multikey_3 need --haystack.""",
    ),
)
@names_option("--task", "tasks", default="single_1", help="Which tasks, with commas; see below.")
@length_option(default="4096,32768", help="Length of the texts; several with commas.")
@number("--samples", "Questions for each task and length.", default=10)
@click.option(
    "--route", type=ROUTES, default="auto", help="memory: every text is read first, seconds for each thousand tokens."
)
@click.option("--haystack", multiple=True, metavar="FILE", help="Prose: a document, or JSON lines (.zst) of documents.")
@number("--seed", "Another seed, other texts.", least=0, default=0)
@json_file
@picture_option(help="Draws a heat map (png, svg, pdf).")
@opening_options
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
    opening: dict[str, Any],
) -> None:
    """Hide values in long texts (RULER's tasks), ingest each text, ask for the values, and count what comes back."""
    import torch
    from tqdm import tqdm

    from ttt_docs._version import __version__
    from ttt_docs.evaluation import needle as evaluation
    from ttt_docs.evaluation.books import read_collection
    from ttt_docs_cli.opening import open_reader

    _check_targets(out, picture, haystack)
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
    with tqdm(total=len(tasks) * len(lengths) * samples, unit="question", disable=quiet() or None) as bar:
        for one in evaluation.measure(reader, tasks, lengths, samples, route, texts, seed):
            asked.append(one)
            bar.update()
            bar.set_postfix(task=one.task, length=one.length, refresh=False)
            if out is not None and (len(asked) % samples == 0):
                write_json(out, evaluation.report(asked) | facts, indent=1)
    if not quiet():
        _print_needle(evaluation.report(asked))
    if picture is not None:
        evaluation.plot(asked, picture)
        note(f"The heat map is in {picture}")


def _print_needle(report: dict[str, Any]) -> None:
    rows = [[row["task"], f"{row['length']:,}", row["route"], row["samples"]] for row in report["results"]]
    rates = [[f"{row['accuracy']:.3f}", f"{row['seconds_per_question']:.2f}"] for row in report["results"]]
    heads = ["task", "tokens", "route", "samples", "accuracy", "s/question"]
    table([heads, *(row + rate for row, rate in zip(rows, rates, strict=True))], numbers=True)
    bands = sorted({row["depth"] for row in report["depths"]})
    found = {(row["task"], row["length"], row["depth"]): f"{row['accuracy']:.2f}" for row in report["depths"]}
    say("\nAccuracy by the depth of the needle; columns are where each band begins\n")
    cells = [[found.get((row["task"], row["length"], band), "-") for band in bands] for row in report["results"]]
    heads = ["task", "tokens", *(f"{band:.0%}" for band in bands)]
    table([heads, *(row[:2] + cell for row, cell in zip(rows, cells, strict=True))], numbers=True)


@evaluate.command(
    "summary",
    help=f"""Measure how likely summaries are after what was read, and after nothing, in nats per token.

A SUMMARY is a file of any kind that can be read. {SOURCE}""",
    epilog=examples("ttt-docs eval summary book.ttt summary.txt", "ttt-docs eval summary book.pdf ours.txt theirs.txt"),
)
@from_source
@click.argument("summaries", nargs=-1, required=True, metavar="SUMMARY...")
@with_json
def summary(opened: Opened, summaries: tuple[str, ...]) -> Result:
    from ttt_docs.documents import load_document

    texts = [load_document(one).text.strip() for one in summaries]
    reader, memory = opened()
    tokens = [len(one) for one in reader.tokenizer.encode_batch(texts)]
    rows = list(zip(summaries, tokens, reader.score(None, texts), reader.score(memory, texts), strict=True))
    fields = ("summary", "tokens", "nothing", "memory")
    cells = [[name, f"{count:,}", f"{nothing:.4f}", f"{after:.4f}"] for name, count, nothing, after in rows]
    heads = ["", "tokens", "after nothing", "after the memory"]
    found = [dict(zip(fields, row, strict=True)) for row in rows]
    return Result({"model": memory.model, "summaries": found}, lambda: table([heads, *cells], numbers=True))
