"""A recipe: everything that decides what a training run computes (docs/method.md section 4).

A recipe file is YAML. `base:` names another recipe, whose values it changes; the command line changes values once more
with `optimizer.lr=1e-3`. The published runs ship with the package as one table, `recipes/published.yaml`:
`recipe_names()` lists them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from functools import cache
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ttt_docs.errors import UsageError
from ttt_docs.model.config import CONFIGS, ModelConfig, ReadingConfig

_SHIPPED = files("ttt_docs.training") / "recipes"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelRecipe(_Section):
    """Which model: a `config` with random weights, or the weights of a `pretrained` one; with both, of that config."""

    config: str | None = Field(
        None, description="a published size (125m, 350m, 760m, 1.3b, 3b), or custom: all in changes"
    )
    pretrained: str | None = Field(
        None, description="what `TTTReader.from_pretrained` takes; its weights are the start"
    )
    adapter: str | None = Field(
        None, description="file that an earlier run left for `pretrained`: this run goes on from it, learned rates too"
    )
    changes: dict[str, Any] = Field(default_factory=dict, description="fields of ModelConfig that differ from it")
    suffix_blocks: int | Literal["quarter"] | None = Field(
        None, description="blocks with a prime MLP; how many a plain pretrained model gets (retrofit; none: 8)"
    )
    attention: bool = Field(True, description="False: attention adds nothing in any block, and is not trained")

    @model_validator(mode="after")
    def _start(self) -> ModelRecipe:
        if self.config is None and self.pretrained is None:
            raise UsageError("give model.config (random weights) or model.pretrained (weights to start from)")
        if self.config is not None and self.config not in CONFIGS and self.config != "custom":
            raise UsageError(f"model.config {self.config!r} is none of {', '.join(CONFIGS)}, custom")
        if self.adapter is not None and (self.pretrained is None or self.changes):
            raise UsageError("model.adapter is for model.pretrained as it is: give that one, and no changes")
        return self


class DataRecipe(_Section):
    """Which documents, and what turns them into tokens."""

    train: tuple[str, ...] = Field(
        (),
        description="files (.jsonl, .jsonl.zst, .txt, .md, .parquet), folders, patterns, ids of Hugging Face datasets",
    )
    valid: tuple[str, ...] = Field((), description="the same; nothing is trained on them")
    tokenizer: str = Field("model", description="model: that of model.pretrained; bytes; a folder; a Hugging Face id")
    field: str = Field("text", description="the column or key that holds a document's text")
    subset: str | None = Field(None, description="configuration of a Hugging Face dataset")
    split: str = Field("train", description="split of a Hugging Face dataset")
    folder: str | None = Field(None, description="where tokenized shards are kept; none: the cache folder")

    @field_validator("train", "valid", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class OptimizerRecipe(_Section):
    """AdamW, its schedule, and the inner learning rate's warm-up."""

    lr: float = Field(gt=0)
    final_lr: float = Field(1e-5, ge=0)
    rates_lr: float | None = Field(
        None, gt=0, description="as `lr`, for learned inner rates: these are near 1, weights are not (none: lr)"
    )
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps over which lr rises from 0")
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.1, ge=0, description="of matrices; norms and inner learning rates do not decay")
    clip: float = Field(1.0, ge=0, description="limit of the global gradient norm; 0 switches it off")
    inner_warmup: float = Field(
        0.0, ge=0, lt=1, description="share of the steps over which the inner lr rises to its own"
    )
    inner_warmup_from: float = Field(0.1, ge=0, le=1, description="the factor that it rises from")


class CheckpointRecipe(_Section):
    """What is kept. Changes nothing in what is computed."""

    every: int = Field(100, gt=0, description="steps between checkpoints")
    keep: int = Field(2, gt=0, description="newest checkpoints kept, beside the best")
    evaluate_every: int = Field(0, ge=0, description="steps between validations; 0: only at the end")
    export: Literal["last", "best"] = Field("last", description="which weights the run ends with")
    evaluate_sequences: int = Field(8, gt=0, description="validation sequences, the first of each document first")


