"""`ttt-docs store`: what a store of memories holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ttt_docs import UsageError
from ttt_docs.io import readable_bytes as size
from ttt_docs_cli.options import json_option
from ttt_docs_cli.output import note, say, say_json, table

if TYPE_CHECKING:
    from ttt_docs import StoredMemory

store_argument = click.argument("place", metavar="STORE")


@click.group(
    epilog="""\b
Example:
  ttt-docs store list memories
  ttt-docs store verify s3://bucket/memories"""
)
def store() -> None:
    """A store of memories: list, look at, check, clean up.

    A STORE is a folder or an fsspec URL such as s3://bucket/memories.
    """


@store.command(
    "list", epilog="\b\nExample:\n  ttt-docs store list memories\n  ttt-docs store list memories --name a.pdf"
)
@store_argument
@click.option("--name", metavar="TEXT", help="Only memories of a document of this name.")
@click.option("--document", metavar="SHA256", help="Only memories of the document with this hash, or its beginning.")
@click.option("--metadata", multiple=True, metavar="NAME=VALUE", help="Only with this metadata; may be given again.")
@json_option
def list_(place: str, name: str | None, document: str | None, metadata: tuple[str, ...], as_json: bool) -> None:
    """List the memories in a store."""
    from ttt_docs import MemoryStore

    pairs = dict(_pair(one) for one in metadata)
    kept = MemoryStore(place)
    entries = kept.find(name=name, document=document, metadata=pairs)
    if as_json:
        say_json({"store": place, "entries": [_as_json(entry) for entry in entries], "unfinished": kept.parts()})
        return
    for entry in entries:
        names = ", ".join(one.name for one in entry.documents)
        say(f"{entry.key[:12]}  {entry.tokens:>9,} tokens  {size(entry.nbytes):>9}  {entry.model}  {names}")
    parts = kept.parts()
    if parts:
        note(
            f"{len(parts)} unfinished readings keep {size(sum(parts.values()))}; `ttt-docs store gc` removes old ones."
        )


@store.command("show", epilog="\b\nExample:\n  ttt-docs store show memories 5a0c9e71d3b2")
@store_argument
@click.argument("key", metavar="KEY")
@json_option
def show(place: str, key: str, as_json: bool) -> None:
    """Show one memory of a store; a KEY's beginning is enough."""
    from ttt_docs import MemoryStore

    found = [entry for entry in MemoryStore(place).list() if entry.key.startswith(key)]
    if len(found) != 1:
        raise UsageError(f"{len(found)} memories in {place} have a key that begins with {key!r}: `list` shows the keys")
    (entry,) = found
    if as_json:
        say_json(_as_json(entry))
        return
    table(
        [
            ("Key", entry.key),
            *(("Document", f"{one.name}  (sha256 {(one.sha256 or '-')[:12]})") for one in entry.documents),
            *((f"  {name}", value) for one in entry.documents for name, value in one.metadata.items()),
            ("Model", f"{entry.model}  (fingerprint {entry.fingerprint[:12]})"),
            ("Tokens", f"{entry.tokens:,}"),
            ("Size", size(entry.nbytes)),
            ("Written", entry.created.isoformat()),
            *((f"Note {name}", value) for name, value in entry.extra.items()),
        ]
    )


@store.command("verify", epilog="\b\nExample:\n  ttt-docs store verify memories")
@store_argument
@json_option
def verify(place: str, as_json: bool) -> None:
    """Read every memory of a store whole; exit code 1 if one is damaged."""
    from ttt_docs import MemoryStore

    looked = dict(MemoryStore(place).verify())
    damaged = [{"key": key, "reason": reason} for key, reason in looked.items() if reason is not None]
    if as_json:
        say_json({"store": place, "intact": len(looked) - len(damaged), "damaged": damaged})
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
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@json_option
def gc(place: str, hours: float, dry_run: bool, as_json: bool) -> None:
    """Remove what killed processes left: temporary files and parts of readings that never ended."""
    from ttt_docs import MemoryStore

    removed = MemoryStore(place).gc(hours * 3600, dry_run=dry_run)
    if as_json:
        say_json({"store": place, "removed": removed, "dry_run": dry_run})
        return
    for name in removed:
        say(name)
    say(f"{len(removed)} {'would be' if dry_run else 'were'} removed")


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
