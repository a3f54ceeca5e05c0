"""`ttt-docs route`: which way questions would go, without a document or a model."""

from __future__ import annotations

import sys
from dataclasses import asdict

import click

from ttt_docs_cli.options import json_option
from ttt_docs_cli.output import say, say_json


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
