"""`ttt-docs eval`: what reading is worth, measured."""

from __future__ import annotations

import click

from ttt_docs_cli.eval_context import context
from ttt_docs_cli.eval_needle import needle


@click.group(
    "eval",
    epilog="""\b
Example:
  ttt-docs eval context book.txt --system window,retrofit --length 8192,32768
  ttt-docs eval needle --task single_1,multikey_2 --length 32768 --samples 20""",
)
def evaluate() -> None:
    """Measure a model on documents: loss by context length, needles found."""


for command in (context, needle):
    evaluate.add_command(command)
