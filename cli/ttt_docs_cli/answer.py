"""`ttt-docs summarize`, `ask` and `continue`: what is said of a document; `route`: which way a question would go."""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ttt_docs_cli.opening import remembered, texts_of
from ttt_docs_cli.options import (
    ROUTES,
    Command,
    examples,
    gathered,
    number,
    opening_options,
    output_file,
    password_option,
    quiet_option,
)
from ttt_docs_cli.output import Result, json_option, note, plain, progress, say, say_json, warn, with_json

SOURCE = """SOURCE is a memory file (.ttt), or a document. A document is read first. Its memory is kept in the user's
cache folder, so that the next call answers at once."""
#: The probability from which on an answer is called sure.
SURE = 0.8
Opened = Callable[..., tuple[Any, Any]]


def from_source(command: Command, several: bool = False) -> Command:
    """Adds SOURCE and its options. The command gets `opened`, which returns the reader and the memory; with `several`,
    a list of memories."""
    metavar, nargs = ("SOURCE...", -1) if several else ("SOURCE", 1)

    @click.argument("sources", nargs=nargs, required=True, metavar=metavar)
    @opening_options
    @password_option
    @click.option(
        "--no-cache", is_flag=True, help="Read a document anew, and keep no memory of it in the cache folder."
    )
    @quiet_option
    @functools.wraps(command)
    def run(sources: Any, opening: dict[str, Any], password: str | None, no_cache: bool, **values: Any) -> Any:
        how = dict(password=password, no_cache=no_cache, **opening)

        def opened(learn: bool = True) -> tuple[Any, Any]:
            if not several:
                return remembered(sources, learn=learn, **how)
            if len(sources) > 1 or os.path.isdir(sources[0]):
                return texts_of(sources, **how)
            reader, memory = remembered(sources[0], learn=learn, **how)
            return reader, [memory]

        return command(opened=opened, **values)

    return run


def _about(memory: Any) -> dict[str, Any]:
    return {"model": memory.model, "documents": [document.name for document in memory.documents]}


@click.command(
    help=f"""Summarize what was read, or what it says about something.

{SOURCE}

Sections are printed as they are ready. A model that was not taught to write summaries, and a text that is no
English prose, get a summary of the document's own sentences.""",
    epilog=examples(
        "ttt-docs summarize book.ttt",
        "ttt-docs summarize book.pdf --length chapters --cite",
        'ttt-docs summarize contract.pdf --focus "What if I end it early?"',
        "ttt-docs summarize book.epub --length page -o summary.html",
    ),
)
@click.option(
    "--length",
    type=click.Choice(["sentence", "paragraph", "page", "chapters"]),
    default="paragraph",
    help="Of the summary; chapters: a paragraph for each.",
)
@click.option("--focus", metavar="QUESTION", help="What the summary is to be about.")
@click.option("--cite", is_flag=True, help="After each sentence the pages or chapters that it stands on.")
@output_file("-o", "--output", metavar="FILE", help="Write it to a file (.md, .html) with the quotes it stands on.")
@number(
    "--seed",
    "Other draws. Texts are drawn only where the likeliest one does not stand in the document.",
    least=0,
    default=0,
)
@from_source
@json_option
def summarize(
    opened: Opened, length: Any, focus: str | None, cite: bool, output: Path | None, seed: int, as_json: bool
) -> None:
    from tqdm import tqdm

    from ttt_docs.io import replacing
    from ttt_docs.report.summary_page import cited, summary_file

    write = summary_file(output) if output else None  # another suffix is refused before anything is read
    if focus is not None and not focus.strip():
        raise click.BadParameter("it is empty: say what the summary is to be about", param_hint="--focus")
    reader, memory = opened()
    stream = reader.summarize(memory, length, focus, seed=seed, stream=True, progress=progress())
    if stream.note:
        note(stream.note)
    for index, section in enumerate(stream):
        if as_json or output:
            continue
        title = f"{section.title}\n" if length == "chapters" and section.title else ""
        with tqdm.external_write_mode():
            say(f"{chr(10) if index else ''}{title}{cited(section, places=cite)}")
    summary = stream.summary
    if output and write:
        names = ", ".join(document.name for document in memory.documents)
        with replacing(output) as file:
            file.write(write(summary, names).encode("utf-8", "replace"))
        note(f"The summary is in {output}")
    if as_json:
        say_json({**vars(summary), "sentences": summary.sentences, **_about(memory)})


