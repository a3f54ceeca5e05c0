"""`ttt-docs store`: what a store of memories holds, and room in it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from ttt_docs import UsageError
from ttt_docs.io import readable_bytes as size
from ttt_docs_cli.opening import bytes_of, kept_memories
from ttt_docs_cli.options import json_option
from ttt_docs_cli.output import note, say, say_json, table

if TYPE_CHECKING:
    from ttt_docs import MemoryStore, StoredMemory

store_argument = click.argument("place", metavar="[STORE]", required=False)
#: KEY, or STORE KEY: click cannot leave out the first of two.
key_argument = click.argument("words", metavar="[STORE] KEY", nargs=-1)
dry_run_option = click.option("--dry-run", is_flag=True, help="Only say what would be removed.")


def _open(place: str | None) -> MemoryStore:
    from ttt_docs import MemoryStore

    return kept_memories() if place is None else MemoryStore(place)


@click.group(
    epilog="""\b
Example:
  ttt-docs store list
  ttt-docs store prune --max-size 5GB --older-than 30d
  ttt-docs store verify s3://bucket/memories"""
)
def store() -> None:
    """A store of memories: list, look at, check, clean up.

    A STORE is a folder or an fsspec URL such as s3://bucket/memories. Without one it is the store in the user's cache
    folder, where `summarize`, `ask` and `continue` keep the memories of documents. That one is limited to 10 GB
    (TTT_DOCS_MEMORIES_SIZE): the oldest memories go first.
    """


@store.command("list", epilog="\b\nExample:\n  ttt-docs store list\n  ttt-docs store list memories --name a.pdf")
@store_argument
@click.option("--name", metavar="TEXT", help="Only memories of a document of this name.")
@click.option("--document", metavar="SHA256", help="Only memories of the document with this hash, or its beginning.")
@click.option("--metadata", multiple=True, metavar="NAME=VALUE", help="Only with this metadata; may be given again.")
@json_option
def list_(place: str | None, name: str | None, document: str | None, metadata: tuple[str, ...], as_json: bool) -> None:
    """List the memories in a store: key, date, tokens, size, model and documents."""
    pairs = dict(_pair(one) for one in metadata)
    kept = _open(place)
    entries, parts = kept.find(name=name, document=document, metadata=pairs), kept.parts()
    if as_json:
        say_json({"store": kept.location, "entries": [_as_json(entry) for entry in entries], "unfinished": parts})
        return
    for entry in entries:
        names = ", ".join(one.name for one in entry.documents)
        when = entry.created.astimezone().strftime("%Y-%m-%d")
        form = f"{entry.model}{', compact' if entry.compact else ''}"
        say(f"{entry.key[:12]}  {when}  {entry.tokens:>9,} tokens  {size(entry.nbytes):>9}  {form}  {names}")
    note(f"{len(entries)} memories, {size(sum(entry.nbytes for entry in entries))}, in {kept.location}")
    if parts:
        note(
            f"{len(parts)} unfinished readings keep {size(sum(parts.values()))}; `ttt-docs store gc` removes old ones."
        )


@store.command("show", epilog="\b\nExample:\n  ttt-docs store show 5a0c9e71d3b2\n  ttt-docs store show memories 5a0c9e")
@key_argument
@json_option
def show(words: tuple[str, ...], as_json: bool) -> None:
    """Show one memory of a store; a KEY's beginning is enough."""
    _, entry = _entry(words)
    if as_json:
        say_json(_as_json(entry))
        return
    table(
        [
            ("Key", entry.key),
            *(("Document", f"{one.name}  (sha256 {(one.sha256 or '-')[:12]})") for one in entry.documents),
            *((f"  {name}", value) for one in entry.documents for name, value in one.metadata.items()),
            ("Model", f"{entry.model}  (fingerprint {entry.fingerprint[:12]})"),
            ("Form", "compact" if entry.compact else "exact"),
            ("Tokens", f"{entry.tokens:,}"),
            ("Size", size(entry.nbytes)),
            ("Written", entry.created.isoformat()),
            *((f"Note {name}", value) for name, value in entry.extra.items()),
        ]
    )


