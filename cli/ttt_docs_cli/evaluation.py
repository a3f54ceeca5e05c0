"""`ttt-docs eval`: what reading is worth, measured."""

from __future__ import annotations

import click

from ttt_docs_cli.eval_context import context


@click.group(
    "eval",
    epilog="""\b
Example:
  ttt-docs eval context book.txt --system window,retrofit --length 8192,32768""",
)
def evaluate() -> None:
    """Measure a model on documents: loss by context length."""


evaluate.add_command(context)