@click.command(
    help="""Answer a question about a document, and show where the answer stands.

SOURCE is a memory file (.ttt), a document, a folder of documents, or a store's folder; several are looked up in
together. A document is not read into a memory for this, unless the answer is to be a recollection (--route memory).""",
    epilog=examples(
        'ttt-docs ask book.ttt "What was the captain\'s name?"',
        'ttt-docs ask contracts/ "Which contract ends first?"',
        'ttt-docs ask report.pdf "What was the total in 2019?" --route lookup',
        'ttt-docs ask book.ttt "Where does it begin?" --json',
    ),
)
@click.option(
    "--route",
    type=ROUTES,
    default="auto",
    help="lookup: from the passages found; whole: from all parts of the document; memory: a recollection, from the "
    "fast weights alone; auto: as the question asks.",
)
@number("--top-k", "Passages to look at and to show.  [5]")
@number("--max-context", "Tokens of text to read in them.  [2048]", metavar="TOKENS")
@functools.partial(from_source, several=True)
@click.argument("question", metavar="QUESTION")
@with_json
def ask(opened: Opened, question: str, route: Any, top_k: int | None, max_context: int | None) -> Result:
    if not question.strip():  # before anything is opened
        raise click.UsageError("the question is empty")
    reader, memories = opened(learn=route == "memory")
    answer = reader.ask(memories, question, route=route, top_k=top_k, max_context=max_context)
    documents = [document.name for memory in memories for document in memory.documents]

    def words() -> None:
        sure = f"  ({sureness(answer.confidence)})" if answer.answered and answer.confidence is not None else ""
        say(f"{answer.text}{sure}")
        if not answer.answered and answer.evidence:
            say("\nThe nearest passages:")
        for found in answer.evidence:
            place = f"page {found.page}" if found.page is not None else found.chapter
            several = len(documents) > 1 and found.document is not None
            where = ", ".join(str(part) for part in (found.document if several else None, place) if part is not None)
            say(f"\n  {where}{': ' if where else ''}“{' '.join(plain(found.quote).split())}”")

    about = {"model": memories[0].model, "documents": documents}
    return Result({"question": question, **vars(answer), **about}, words)


def sureness(probability: float) -> str:
    """A probability in a word."""
    return "sure" if probability >= SURE else "likely" if probability >= 0.5 else "unsure"


@click.command(
    "continue",
    help=f"Go on writing where the document ends, word by word.\n\n{SOURCE}",
    epilog=examples(
        "ttt-docs continue book.ttt --tokens 80",
        'ttt-docs continue book.ttt --temperature 0.8 --seed 1 --stop "Chapter"',
    ),
)
@number("--tokens", "How many tokens to write at most.", default=200)
@gathered(
    "sampling",
    click.option("--temperature", type=click.FloatRange(0), metavar="NUMBER", help="0: the likeliest token.  [0.8]"),
    click.option("--top-p", type=click.FloatRange(0, 1, True), metavar="NUMBER", help="Nucleus sampling.  [0.95]"),
    number("--top-k", "Sample among the N likeliest tokens; 0: all.", least=0),
    click.option("--repetition-penalty", type=click.FloatRange(min=1), metavar="NUMBER", help="1: none.  [1.1]"),
    click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; may be given several times."),
    number("--seed", "The same seed gives the same text.", least=0),
)
@click.option("--no-learn", is_flag=True, help="Do not learn from what is written, chunk by chunk.")
@from_source
@json_option
def continue_(opened: Opened, tokens: int, sampling: dict[str, Any], no_learn: bool, as_json: bool) -> None:
    if "" in sampling.get("stop", ()):
        raise click.BadParameter("a text to stop at cannot be empty", param_hint="--stop")
    reader, memory = opened()
    began = time.perf_counter()
    pieces = reader.continue_text(memory, tokens, stream=True, learn=not no_learn, **sampling)
    if as_json:
        text = "".join(pieces)
        say_json({"text": text, "seconds": time.perf_counter() - began, **_about(memory)})
        return
    try:
        for piece in pieces:
            say(piece, newline=False)
        say()
    except KeyboardInterrupt:
        warn("")  # the message that follows starts a line of its own
        raise


@click.command(
    epilog=examples('ttt-docs route "What was the captain\'s name?"', "ttt-docs route --json < questions.txt")
)
@click.argument("question", metavar="[QUESTION]", required=False)
@json_option
def route(question: str | None, as_json: bool) -> None:
    """Say whether a question is about a document as a whole, or about something at one place of it (lookup).

    Without QUESTION (or with `-`), questions are read from standard input, one a line; with --json every one gets a
    JSON object on a line of its own. No document is read and no model runs.
    """
    from ttt_docs.lookup.router.routing import decide

    for asked in _asked() if question in (None, "-") else [question or ""]:
        decision = decide(asked)
        if as_json:
            say_json(decision)
        else:
            say(f"{decision.route}  {decision.probability:.2f}  {asked}  ({decision.reason})")


def _asked() -> list[str]:
    """The questions of standard input; all are checked before the first is answered."""
    try:
        lines = sys.stdin.buffer.read().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise click.UsageError(f"standard input is not UTF-8 text: {error}") from error
    for line_number, line in enumerate(lines, 1):
        if not line.strip():
            raise click.UsageError(f"standard input, line {line_number}: the question is empty")
    if not lines:
        raise click.UsageError("standard input holds no question: give one, or one a line")
    return [line.strip() for line in lines]