class ComputeRecipe(_Section):
    """How it is computed. Another machine may need other values; the loss curve stays the same to rounding."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto, cpu, cuda")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="numbers of the products")
    micro_batch: int = Field(1, gt=0, description="sequences computed together in one process")
    parallel: Literal["data", "sharded"] = Field("data", description="sharded: FSDP2, for what does not fit one device")
    recompute: Literal["none", "compiled", "chunks", "suffix", "logarithmic"] = Field(
        "chunks", description="what is kept for the backward pass: see `ttt_docs.ttt.outer_loop.Recompute`"
    )


class Recipe(_Section):
    """One training run."""

    name: str
    mode: Literal["meta", "first-order", "naive", "none"] = Field(
        "meta", description="see `ttt_docs.ttt.outer_loop.Mode`"
    )
    trains: Literal["all", "adapter", "suffix"] = Field(
        "all",
        description="adapter: prime MLPs, norms, learned inner lr; suffix: of these only what lies above the prefix, "
        "so that no gradient goes through it",
    )
    learned_inner_lr: bool | Literal["matrix"] = Field(
        False, description="one inner learning rate per suffix block is trained too; matrix: one for each of w1, w2, w3"
    )
    sequence: int = Field(gt=0, description="tokens of a training sequence")
    batch: int = Field(gt=0, description="sequences of a step, over all processes")
    steps: int | None = Field(None, gt=0, description="none: one epoch")
    seed: int = 0
    output: str | None = Field(None, description="folder of the run; none: runs/NAME")
    model: ModelRecipe
    reading: ReadingConfig
    data: DataRecipe = DataRecipe()
    optimizer: OptimizerRecipe
    checkpoint: CheckpointRecipe = CheckpointRecipe()
    compute: ComputeRecipe = ComputeRecipe()

    @model_validator(mode="after")
    def _sizes(self) -> Recipe:
        if self.sequence % self.reading.chunk:
            raise UsageError(
                f"sequence ({self.sequence}) must be a multiple of reading.chunk ({self.reading.chunk}), so that every "
                "chunk is whole"
            )
        if self.batch % self.compute.micro_batch:
            raise UsageError(
                f"batch ({self.batch}) must be a multiple of compute.micro_batch ({self.compute.micro_batch})"
            )
        if self.trains == "suffix" and self.mode == "none":
            raise UsageError("trains: suffix needs prime MLPs, which mode none has not: use trains: adapter")
        if self.learned_inner_lr and self.mode in ("naive", "none"):
            raise UsageError(f"learned_inner_lr needs a mode that updates (meta or first-order), not {self.mode}")
        if self.model.config is not None:
            config = self.architecture()
            if (self.mode != "none") != bool(config.suffix_blocks):
                raise UsageError(
                    f"mode {self.mode} with {config.suffix_blocks} suffix blocks: none has none, the others need some"
                )
        return self

    @property
    def folder(self) -> Path:
        return Path(self.output or f"runs/{self.name}")

    @property
    def tokens_per_step(self) -> int:
        return self.batch * self.sequence

    def architecture(self) -> ModelConfig:
        """The shapes that `model.config` and its changes amount to.

        Raises UsageError for sizes that cannot work together.
        """
        assert self.model.config is not None
        start = {} if self.model.config == "custom" else CONFIGS[self.model.config].model_dump()
        fields = start | {"name": self.name} | self.model.changes
        fields["max_positions"] = max(self.sequence, int(self.model.changes.get("max_positions", 0)))
        suffix = self.model.suffix_blocks
        if suffix == "quarter":
            blocks = fields.get("blocks", 0)
            if blocks % 4:
                raise UsageError(
                    f"{blocks} blocks have no last quarter: use a multiple of 4, or give model.suffix_blocks"
                )
            suffix = blocks // 4
        return changed_config(fields if suffix is None else fields | {"suffix_blocks": suffix})

    def identity(self) -> dict[str, Any]:
        """What decides the result: a checkpoint belongs to exactly one of these."""
        return self.model_dump(mode="json", exclude={"output", "checkpoint", "compute"}) | {
            "dtype": self.compute.dtype,
            "data": self.data.model_dump(mode="json", exclude={"folder"}),
        }


def changed_config(fields: dict[str, Any]) -> ModelConfig:
    """The model of `fields`, which hold a recipe's `model.changes`. Raises UsageError, which names them."""
    try:
        return ModelConfig(**fields)
    except ValidationError as error:
        raise UsageError(f"model.changes: {_sentences(error, ModelConfig)}") from None


def recipe_names() -> list[str]:
    """The recipes that ship with the package."""
    names = {path.name.removesuffix(".yaml") for path in _SHIPPED.iterdir() if path.name.endswith(".yaml")}
    return sorted(names - {"published"} | published_recipes().keys())


