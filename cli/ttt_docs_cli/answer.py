"""`ttt-docs summarize`, `ask` and `continue`: what a memory can say; `route`: which way a question would go."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from typing import Any

import click

from ttt_docs_cli.opening import remembered
from ttt_docs_cli.options import (
    cache_option,
    json_option,
    model_options,
    options,
    password_option,
    quiet_option,
    route_option,
)
from ttt_docs_cli.output import note, plain, say, say_json

SOURCE = """SOURCE is a memory file (.ttt), or a document: that is read first, and its memory is kept in the user's
cache folder, so that the next call answers at once."""

source_options = options(model_options, password_option, cache_option, json_option, quiet_option)


def _about(memory: Any) -> dict[str, Any]:
    return {"model": memory.model, "documents": [document.name for document in memory.documents]}


@click.command(
    help=f"Summarize what was read.\n\n{SOURCE}",
    epilog="""\b
Example:
  ttt-docs summarize book.ttt
  ttt-docs summarize book.pdf --length sentence""",
)
@click.argument("source", metavar="SOURCE")
@click.option(
    "--length",
    type=click.Choice(["sentence", "paragraph", "page"]),
    default="paragraph",
    show_default=True,
    help="How long the summary is to be.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    metavar="N",
    default=0,
    show_default=True,
    help="Another seed, another summary.",
)
@source_options
def summarize(source: str, length: Any, seed: int, as_json: bool, **opening: Any) -> None:
    reader, memory = remembered(source, **opening)
    summary = reader.summarize(memory, length, seed=seed)
    if as_json:
        say_json({"text": summary.text, "tokens": summary.tokens, "route": summary.route, **_about(memory)})
    else:
        say(summary.text)


@click.command(
    help=f"""Answer a question about what was read, and show where the answer stands.

{SOURCE} Looking up needs no reading: with the route lookup only the text of a document is taken.""",
    epilog="""\b
Example:
  ttt-docs ask book.ttt "What was the captain's name?"
  ttt-docs ask report.pdf "What was the total in 2019?" --route lookup
  ttt-docs ask book.ttt "Where does it begin?" --json""",
)
@click.argument("source", metavar="SOURCE")
@click.argument("question", metavar="QUESTION")
@route_option("memory: from the fast weights; lookup: from the passages found; auto: as the question asks.")
@click.option("--top-k", type=click.IntRange(min=1), metavar="N", help="Passages to look at and to show.  [5]")
@click.option("--max-context", type=click.IntRange(min=1), metavar="TOKENS", help="Text to read of them.  [2048]")
@source_options
def ask(
    source: str,
    question: str,
    route: Any,
    top_k: int | None,
    max_context: int | None,
    as_json: bool,
    **opening: Any,
) -> None:
    if not question.strip():
        raise click.BadParameter("the question is empty", param_hint="QUESTION")
    reader, memory = remembered(source, **opening, learn=not _is_lookup(question, route))
    answer = reader.ask(memory, question, route=route, top_k=top_k, max_context=max_context)
    if as_json:
        say_json(
            {
                "question": question,
                "text": answer.text,
                "route": answer.route,
                "reason": answer.reason,
                "verified": answer.verified,
                "evidence": [asdict(found) for found in answer.evidence],
                "seconds": answer.seconds,
                **_about(memory),
            }
        )
        return
    say(answer.text)
    for found in answer.evidence:
        place = f"page {found.page}" if found.page is not None else found.chapter
        several = len(memory.documents) > 1 and found.document is not None
        where = ", ".join(str(part) for part in (found.document if several else None, place) if part is not None)
        say(f"\n  {where}{': ' if where else ''}“{' '.join(plain(found.quote).split())}”")


def _is_lookup(question: str, route: str) -> bool:
    """Whether the question can be answered from the text of a document alone."""
    from ttt_docs.lookup.router.routing import decide

    return route == "lookup" or (route == "auto" and decide(question).route == "lookup")


@click.command(
    "continue",
    help=f"Go on writing where the document ends, word by word.\n\n{SOURCE}",
    epilog="""\b
Example:
  ttt-docs continue book.ttt --tokens 80
  ttt-docs continue book.ttt --temperature 0.8 --seed 1 --stop "Chapter" """.rstrip(),
)
@click.argument("source", metavar="SOURCE")
@click.option(
    "--tokens", type=click.IntRange(min=1), metavar="N", default=200, show_default=True, help="How many at most."
)
@click.option(
    "--temperature", type=click.FloatRange(min=0), metavar="NUMBER", help="0: always the likeliest token.  [0.8]"
)
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), metavar="NUMBER", help="Nucleus sampling.  [0.95]")
@click.option("--top-k", type=click.IntRange(min=0), metavar="N", help="Sample among the N likeliest tokens; 0: all.")
@click.option("--repetition-penalty", type=click.FloatRange(min=1), metavar="NUMBER", help="1: none.  [1.1]")
@click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; may be given several times.")
@click.option("--seed", type=click.IntRange(min=0), metavar="N", help="The same seed gives the same text.")
@click.option("--no-learn", is_flag=True, help="Do not learn from what is written, chunk by chunk.")
@source_options
def continue_(source: str, tokens: int, stop: tuple[str, ...], no_learn: bool, as_json: bool, **given: Any) -> None:
    opening = {name: given.pop(name) for name in ("model", "device", "dtype", "password", "no_cache", "quiet")}
    if "" in stop:
        raise click.BadParameter("a text to stop at cannot be empty", param_hint="--stop")
    sampling = {name: value for name, value in given.items() if value is not None}
    if stop:
        sampling["stop"] = list(stop)
    reader, memory = remembered(source, **opening)
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
        note("")  # the message that follows starts a line of its own
        raise


@click.command(
    epilog="""\b
Example:
  ttt-docs route "What was the captain's name?"
  ttt-docs route --json < questions.txt"""
)
@click.argument("question", metavar="[QUESTION]", required=False)
@json_option
def route(question: str | None, as_json: bool) -> None:
    """Say whether a question is answered from the memory, or looked up in the document.

    Without QUESTION (or with `-`), questions are read from standard input, one a line; with --json every one gets a
    JSON object on a line of its own. No document is read and no model runs.
    """
    from ttt_docs.lookup.router.routing import decide

    for asked in _questions(question):
        decision = decide(asked)
        if as_json:
            say_json(asdict(decision))
        else:
            say(f"{decision.route}  {decision.probability:.2f}  {asked}  ({decision.reason})")


def _questions(question: str | None) -> list[str]:
    """One question, or those of standard input; all are checked before the first is answered."""
    if question not in (None, "-"):
        assert question is not None
        if not question.strip():
            raise click.BadParameter("the question is empty", param_hint="QUESTION")
        return [question]
    try:
        lines = sys.stdin.buffer.read().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise click.UsageError(f"standard input is not UTF-8 text: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise click.UsageError(f"standard input, line {number}: the question is empty")
    if not lines:
        raise click.UsageError("standard input holds no question: give one, or one a line")
    return [line.strip() for line in lines]
