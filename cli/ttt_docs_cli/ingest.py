"""`ttt-docs ingest`: documents into a memory file."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ttt_docs import Document, MemoryFormatError, ReadingInterrupted, UsageError
from ttt_docs.io import readable_bytes as size
from ttt_docs_cli.opening import how_far, is_memory_file, open_memory, open_reader
from ttt_docs_cli.options import json_option, model_options, options, password_option, quiet_option, reading_options
from ttt_docs_cli.output import duration, note, say, say_json

if TYPE_CHECKING:
    from ttt_docs import Memory, TTTReader
    from ttt_docs.model.config import ReadingConfig

file_options = options(
    click.option(
        "--precision",
        type=click.Choice(["float32", "bfloat16"]),
        default="float32",
        show_default=True,
        help="How the file holds the fast weights: exactly, or rounded in half the bytes.",
    ),
    click.option("--text-only", is_flag=True, help="Read nothing: keep the text, for questions that are looked up."),
    click.option("--no-text", is_flag=True, help="Leave the documents' text out of the file."),
    click.option("--memory", "old", metavar="FILE", help="Read on after this memory, which stays as it is."),
    click.option("--force", is_flag=True, help="Start anew and replace the output file, whatever it holds."),
)


@click.command(
    epilog="""\b
Example:
  ttt-docs ingest book.pdf -o book.ttt
  ttt-docs ingest part1.txt part2.txt -o both.ttt
  ttt-docs ingest part3.txt --memory both.ttt -o three.ttt
  cat notes.txt | ttt-docs ingest - -o notes.ttt"""
)
@click.argument("documents", nargs=-1, required=True, metavar="DOCUMENT...")
@click.option("-o", "--output", metavar="FILE", help="The memory file.  [default: beside the document, suffix .ttt]")
@model_options
@reading_options
@password_option
@click.option("--max-bytes", type=click.IntRange(min=1), metavar="BYTES", help="Refuse larger documents.  [512 MiB]")
@file_options
@json_option
@quiet_option
def ingest(
    documents: tuple[str, ...],
    output: str | None,
    model: str | None,
    device: str,
    dtype: str | None,
    password: str | None,
    max_bytes: int | None,
    precision: str,
    text_only: bool,
    no_text: bool,
    old: str | None,
    force: bool,
    as_json: bool,
    quiet: bool,
    **given: Any,
) -> None:
    """Read documents, one after the other, into one memory file.

    A DOCUMENT is a PDF, EPUB, HTML, Markdown or text file, a URL, or - for standard input.

    Ctrl-C saves what was read; the same command goes on from there, and ends with the same memory as one that was
    never interrupted. A document that was already read in the same way is not read again.
    """
    from ttt_docs.documents import load_document
    from ttt_docs.documents.load import DEFAULT_MAX_BYTES

    if text_only and no_text:
        raise UsageError("--text-only with --no-text leaves nothing to keep: use one of them")
    target = _target(documents, output, old)
    limit = max_bytes or DEFAULT_MAX_BYTES
    texts = [load_document(document, password=password, max_bytes=limit) for document in documents]
    parameters = {name: value for name, value in given.items() if value is not None}
    before: Memory | None = None
    if old is None:
        reader = open_reader(model, device, dtype, **parameters)
        reading = reader.reading
    else:
        reader, before = open_memory(old, model, device, dtype)
        reading = before.reading
        _same_parameters(old, reading, parameters)
    memory, left, status = before, list(texts), "read"
    if os.path.exists(target) and not force:
        memory, left = _found(target, reader, reading, before, texts, precision, not no_text, text_only)
        status = "resumed" if left else "already read"
        if left:
            note(f"{target} holds the first {len(memory.tokens):,} tokens: reading goes on from there.", quiet)
    first = 0 if memory is None else len(memory.tokens)
    began = time.perf_counter()
    try:
        if left:
            memory = _read(reader, left, memory, target, quiet, not text_only)
            memory.save(target, precision=precision, text=not no_text)  # type: ignore[arg-type]  # click checked it
    except ReadingInterrupted as interruption:
        memory, status = interruption.memory, "interrupted"
        again = "the same command without --force" if force else "the same command"
        note(f"\nInterrupted {how_far(memory, texts)}, saved to {target}: {again} goes on from there.")
    assert memory is not None
    result = _result(status, target, memory, len(memory.tokens) - first, time.perf_counter() - began)
    if as_json:
        say_json(result)
    elif status != "interrupted" and not quiet:
        say(_sentence(result))
    if status == "interrupted":
        click.get_current_context().exit(130)


def _read(
    reader: TTTReader, documents: Sequence[Document], memory: Memory | None, target: Path, quiet: bool, learn: bool
) -> Memory:
    """Reads the documents one after the other, after `memory`; with `learn=False` only their text is taken.

    On Ctrl-C what was read is saved to `target`, and ReadingInterrupted is raised. It is saved whole (float32, with its
    text), whatever is asked for the final file: going on from it must give the same as reading in one go.
    """
    from ttt_docs.io import Interrupt

    before = memory
    try:
        for document in documents:
            memory = reader.ingest(document, memory=memory, learn=learn, progress=False if quiet else None)
    except KeyboardInterrupt as interruption:
        memory = interruption.memory if isinstance(interruption, ReadingInterrupted) else memory
        if memory is None or memory is before:
            raise
        with Interrupt():  # a second Ctrl-C by an impatient finger shall not cost what was read
            memory.save(target)
        raise ReadingInterrupted(memory) from None
    assert memory is not None
    return memory


def _target(documents: Sequence[str], output: str | None, old: str | None) -> Path:
    """The file to write: found unfit now rather than after an hour of reading."""
    from ttt_docs.documents.origin import is_url
    from ttt_docs.io import check_writable

    if documents.count("-") > 1:
        raise UsageError("standard input (-) can be read only once")
    for document in documents:
        if is_memory_file(document) and os.path.exists(document):
            raise UsageError(f"{document} is a memory, not a document: to read on after it use --memory {document}")
    if output is None:
        if len(documents) > 1 or documents[0] == "-" or is_url(documents[0]):
            raise UsageError("say with -o where the memory goes, for example -o book.ttt")
        target = Path(documents[0]).expanduser().with_suffix(".ttt")
    else:
        target = Path(output)
    for source in (*documents, *([old] if old else [])):
        if os.path.exists(target) and os.path.exists(source) and os.path.samefile(target, source):
            raise UsageError(f"{target} is what is to be read: it would be replaced. Give another name with -o")
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
    reading: ReadingConfig,
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
    kept = () if before is None else before.documents
    if kept and not kept[-1].complete and kept[-1].sha256 == documents[0].sha256:
        kept = kept[:-1]  # reading goes on in the middle of this one
    have = [document.sha256 for document in memory.documents]
    want = [document.sha256 for document in kept] + [document.sha256 for document in documents]
    read = len(have) - len(kept)
    if read > 0 and not memory.documents[-1].complete:
        read -= 1
    left = list(documents[max(0, read) :])
    start = 0 if before is None else before.position
    if memory.fingerprint != reader.fingerprint:
        other = f"was read with another model ({memory.model})"
    elif memory.unread != text_only:
        other = "holds only the text of its documents" if memory.unread else "was read, not only its text kept"
    elif memory.reading != reading:
        differ = [f"{n} {v}" for n, v in memory.reading if v != getattr(reading, n)]
        other = f"was read with other parameters ({', '.join(differ)})"
    elif (
        read < 0
        or have != want[: len(have)]
        or (before is not None and memory.tokens[:start].tolist() != before.tokens[:start].tolist())
    ):
        other = f"is the memory of something else ({', '.join(document.name for document in memory.documents)})"
    elif form["precision"] != (precision if not left else "float32") or (form["text"] != text and (text or not left)):
        other = f"is stored with {form['precision']} fast weights and {'its' if form['text'] else 'no'} text"
    else:
        return memory, left
    raise UsageError(f"{target} exists, and {other}: {advice}")


def _result(status: str, target: Path, memory: Memory, new_tokens: int, seconds: float) -> dict[str, Any]:
    from ttt_docs.memory import summary

    facts = summary(memory)
    read = status != "already read"
    return {
        "status": status,
        "output": str(target),
        "model": memory.model,
        "documents": [{"name": d.name, "sha256": d.sha256, "complete": d.complete} for d in memory.documents],
        "tokens": facts["tokens"],
        "pending": facts["pending"],
        "skipped": facts["skipped"],
        "loss": facts["mean_nll"],
        "bytes": target.stat().st_size,
        "new_tokens": new_tokens if read else 0,
        "seconds": seconds if read else None,
        "tokens_per_second": new_tokens / seconds if read else None,
    }


def _sentence(result: dict[str, Any]) -> str:
    names = ", ".join(document["name"] for document in result["documents"])
    file = f"{result['output']} ({size(result['bytes'])})"
    if result["status"] == "already read":
        return f"Already read: {file} holds {result['tokens']:,} tokens of {names}. Use --force to read anew."
    if not result["tokens"]:
        return f"Kept the text of {names} in {file}; nothing was read."
    loss = "" if result["loss"] is None else f", {result['loss']:.3f} nats per token"
    pace = f"{duration(result['seconds'])}, {result['tokens_per_second']:,.0f} tokens/s{loss}"
    return f"Read {result['new_tokens']:,} tokens in {pace}. {file} holds {result['tokens']:,} tokens of {names}."
