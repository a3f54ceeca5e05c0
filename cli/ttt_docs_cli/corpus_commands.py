"""`ttt-docs corpus`: many documents into a store of memories."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from ttt_docs_cli.opening import open_reader
from ttt_docs_cli.options import examples, number, opening_options, quiet_option, reading_options
from ttt_docs_cli.output import Result, duration, progress, quiet, warn, with_json


@click.group(epilog=examples("ttt-docs corpus ingest books --store memories"))
def corpus() -> None:
    """Many documents at once."""


@corpus.command(
    "ingest",
    epilog=examples(
        "ttt-docs corpus ingest books --store memories",
        'ttt-docs corpus ingest "books/**/*.epub" --store memories --resume --compact',
        "ttt-docs corpus ingest list.txt --store s3://bucket/memories --engine ray --workers 8",
    ),
)
@click.argument("documents", metavar="DIR|GLOB|LIST.txt")
@click.option("--store", "location", required=True, metavar="STORE", help="Folder or fsspec URL of the store.")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", help="Read here, or on Ray.")
@number("--batch", "Documents read together; memory grows with it.", default=4)
@number("--workers", "Processes that read, on Ray.", default=2)
@click.option("--address", metavar="ADDRESS", help="Address of a Ray cluster.  [default: a new one on this machine]")
@click.option("--resume", is_flag=True, help="Read only what is not in the store.")
@click.option("--compact", is_flag=True, help="Store compact memories, of at most 12 MB.")
@opening_options
@reading_options
@quiet_option
@with_json
def ingest(
    documents: str,
    location: str,
    opening: dict[str, Any],
    reading: dict[str, Any],
    batch: int,
    resume: bool,
    compact: bool,
    **running: Any,
) -> Result:
    """Read the documents of a folder, a pattern or a list into a store, each into a memory of its own.

    A document that cannot be read is named with its reason. The others are read, and the exit code is 1.
    """
    from ttt_docs import MemoryStore
    from ttt_docs.corpus.batches import Settings
    from ttt_docs.corpus.ingestion import corpus_sources, ingest_corpus

    sources = corpus_sources(documents)
    report = ingest_corpus(
        sources,
        MemoryStore(location),
        partial(open_reader, **opening, **reading),
        settings=Settings(batch=batch, resume=resume, compact=compact),
        progress=progress(),
        **running,
    )
    facts = {"store": location, **report.as_json()}
    for one in report.failed:
        warn(f"{one.source}: {one.reason}")
    if report.failed:
        warn(f"{len(report.failed)} of {len(sources)} documents could not be read.")
    pace = f", {facts['tokens_per_second']:,.0f} tokens/s" if report.tokens else ""
    there = f", {facts['there_already']} were there already" if facts["there_already"] else ""
    words = f"Read {facts['read']} documents, {report.tokens:,} tokens in {duration(report.seconds)}{pace}{there}."
    return Result(facts, "" if quiet() else words, exit_code=int(bool(report.failed)))
