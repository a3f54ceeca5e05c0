"""`ttt-docs corpus`: many documents into a store of memories."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from ttt_docs_cli.options import json_option, model_options, quiet_option, reading_options
from ttt_docs_cli.output import duration, note, say, say_json


@click.group(epilog="\b\nExample:\n  ttt-docs corpus ingest books --store memories")
def corpus() -> None:
    """Many documents at once."""


@corpus.command(
    "ingest",
    epilog="""\b
Example:
  ttt-docs corpus ingest books --store memories
  ttt-docs corpus ingest "books/**/*.epub" --store memories --resume --compact
  ttt-docs corpus ingest list.txt --store s3://bucket/memories --engine ray --workers 8""",
)
@click.argument("documents", metavar="DIR|GLOB|LIST.txt")
@click.option("--store", "location", required=True, metavar="STORE", help="Folder or fsspec URL of the store.")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True, help="What reads.")
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    metavar="N",
    default=4,
    show_default=True,
    help="Documents read together; memory grows with it.",
)
@click.option("--workers", type=click.IntRange(min=1), metavar="N", default=2, show_default=True, help="Ray's actors.")
@click.option("--address", metavar="ADDRESS", help="Of a Ray cluster.  [default: one on this machine]")
@click.option("--resume", is_flag=True, help="Read only what is not in the store.")
@click.option("--compact", is_flag=True, help="Store compact memories, of at most 12 MB.")
@model_options
@reading_options
@json_option
@quiet_option
def ingest(
    documents: str,
    location: str,
    engine: Any,
    batch: int,
    workers: int,
    address: str | None,
    resume: bool,
    compact: bool,
    as_json: bool,
    quiet: bool,
    **opening: Any,
) -> None:
    """Read the documents of a folder, a pattern or a list into a store, each into a memory of its own.

    A document that cannot be read is named with its reason; the others are read, and the exit code is 1.
    """
    from ttt_docs import MemoryStore
    from ttt_docs.corpus.batches import Settings
    from ttt_docs.corpus.ingestion import corpus_sources, ingest_corpus
    from ttt_docs_cli.opening import open_reader

    sources = corpus_sources(documents)
    given = {name: value for name, value in opening.items() if value is not None or name in ("model", "dtype")}
    report = ingest_corpus(
        sources,
        MemoryStore(location),
        partial(open_reader, **given),
        engine=engine,
        workers=workers,
        settings=Settings(batch=batch, resume=resume, compact=compact),
        address=address,
        progress=False if quiet else None,
    )
    result = {"store": location, **report.as_json()}
    for one in report.failed:
        note(f"{one.source}: {one.reason}")
    if as_json:
        say_json(result)
    elif not quiet:
        pace = f", {result['tokens_per_second']:,.0f} tokens/s" if report.tokens else ""
        there = f", {result['there_already']} were there already" if result["there_already"] else ""
        say(f"Read {result['read']} documents, {report.tokens:,} tokens in {duration(report.seconds)}{pace}{there}.")
    if report.failed:
        note(f"{len(report.failed)} of {len(sources)} documents could not be read.")
        click.get_current_context().exit(1)
