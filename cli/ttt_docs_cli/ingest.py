"""`ttt-docs ingest`: documents into a memory file."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ttt_docs import Document, MemoryFormatError, UsageError
from ttt_docs.io import readable_bytes as size
from ttt_docs_cli.opening import how_far, is_memory_file, open_memory, open_reader
from ttt_docs_cli.options import (
    examples,
    gathered,
    keep_sources,
    number,
    opening_options,
    password_option,
    quiet_option,
    reading_options,
)
from ttt_docs_cli.output import Result, duration, note, progress, quiet, warn, with_json

if TYPE_CHECKING:
    from ttt_docs import Memory, TTTReader
    from ttt_docs.model.config import ReadingConfig


@click.command(
    epilog=examples(
        "ttt-docs ingest book.pdf -o book.ttt",
        "ttt-docs ingest part1.txt part2.txt -o both.ttt",
        "ttt-docs ingest part3.txt --memory both.ttt -o three.ttt",
        "cat notes.txt | ttt-docs ingest - -o notes.ttt",
    )
)
@click.argument("documents", nargs=-1, required=True, metavar="DOCUMENT...")
@click.option("-o", "--output", metavar="FILE", help="The memory file.  [default: beside the document, suffix .ttt]")
@opening_options
@reading_options
@gathered("loading", password_option, number("--max-bytes", "Refuse larger documents.  [512 MiB]", metavar="BYTES"))
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    help="How the file holds the fast weights: exactly, or rounded in half the bytes.",
)
@click.option("--text-only", is_flag=True, help="Read nothing: keep the text, for questions that are looked up.")
@click.option("--no-text", is_flag=True, help="Leave the documents' text out of the file.")
@click.option("--memory", "old", metavar="FILE", help="Read on after this memory, which stays as it is.")
@click.option("--force", is_flag=True, help="Start anew and replace the output file, whatever it holds.")
@quiet_option
@with_json
def ingest(
    documents: tuple[str, ...],
    output: str | None,
    opening: dict[str, Any],
    reading: dict[str, Any],
    loading: dict[str, Any],
    precision: Any,
    text_only: bool,
    no_text: bool,
    old: str | None,
    force: bool,
) -> Result:
    """Read documents, one after the other, into one memory file.

    A DOCUMENT is a PDF, EPUB, HTML, Markdown or text file, a URL, or - for standard input.

    Ctrl-C saves what was read. The same command goes on from there, and ends with the same memory as one that was
    never interrupted. A document that was already read in the same way is not read again.
    """
    from ttt_docs.documents import load_document
    from ttt_docs.io import Interrupt

    if text_only and no_text:
        raise UsageError("--text-only with --no-text leaves nothing to keep: use one of them")
    target = _target(documents, output, old)
    texts = [load_document(document, **loading) for document in documents]
    before: Memory | None = None
    if old is None:
        reader = open_reader(**opening, **reading)
    else:
        reader, before = open_memory(old, **opening)
        _same_parameters(old, before.reading, reading)
    memory, left, status = before, texts, "read"
    if os.path.exists(target) and not force:
        memory, left = _found(target, reader, before, texts, precision, not no_text, text_only)
        status = "resumed" if left else "already read"
        if left:
            note(f"{target} holds the first {len(memory.tokens):,} tokens: reading goes on from there.")
    start, began = memory, time.perf_counter()
    try:
        for document in left:
            memory = reader.ingest(document, memory=memory, learn=not text_only, progress=progress())
    except KeyboardInterrupt as interruption:
        memory = getattr(interruption, "memory", memory)
        if memory is None or memory is start:
            raise
        with Interrupt():  # a second Ctrl-C by an impatient finger shall not cost what was read
            memory.save(target)  # whole, whatever is asked for: going on must give the same as reading in one go
        status = "interrupted"
        again = "the same command without --force" if force else "the same command"
        warn(f"\nInterrupted {how_far(memory, texts)}, saved to {target}: {again} goes on from there.")
    assert memory is not None
    if left and status != "interrupted":
        memory.save(target, precision=precision, text=not no_text)
    new_tokens = len(memory.tokens) - (0 if start is None else len(start.tokens))
    facts = _facts(status, target, memory, new_tokens, time.perf_counter() - began)
    if status == "interrupted":
        return Result(facts, exit_code=130)
    return Result(facts, "" if quiet() else _sentence(facts))


def _target(documents: Sequence[str], output: str | None, old: str | None) -> Path:
    """The file to write: found unfit now rather than after an hour of reading."""
    from ttt_docs.documents.origin import is_url
    from ttt_docs.io import check_writable

    if documents.count("-") > 1:
        raise UsageError("standard input (-) can be read only once")
    for document in documents:
        if is_memory_file(document) and os.path.exists(document):
            raise UsageError(f"{document} is a memory, not a document: to read on after it use --memory {document}")
    if output is None and (len(documents) > 1 or documents[0] == "-" or is_url(documents[0])):
        raise UsageError("say with -o where the memory goes, for example -o book.ttt")
    target = Path(output) if output is not None else Path(documents[0]).expanduser().with_suffix(".ttt")
    keep_sources(target, *documents, old)
    check_writable(target)
    return target


def _same_parameters(path: str, reading: ReadingConfig, parameters: dict[str, Any]) -> None:
    for name, value in parameters.items():
        there = getattr(reading, name)
        if value != there:
            option = "--no-learn" if name == "learn" else "--" + name.replace("_", "-")
            raise UsageError(f"{path} was read with {name} {there}, and reading goes on like that: leave {option} out")


def _found(
    target: Path,
    reader: TTTReader,
    before: Memory | None,
    documents: Sequence[Document],
    precision: str,
    text: bool,
    text_only: bool,
) -> tuple[Memory, list[Document]]:
    """The memory in an output file that is there already, if it is this work or its beginning; and what is left.

    Raises UsageError if it is anything else, which is not for us to replace.
    """
    from ttt_docs import Memory
    from ttt_docs.memory import inspect_memory

    advice = "use --force to replace it, or another -o"
    try:
        memory, form = Memory.load(target), inspect_memory(target)
    except MemoryFormatError as error:
        raise UsageError(f"{target} exists, and is not an intact memory: {advice} ({error})") from error
    reading = reader.reading if before is None else before.reading
    kept = () if before is None else before.documents
    if kept and not kept[-1].complete and kept[-1].sha256 == documents[0].sha256:
        kept = kept[:-1]  # reading goes on in the middle of this one
    have = [document.sha256 for document in memory.documents]
    want = [document.sha256 for document in kept] + [document.sha256 for document in documents]
    read = len(have) - len(kept)
    if read > 0 and not memory.documents[-1].complete:
        read -= 1
    left = list(documents[max(0, read) :])
    start = [] if before is None else before.tokens[: before.position].tolist()
    if memory.fingerprint != reader.fingerprint:
        other = f"was read with another model ({memory.model})"
    elif memory.unread != text_only:
        other = "holds only the text of its documents" if memory.unread else "was read, not only its text kept"
    elif memory.reading != reading:
        differ = [f"{name} {value}" for name, value in memory.reading if value != getattr(reading, name)]
        other = f"was read with other parameters ({', '.join(differ)})"
    elif read < 0 or have != want[: len(have)] or memory.tokens[: len(start)].tolist() != start:
        other = f"is the memory of something else ({', '.join(document.name for document in memory.documents)})"
    elif form["precision"] != (precision if not left else "float32") or (form["text"] != text and (text or not left)):
        other = f"is stored with {form['precision']} fast weights and {'its' if form['text'] else 'no'} text"
    else:
        return memory, left
    raise UsageError(f"{target} exists, and {other}: {advice}")


def _facts(status: str, target: Path, memory: Memory, new_tokens: int, seconds: float) -> dict[str, Any]:
    from ttt_docs.memory import summary

    facts = summary(memory)
    read = status != "already read"
    return {
        "status": status,
        "output": target,
        "model": memory.model,
        "documents": [{"name": d.name, "sha256": d.sha256, "complete": d.complete} for d in memory.documents],
        **{name: facts[name] for name in ("tokens", "pending", "skipped")},
        "loss": facts["mean_nll"],
        "bytes": target.stat().st_size,
        "new_tokens": new_tokens if read else 0,
        "seconds": seconds if read else None,
        "tokens_per_second": new_tokens / seconds if read else None,
    }


def _sentence(facts: dict[str, Any]) -> str:
    names = ", ".join(document["name"] for document in facts["documents"])
    file = f"{facts['output']} ({size(facts['bytes'])})"
    if facts["status"] == "already read":
        return f"Already read: {file} holds {facts['tokens']:,} tokens of {names}. Use --force to read anew."
    if not facts["tokens"]:
        return f"Kept the text of {names} in {file}; nothing was read."
    loss = "" if facts["loss"] is None else f", {facts['loss']:.3f} nats per token"
    pace = f"{duration(facts['seconds'])}, {facts['tokens_per_second']:,.0f} tokens/s{loss}"
    return f"Read {facts['new_tokens']:,} tokens in {pace}. {file} holds {facts['tokens']:,} tokens of {names}."