@cache
def published_recipes() -> dict[str, dict[str, Any]]:
    """The paper's runs by name, as values for `Recipe`: what the rows of `recipes/published.yaml` amount to."""
    table = _yaml((_SHIPPED / "published.yaml").read_text("utf-8"), "published.yaml")
    found: dict[str, dict[str, Any]] = {}
    for (size, row), full in product(table["sizes"].items(), ("", "full-")):
        name = f"{full}pretrain-{size}"
        first = _merge(table["pretrain"], row["pretrain"], {"name": name, "model": {"config": size}})
        if full:
            first = _merge(first, table["full"], row["full"])
        found[name] = first
        for length, at in table["lengths"].items():
            own = {"name": f"{full}extend-{size}-{length}", "model": {"pretrained": f"runs/{name}/model"}}
            longer = _merge(first, table["extend"], row["extend"], at["extend"], at["full"] if full else {}, own)
            longer["batch"] = longer["batch"] * table["lengths"]["32k"]["extend"]["sequence"] // longer["sequence"]
            found[longer["name"]] = longer
    return found


def load_recipe(source: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """A recipe by name or from a file, with `key=value` changes (values are YAML; keys may have dots).

    Raises:
        UsageError: no such recipe, not YAML, an unknown key, a value or size that cannot work.
    """
    values = _read(str(source), ())
    for change in overrides:
        key, equals, value = change.partition("=")
        if not equals or not key:
            raise UsageError(f"{change!r} is not key=value, such as optimizer.lr=1e-3")
        *sections, last = key.split(".")
        section = values
        for name in sections:
            section = section.setdefault(name, {})
            if not isinstance(section, dict):
                raise UsageError(f"{key}: {name} is a value, not a section")
        section[last] = _yaml(value, f"the value of {key}")
    try:
        return Recipe(**values)
    except ValidationError as error:
        raise UsageError(f"recipe {source}: {_sentences(error, Recipe)}") from None


def _read(source: str, seen: tuple[str, ...]) -> dict[str, Any]:
    """The values of a recipe over those of its base."""
    if source in seen:
        raise UsageError(f"recipe {source} is its own base: {' -> '.join([*seen, source])}")
    if source in published_recipes():
        return deepcopy(published_recipes()[source])
    shipped = _SHIPPED / f"{source}.yaml"
    path: Any = shipped if source in recipe_names() else Path(source)
    if not path.is_file():
        close = difflib.get_close_matches(source, recipe_names(), n=3)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise UsageError(
            f"no recipe {source!r}: {hint}Give a .yaml file, or one of those that `ttt-docs train --list` shows"
        )
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"recipe {source} cannot be read: {error}") from None
    values = _yaml(text, f"recipe {source}")
    if not isinstance(values, dict):
        raise UsageError(f"recipe {source} is not a list of `key: value` lines")
    base = values.pop("base", None)
    if base is None:
        return values
    beside = Path(source).parent / str(base)
    return _merge(_read(str(beside) if beside.is_file() else str(base), (*seen, source)), values)


def _yaml(text: str, what: str) -> Any:
    try:
        import yaml
    except ImportError:
        raise UsageError('recipes need PyYAML: pip install "ttt-docs[train]"') from None

    class Loader(yaml.SafeLoader):
        """YAML 1.1 takes 1e-3 (no dot) for text; here it is a number."""

    number = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise UsageError(f"{what} is not YAML: {' '.join(str(error).split())}") from None


def _merge(base: dict[str, Any], *changes: Mapping[str, Any]) -> dict[str, Any]:
    """The values of `base` with those of `changes` over them, section by section."""
    merged = dict(base)
    for key, value in (item for change in changes for item in change.items()):
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _sentences(error: ValidationError, model: type[BaseModel]) -> str:
    """What is wrong with the values for a `model`, in one line; keys that it does not have with those it has."""
    found = []
    for detail in error.errors():
        *section, last = map(str, detail["loc"] or ("",))
        message = f"{'.'.join([*section, last])}: {detail['msg'].removeprefix('Value error, ')}"
        if detail["type"] == "extra_forbidden":
            fields: Any = model
            for part in section:
                fields = fields.model_fields[part].annotation
            close = difflib.get_close_matches(last, fields.model_fields, n=1)
            hint = f", did you mean {close[0]}?" if close else f" (known: {', '.join(fields.model_fields)})"
            message = f"unknown key {'.'.join([*section, last])}{hint}"
        found.append(message.removeprefix(": "))
    return "; ".join(found)