@store.command("verify", epilog="\b\nExample:\n  ttt-docs store verify memories")
@store_argument
@json_option
def verify(place: str | None, as_json: bool) -> None:
    """Read every memory of a store whole; exit code 1 if one is damaged."""
    kept = _open(place)
    looked = dict(kept.verify())
    damaged = [{"key": key, "reason": reason} for key, reason in looked.items() if reason is not None]
    if as_json:
        say_json({"store": kept.location, "intact": len(looked) - len(damaged), "damaged": damaged})
    else:
        for one in damaged:
            note(f"{one['key']}: {one['reason']}")
        say(f"{len(looked) - len(damaged)} memories are intact, {len(damaged)} damaged")
    if damaged:
        click.get_current_context().exit(1)


@store.command(
    "gc", epilog="\b\nExample:\n  ttt-docs store gc memories --dry-run\n  ttt-docs store gc memories --hours 1"
)
@store_argument
@click.option(
    "--hours",
    type=click.FloatRange(min=0),
    metavar="NUMBER",
    default=24,
    show_default=True,
    help="Leave what is younger: a process may still be at work on it.",
)
@dry_run_option
@json_option
def gc(place: str | None, hours: float, dry_run: bool, as_json: bool) -> None:
    """Remove what killed processes left: temporary files and parts of readings that never ended."""
    kept = _open(place)
    _removed(kept, kept.gc(hours * 3600, dry_run=dry_run), dry_run, as_json)


@store.command("prune", epilog="\b\nExample:\n  ttt-docs store prune --max-size 5GB --older-than 30d")
@store_argument
@click.option("--max-size", metavar="SIZE", help="Remove the oldest until the rest takes no more, such as 5GB.")
@click.option("--older-than", metavar="AGE", help="Remove what was written longer ago, such as 30d, 12h or 4w.")
@dry_run_option
@json_option
def prune(place: str | None, max_size: str | None, older_than: str | None, dry_run: bool, as_json: bool) -> None:
    """Remove the oldest memories of a store, finished or not."""
    if max_size is None and older_than is None:
        raise UsageError("say with --max-size or --older-than what is to go")
    kept = _open(place)
    limit = None if max_size is None else bytes_of(max_size)
    age = None if older_than is None else _seconds(older_than)
    removed = kept.prune(max_bytes=limit, older_than=age, dry_run=dry_run)
    _removed(kept, removed, dry_run, as_json)


@store.command("rm", epilog="\b\nExample:\n  ttt-docs store rm 5a0c9e71d3b2\n  ttt-docs store rm memories --all")
@key_argument
@click.option("--all", "every", is_flag=True, help="Remove everything; then no KEY is given.")
@json_option
def rm(words: tuple[str, ...], every: bool, as_json: bool) -> None:
    """Remove one memory of a store, or all; a KEY's beginning is enough."""
    if every:
        if len(words) > 1:
            raise UsageError("--all removes everything: leave the KEY out")
        kept = _open(words[0] if words else None)
        _removed(kept, kept.prune(max_bytes=0), False, as_json)
    else:
        kept, entry = _entry(words)
        kept.delete(entry.key)
        _removed(kept, [entry.key], False, as_json)


def _removed(kept: MemoryStore, names: list[str], dry_run: bool, as_json: bool) -> None:
    if as_json:
        say_json({"store": kept.location, "removed": names, "dry_run": dry_run})
        return
    for name in names:
        say(name)
    say(f"{len(names)} {'would be' if dry_run else 'were'} removed")


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


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d*)?)([hdw])", text.strip())
    if match is None:
        raise UsageError(f"{text!r} is no age: write 12h, 30d or 4w")
    return float(match[1]) * {"h": 3600, "d": 86400, "w": 7 * 86400}[match[2]]


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--metadata {text!r}: write NAME=VALUE, such as author=Joyce")
    return name, value


def _as_json(entry: StoredMemory) -> dict[str, Any]:
    from dataclasses import asdict

    page = {name: value for name, value in vars(entry).items() if name not in ("documents", "reading", "created")}
    return page | {
        "documents": [asdict(one) for one in entry.documents],
        "reading": entry.reading.model_dump(mode="json"),
        "created": entry.created.isoformat(),
    }
