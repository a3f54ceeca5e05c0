"""`ttt-docs store`: what a store of memories holds, and room in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ttt_docs import UsageError
from ttt_docs.io import readable_bytes as size
from ttt_docs_cli.opening import SIZES, amount_of, kept_memories
from ttt_docs_cli.options import examples
from ttt_docs_cli.output import Result, details, note, say, table, warn, with_json

if TYPE_CHECKING:
    from ttt_docs import MemoryStore, StoredMemory

AGES = {"h": 3600, "d": 86400, "w": 7 * 86400}


def _open(place: str | None) -> MemoryStore:
    from ttt_docs import MemoryStore

    return kept_memories() if place is None else MemoryStore(place)


store_argument = click.argument(
    "kept", metavar="[STORE]", required=False, callback=lambda context, parameter, place: _open(place)
)
#: KEY, or STORE KEY: click cannot leave out the first of two.
key_argument = click.argument("words", metavar="[STORE] KEY", nargs=-1)
dry_run_option = click.option("--dry-run", is_flag=True, help="Only say what would be removed.")


@click.group(
    epilog=examples(
        "ttt-docs store list",
        "ttt-docs store prune --max-size 5GB --older-than 30d",
        "ttt-docs store verify s3://bucket/memories",
    )
)
def store() -> None:
    """A store of memories: list, look at, check, clean up.

    A STORE is a folder or an fsspec URL such as s3://bucket/memories. Without one it is the store in the user's cache
    folder, where `summarize`, `ask` and `continue` keep the memories of documents. That one is limited to 10 GB
    (TTT_DOCS_MEMORIES_SIZE): the oldest memories go first.
    """


@store.command("list", epilog=examples("ttt-docs store list", "ttt-docs store list memories --name a.pdf"))
@store_argument
@click.option("--name", metavar="TEXT", help="Only memories of a document of this name.")
@click.option("--document", metavar="SHA256", help="Only memories of the document with this hash, or its beginning.")
@click.option("--metadata", multiple=True, metavar="NAME=VALUE", help="Only with this metadata; may be given again.")
@with_json
def list_(kept: MemoryStore, name: str | None, document: str | None, metadata: tuple[str, ...]) -> Result:
    """List the memories in a store: key, date, tokens, size, model and documents."""
    entries = kept.find(name=name, document=document, metadata=dict(map(_pair, metadata)))
    parts = kept.parts()

    def words() -> None:
        for entry in entries:
            names = ", ".join(one.name for one in entry.documents)
            when = entry.created.astimezone().strftime("%Y-%m-%d")
            form = f"{entry.model}{', compact' if entry.compact else ''}"
            say(f"{entry.key[:12]}  {when}  {entry.tokens:>9,} tokens  {size(entry.nbytes):>9}  {form}  {names}")
        note(f"{len(entries)} memories, {size(sum(entry.nbytes for entry in entries))}, in {kept.location}")
        if parts:
            kept_bytes = size(sum(parts.values()))
            note(f"{len(parts)} unfinished readings keep {kept_bytes}; `ttt-docs store gc` removes old ones.")

    return Result({"store": kept.location, "entries": entries, "unfinished": parts}, words)


@store.command("show", epilog=examples("ttt-docs store show 5a0c9e71d3b2", "ttt-docs store show memories 5a0c9e"))
@key_argument
@with_json
def show(words: tuple[str, ...]) -> Result:
    """Show one memory of a store; a KEY's beginning is enough."""
    _, entry = _entry(words)
    return Result(entry, lambda: table(details(entry)))


@store.command("verify", epilog=examples("ttt-docs store verify memories"))
@store_argument
@with_json
def verify(kept: MemoryStore) -> Result:
    """Read every memory of a store whole; exit code 1 if one is damaged."""
    looked = dict(kept.verify())
    damaged = [{"key": key, "reason": reason} for key, reason in looked.items() if reason is not None]
    for one in damaged:
        warn(f"{one['key']}: {one['reason']}")
    facts = {"store": kept.location, "intact": len(looked) - len(damaged), "damaged": damaged}
    return Result(facts, f"{facts['intact']} memories are intact, {len(damaged)} damaged", int(bool(damaged)))


@store.command("gc", epilog=examples("ttt-docs store gc memories --dry-run", "ttt-docs store gc memories --hours 1"))
@store_argument
@click.option(
    "--hours",
    type=click.FloatRange(min=0),
    metavar="NUMBER",
    default=24,
    help="Leave what is younger: a process may still be at work on it.",
)
@dry_run_option
@with_json
def gc(kept: MemoryStore, hours: float, dry_run: bool) -> Result:
    """Remove what killed processes left: temporary files and parts of readings that never ended."""
    return _removed(kept, kept.gc(hours * 3600, dry_run=dry_run), dry_run)


@store.command("prune", epilog=examples("ttt-docs store prune --max-size 5GB --older-than 30d"))
@store_argument
@click.option("--max-size", metavar="SIZE", help="Remove the oldest until the rest takes no more, such as 5GB.")
@click.option("--older-than", metavar="AGE", help="Remove what was written longer ago, such as 30d, 12h or 4w.")
@dry_run_option
@with_json
def prune(kept: MemoryStore, max_size: str | None, older_than: str | None, dry_run: bool) -> Result:
    """Remove the oldest memories of a store, finished or not."""
    if max_size is None and older_than is None:
        raise UsageError("say with --max-size or --older-than what is to go")
    limit = (
        None if max_size is None else int(amount_of(max_size, SIZES, "size: write 5GB, 500MB, or a number of bytes"))
    )
    age = None if older_than is None else amount_of(older_than, AGES, "age: write 12h, 30d or 4w")
    return _removed(kept, kept.prune(max_bytes=limit, older_than=age, dry_run=dry_run), dry_run)


@store.command("rm", epilog=examples("ttt-docs store rm 5a0c9e71d3b2", "ttt-docs store rm memories --all"))
@key_argument
@click.option("--all", "every", is_flag=True, help="Remove everything; then no KEY is given.")
@with_json
def rm(words: tuple[str, ...], every: bool) -> Result:
    """Remove one memory of a store, or all; a KEY's beginning is enough."""
    if not every:
        kept, entry = _entry(words)
        kept.delete(entry.key)
        return _removed(kept, [entry.key])
    if len(words) > 1:
        raise UsageError("--all removes everything: leave the KEY out")
    kept = _open(words[0] if words else None)
    return _removed(kept, kept.prune(max_bytes=0))


def _removed(kept: MemoryStore, names: list[str], dry_run: bool = False) -> Result:
    facts = {"store": kept.location, "removed": names, "dry_run": dry_run}
    return Result(facts, "\n".join([*names, f"{len(names)} {'would be' if dry_run else 'were'} removed"]))


def _entry(words: tuple[str, ...]) -> tuple[MemoryStore, StoredMemory]:
    """The store and the entry that STORE and the beginning of KEY name."""
    if not 1 <= len(words) <= 2:
        raise UsageError("give a KEY, or a STORE and a KEY: `ttt-docs store list` shows the keys")
    kept = _open(words[0] if len(words) == 2 else None)
    found = [entry for entry in kept.list() if entry.key.startswith(words[-1])]
    if len(found) != 1:
        raise UsageError(
            f"{len(found)} memories in {kept.location} have a key that begins with {words[-1]!r}: `list` shows the keys"
        )
    return kept, found[0]


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--metadata {text!r}: write NAME=VALUE, such as author=Joyce")
    return name, value
