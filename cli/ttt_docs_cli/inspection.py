"""`ttt-docs inspect`: what a memory file holds."""

from __future__ import annotations

from typing import Any

import click

from ttt_docs_cli.options import json_option
from ttt_docs_cli.output import say, say_json, size, table


@click.command(
    epilog="""\b
Example:
  ttt-docs inspect book.ttt
  ttt-docs inspect book.ttt --json"""
)
@click.argument("file", metavar="FILE")
@json_option
def inspect(file: str, as_json: bool) -> None:
    """Show what a memory file holds, and check that it is intact."""
    from ttt_docs.memory import inspect_memory, load_memory, summary

    page = inspect_memory(file)
    facts = summary(load_memory(file))
    page |= {
        "loss": facts["mean_nll"],
        "loss_by_quarter": facts["nll_by_quarter"],
        "fast_norms": {str(block): norms for block, norms in facts["fast_norms"].items()},
    }
    if as_json:
        say_json(page)
    else:
        _print_page(page)


def _print_page(page: dict[str, Any]) -> None:
    say(f"{page['path']}  ({size(page['bytes']['file'])}, an intact memory)\n")
    for document in page["documents"]:
        spans = ", ".join(f"{count:,} {kind}s" for kind, count in document["spans"].items())
        what = [f"{document['end'] - document['start']:,} characters"] if document["end"] > document["start"] else []
        what += [spans] if spans else []
        what += [] if document["complete"] else ["read in part: ingest it again to go on"]
        what += [f"sha256 {document['sha256'][:12]}"] if document["sha256"] else []
        say(f"Document  {document['name']}: {', '.join(what)}")
    say("" if page["documents"] else "No document\n")
    reading = page["reading"]
    rule = f"{reading['inner_rule']}, lr {reading['inner_lr']:g}" if reading["learn"] else "none (window alone)"
    table(
        [
            ("Model", f"{page['model']}  (fingerprint {page['fingerprint'][:12]})"),
            ("Chunk", f"{reading['chunk']:,} tokens"),
            ("Window", f"{reading['window']:,} tokens and {reading['sinks']} sinks"),
            ("Updates", rule),
            ("Tokens", f"{page['tokens']:,} in {page['chunks']:,} chunks, {page['pending']:,} of them pending"),
            ("Skipped", f"{page['skipped']:,} updates"),
            ("Text", "in the file" if page["text"] else "left out"),
            ("Written", f"{page['created']} by ttt-docs {page['package_version']}"),
        ]
    )
    quarters = "  ".join("-" if loss is None else f"{loss:.3f}" for loss in page["loss_by_quarter"])
    mean = "-" if page["loss"] is None else f"{page['loss']:.3f}"
    say(f"\nLoss in nats per token: {mean}; by quarter: {quarters}")
    if page["fast_norms"]:
        say(f"\nFast weights ({page['precision']}), Frobenius norms\n  block        w1        w2        w3")
        for block, norms in page["fast_norms"].items():
            say(f"  {block:>5}" + "".join(f"  {norms[name]:8.3f}" for name in ("w1", "w2", "w3")))
    say("\nBytes by part")
    parts = [(part, count) for part, count in page["bytes"].items() if part != "file"]
    table([(part, f"{size(count):>12}") for part, count in parts], indent="  ")
    for key, value in page["extra"].items():
        say(f"\nNote {key}: {value}")
