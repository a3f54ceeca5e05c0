"""`ttt-docs inspect`: what a memory file holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ttt_docs.io import readable_bytes as size
from ttt_docs_cli.options import examples, keep_sources, model_option, output_file
from ttt_docs_cli.output import Result, note, say, table, with_json

if TYPE_CHECKING:
    from ttt_docs import Memory


@click.command(
    epilog=examples(
        "ttt-docs inspect book.ttt",
        "ttt-docs inspect book.ttt --html report.html",
        "ttt-docs inspect book.ttt --plot curve.png --json",
    )
)
@click.argument("file", metavar="FILE")
@output_file("--html", help="Write a page: the loss along the document, surprising passages, and more.")
@output_file("--plot", help="Draw the loss along the document as a picture (png, svg, pdf).")
@model_option
@with_json
def inspect(file: str, html: Path | None, plot: Path | None, model: str | None) -> Result:
    """Show what a memory file holds, and check that it is intact.

    The page and the picture need the model for the passages and for where chapters begin. It is used if it is
    installed, or if --model names it. Nothing is downloaded.
    """
    from ttt_docs.memory import Memory, inspect_memory, summary

    keep_sources(html, file)
    keep_sources(plot, file)
    page = inspect_memory(file)
    memory = Memory.load(file)
    if html or plot:
        _draw(file, memory, page, html, plot, model)
    facts = summary(memory)
    page |= {
        "loss": facts["mean_nll"],
        "loss_by_quarter": facts["nll_by_quarter"],
        "fast_norms": facts["fast_norms"],
    }
    return Result(page, lambda: _print_page(page))


def _draw(
    file: str, memory: Memory, page: dict[str, Any], html: Path | None, plot: Path | None, model: str | None
) -> None:
    from ttt_docs.io import replacing
    from ttt_docs.report import examine, html_page, save_plot
    from ttt_docs.weights.registry import entry_of, info
    from ttt_docs_cli.opening import reader_of

    reader = None
    if model is not None or (entry_of(memory.model) and info(memory.model)["installed"]):
        reader = reader_of(file, memory, model)
    else:
        note(f"The model {memory.model} is not here: surprising passages and the fast weights' change are left out.")
    findings = examine(memory, page, reader)
    if plot:
        note(f"The curve is in {save_plot(findings, plot)}")
    if html:
        with replacing(html) as output:
            output.write(html_page(findings).encode())
        note(f"The report is in {html}")


def _print_page(page: dict[str, Any]) -> None:
    say(f"{page['path']}  ({size(page['bytes']['file'])}, an intact memory)\n")
    for document in page["documents"]:
        what = [f"{document['end'] - document['start']:,} characters"] if document["end"] > document["start"] else []
        what += [f"{count:,} {kind}s" for kind, count in document["spans"].items()]
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
    mean, *quarters = ("-" if loss is None else f"{loss:.3f}" for loss in (page["loss"], *page["loss_by_quarter"]))
    say(f"\nLoss in nats per token: {mean}; by quarter: {'  '.join(quarters)}")
    if page["fast_norms"]:
        say(f"\nFast weights ({page['precision']}), Frobenius norms")
        rows = [(block, *(f"{norm:.3f}" for norm in norms.values())) for block, norms in page["fast_norms"].items()]
        table([("block", *next(iter(page["fast_norms"].values()))), *rows], indent="  ", numbers=True)
    say("\nBytes by part")
    table([(part, size(count)) for part, count in page["bytes"].items() if part != "file"], indent="  ", numbers=True)
    for key, value in page["extra"].items():
        say(f"\nNote {key}: {value}")
