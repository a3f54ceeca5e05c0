"""`ttt-docs summarize`, `ask` and `continue`: what a memory can say; `route`: which way a question would go."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from typing import Any

import click

from ttt_docs_cli.opening import remembered
from ttt_docs_cli.options import (
    ROUTES,
    Command,
    examples,
    gathered,
    number,
    opening_options,
    password_option,
    quiet_option,
)
from ttt_docs_cli.output import Result, json_option, plain, say, say_json, warn, with_json

SOURCE = """SOURCE is a memory file (.ttt), or a document. A document is read first. Its memory is kept in the user's
cache folder, so that the next call answers at once."""
Opened = Callable[..., tuple[Any, Any]]


def from_source(command: Command) -> Command:
    """Adds SOURCE and its options. The command gets `opened`, which returns the reader and the memory."""

    @click.argument("source", metavar="SOURCE")
    @opening_options
    @password_option
    @click.option(
        "--no-cache", is_flag=True, help="Read a document anew, and keep no memory of it in the cache folder."
    )
    @quiet_option
    @functools.wraps(command)
    def run(source: str, opening: dict[str, Any], password: str | None, no_cache: bool, **values: Any) -> Any:
        opened = functools.partial(remembered, source, password=password, no_cache=no_cache, **opening)
        return command(opened=opened, **values)

    return run


def _about(memory: Any) -> dict[str, Any]:
    return {"model": memory.model, "documents": [document.name for document in memory.documents]}


@click.command(
    help=f"Summarize what was read.\n\n{SOURCE}",
    epilog=examples("ttt-docs summarize book.ttt", "ttt-docs summarize book.pdf --length sentence"),
)
@click.option(
    "--length", type=click.Choice(["sentence", "paragraph", "page"]), default="paragraph", help="Of the summary."
)
@number("--seed", "Another seed, another summary.", least=0, default=0)
@from_source
@with_json
def summarize(opened: Opened, length: Any, seed: int) -> Result:
    reader, memory = opened()
    summary = reader.summarize(memory, length, seed=seed)
    return Result(
        {"text": summary.text, "tokens": summary.tokens, "route": summary.route, **_about(memory)}, summary.text
    )


@click.command(
    help=f"""Answer a question about what was read, and show where the answer stands.

{SOURCE} Looking up needs no reading: with the route lookup only the text of a document is taken.""",
    epilog=examples(
        'ttt-docs ask book.ttt "What was the captain\'s name?"',
        'ttt-docs ask report.pdf "What was the total in 2019?" --route lookup',
        'ttt-docs ask book.ttt "Where does it begin?" --json',
    ),
)
@click.option(
    "--route",
    type=ROUTES,
    default="auto",
    help="memory: from the fast weights; lookup: from the passages found; auto: as the question asks.",
)
@number("--top-k", "Passages to look at and to show.  [5]")
@number("--max-context", "Tokens of text to read in them.  [2048]", metavar="TOKENS")
@from_source
@click.argument("question", metavar="QUESTION")
@with_json
def ask(opened: Opened, question: str, route: Any, top_k: int | None, max_context: int | None) -> Result:
    from ttt_docs.lookup.router.routing import decide

    decided = decide(question).route  # an empty question is refused before anything is read
    reader, memory = opened(learn=(decided if route == "auto" else route) != "lookup")
    answer = reader.ask(memory, question, route=route, top_k=top_k, max_context=max_context)

    def words() -> None:
        say(answer.text)
        for found in answer.evidence:
            place = f"page {found.page}" if found.page is not None else found.chapter
            several = len(memory.documents) > 1 and found.document is not None
            where = ", ".join(str(part) for part in (found.document if several else None, place) if part is not None)
            say(f"\n  {where}{': ' if where else ''}“{' '.join(plain(found.quote).split())}”")

    return Result({"question": question, **vars(answer), **_about(memory)}, words)


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
    """Say whether a question is answered from the memory, or looked up in the document.

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
