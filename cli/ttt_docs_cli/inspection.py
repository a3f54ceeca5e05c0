"""`ttt-docs inspect`: what a memory file holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ttt_docs.io import readable_bytes as size
from ttt_docs_cli.options import json_option, model_option
from ttt_docs_cli.output import note, say, say_json, table

if TYPE_CHECKING:
    from ttt_docs import Memory


@click.command(
    epilog="""\b
Example:
  ttt-docs inspect book.ttt
  ttt-docs inspect book.ttt --html report.html
  ttt-docs inspect book.ttt --plot curve.png --json"""
)
@click.argument("file", metavar="FILE")
@click.option(
    "--html", metavar="FILE", help="Write a page to look at: loss along the document, surprising passages, and more."
)
@click.option("--plot", metavar="FILE", help="Write the loss along the document as a picture (png, svg, pdf).")
@model_option
@json_option
def inspect(file: str, html: str | None, plot: str | None, model: str | None, as_json: bool) -> None:
    """Show what a memory file holds, and check that it is intact.

    The page and the picture need the model for the passages and for where chapters begin: it is used if it is
    installed, or if --model names it. Nothing is downloaded.
    """
    from ttt_docs.memory import Memory, inspect_memory, summary

    page = inspect_memory(file)
    memory = Memory.load(file)
    if html or plot:
        _draw(file, memory, page, html, plot, model)
    facts = summary(memory)
    page |= {
        "loss": facts["mean_nll"],
        "loss_by_quarter": facts["nll_by_quarter"],
        "fast_norms": {str(block): norms for block, norms in facts["fast_norms"].items()},
    }
    if as_json:
        say_json(page)
    else:
        _print_page(page)


def _draw(
    file: str, memory: Memory, page: dict[str, Any], html: str | None, plot: str | None, model: str | None
) -> None:
    from ttt_docs.io import check_writable, replacing
    from ttt_docs.report import examine, html_page, save_plot
    from ttt_docs.weights.registry import entry_of, info
    from ttt_docs_cli.opening import reader_of

    for target in filter(None, (html, plot)):
        check_writable(Path(target))
    reader = None
    if model is not None or (entry_of(memory.model) and info(memory.model)["installed"]):
        reader = reader_of(file, memory, model, "cpu", None)
    else:
        note(f"The model {memory.model} is not here: surprising passages and the fast weights' change are left out.")
    findings = examine(memory, page, reader)
    if plot:
        note(f"The curve is in {save_plot(findings, plot)}")
    if html:
        with replacing(Path(html)) as output:
            output.write(html_page(findings).encode())
        note(f"The report is in {html}")


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
