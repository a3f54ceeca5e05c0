"""The command `ttt-docs`: its groups of commands, and what a user sees when something goes wrong.

Nothing here or at the top of a command's file imports torch, so that `--help` answers at once.
"""

from __future__ import annotations

import errno
import logging
import os
import traceback

import click

from ttt_docs import TTTDocsError, __version__
from ttt_docs_cli.answer import ask, continue_, route, summarize
from ttt_docs_cli.corpus_commands import corpus
from ttt_docs_cli.environment import env
from ttt_docs_cli.eval_commands import evaluate
from ttt_docs_cli.ingest import ingest
from ttt_docs_cli.inspection import inspect
from ttt_docs_cli.models import models
from ttt_docs_cli.options import examples
from ttt_docs_cli.output import LogNotes, warn
from ttt_docs_cli.store import store
from ttt_docs_cli.train import train

INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended
LOG_NOTES = LogNotes()


class Commands(click.Group):
    """A group whose errors are sentences: `Error: ...` on standard error and an exit code, no traceback."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except TTTDocsError as error:
            _traceback_if_asked()
            warn(f"Error: {error}")
            ctx.exit(error.exit_code)
        except KeyboardInterrupt as error:
            warn(f"\nInterrupted{': ' if str(error) else '.'}{error}")
            ctx.exit(INTERRUPTED)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # the reader of our output left (`| head`): click ends quietly
            _traceback_if_asked()
            said = f"{type(error).__name__}: {error}"
            if isinstance(error, OSError) and error.filename:
                said = f"{error.filename}: {error.strerror}"
            warn(f"Error: {said}\nSet TTT_DOCS_DEBUG=1 to see where this came from.")
            ctx.exit(1)


def _traceback_if_asked() -> None:
    if os.environ.get("TTT_DOCS_DEBUG", "0") not in ("", "0"):
        traceback.print_exc()


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True},
    epilog=examples(
        "ttt-docs ingest book.pdf -o book.ttt",
        "ttt-docs summarize book.ttt",
        'ttt-docs ask book.ttt "What was the captain\'s name?"',
        more="Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.",
    ),
)
@click.version_option(__version__, "-V", "--version", prog_name="ttt-docs")
def cli() -> None:
    """Reads a long document into the fast weights of a language model, and answers from that memory."""
    logger = logging.getLogger("ttt_docs")
    logger.setLevel(logging.INFO)
    logger.addHandler(LOG_NOTES)


for command in (ingest, summarize, ask, route, continue_, inspect, models, train, evaluate, store, corpus, env):
    cli.add_command(command)


def main() -> None:
    cli(prog_name="ttt-docs")
