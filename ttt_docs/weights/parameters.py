"""Our parameter names, the names that other formats have for them, and what a source of weights is.

All matrices are `[out, in]` (as `torch.nn.functional.linear` wants them); RoPE rotates halves (i, i + head_dim / 2).
Fused matrices stack their parts on the rows: `wqkv` is q, k, v (all heads of each), `w13` is gate then up.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ttt_docs.errors import CheckpointError
from ttt_docs.model.config import ModelConfig
from ttt_docs.model.decoder import Decoder

State = dict[str, torch.Tensor]
Shapes = dict[str, tuple[int, ...]]

#: What is known about other formats and published models. "tensors" has their names for our modules: rows of several
#: are stacked in this order, and {} is the block. "fields" has their names for the fields of our configuration.
#: "defaults" says, by model_type, what a config.json leaves out when it means the default (as transformers does).
#: "models" is the registry.
TABLES: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("tables.json").read_text("utf-8"))

#: (parameter, first row, rows): a part of a model's weights.
Piece = tuple[str, int, torch.Tensor]


@dataclass(frozen=True)
class WeightSource:
    """A model that can be written as a checkpoint. `pieces` reads it part by part and covers every parameter."""

    config: ModelConfig
    dtypes: dict[str, torch.dtype]
    pieces: Callable[[], Iterator[Piece]]
    kind: str
    files: tuple[Path, ...] = ()
    write_tokenizer: Callable[[Path], None] | None = None
    licence: str | None = None


class Part(NamedTuple):
    """Rows of one of our parameters that another format keeps as a tensor, or as one entry of a tensor."""

    name: str  # of our parameter
    row: int  # the first one there
    shape: tuple[int, ...]  # of the rows
    theirs: str  # the other format's name
    block: int | None  # which block's it is; None: no block's
    heads: int  # how many heads RoPE rotates in these rows; 0: none


def parts_of(config: ModelConfig, kind: str) -> list[Part]:
    """All parameters of a model, as the format `kind` ("huggingface", "gguf" or "published") keeps them."""
    parts = []
    for name, shape in parameter_shapes(config).items():
        block, rest = None, name
        if name.startswith("blocks."):
            _, number, rest = name.split(".", 2)
            block = int(number)
        module = rest.removesuffix(".weight").removesuffix(".bias")
        modules = TABLES["tensors"][kind][module]
        heads = [int(module in ("attention.q_norm", "attention.k_norm"))]
        rows = [shape[0] // len(modules)] * len(modules)
        if module == "attention.wqkv":
            heads = [config.heads, config.kv_heads, 0]
            rows = [count * config.head_dim for count in (config.heads, config.kv_heads, config.kv_heads)]
        for index, theirs in enumerate(modules):
            key = theirs.format(block) + (rest[len(module) :] or ".weight")
            first = sum(rows[:index])
            parts.append(Part(name, first, (rows[index], *shape[1:]), key, block, heads[index % len(heads)]))
    return parts


def parts_source(
    config: ModelConfig,
    kind: str,
    shapes: Shapes,
    dtypes: Mapping[str, torch.dtype],
    read: Callable[[Part], torch.Tensor],
    where: Path,
    **about: Any,
) -> WeightSource:
    """A source of the kind "huggingface" or "gguf".

    `shapes` and `dtypes` are of the tensors it holds; `read` gives one part; `about` goes into the WeightSource.

    Raises:
        CheckpointError: missing, unexpected and wrongly shaped tensors (it names the first few of each).
    """
    parts = parts_of(config, kind)
    compare_shapes({part.theirs: part.shape for part in parts}, shapes, str(where))
    found: dict[str, list[torch.dtype]] = {}
    for part in parts:
        found.setdefault(part.name, []).append(dtypes[part.theirs])
    stored = {name: stored_dtype(several) for name, several in found.items()}

    def pieces() -> Iterator[Piece]:
        for part in parts:
            yield part.name, part.row, read(part).to(stored[part.name])

    return WeightSource(config, stored, pieces, kind, **about)


def state_source(config: ModelConfig, state: State, kind: str, **about: Any) -> WeightSource:
    """A model in memory as a source; `about` goes into the WeightSource."""
    dtypes = {name: tensor.dtype for name, tensor in state.items()}
    return WeightSource(config, dtypes, lambda: ((name, 0, state[name].detach()) for name in state), kind, **about)


def fields_of(kind: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of ModelConfig that a source of that kind only calls by another name. Raises KeyError."""
    return {ours: values[theirs] for ours, theirs in TABLES["fields"][kind].items()}


def parameter_shapes(config: ModelConfig) -> Shapes:
    """Every parameter of a model with `config`: name -> shape."""
    with torch.device("meta"):
        return {name: tuple(parameter.shape) for name, parameter in Decoder(config).named_parameters()}


def stored_dtype(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """bfloat16 stays as it is (exact, half the size); everything else, quantized blocks included, becomes float32."""
    return torch.bfloat16 if all(dtype == torch.bfloat16 for dtype in dtypes) else torch.float32


def check_state(config: ModelConfig, state: State, where: str = "the state dict") -> None:
    """Raises CheckpointError as `compare_shapes`, for a state dict with our own names."""
    compare_shapes(parameter_shapes(config), {name: tuple(tensor.shape) for name, tensor in state.items()}, where)


def compare_shapes(wanted: Shapes, found: Shapes, where: str) -> None:
    """Raises CheckpointError that names what `found` lacks, has too much, or has in another shape than `wanted`."""
    wrong = [name for name in wanted if name in found and found[name] != wanted[name]]
    problems = {
        "missing": [name for name in wanted if name not in found],
        "unexpected": [name for name in found if name not in wanted],
        "wrong shape": [f"{name} {list(found[name])}, expected {list(wanted[name])}" for name in wrong],
    }
    listed = [
        f"{label}: {', '.join(names[:6])}" + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        for label, names in problems.items()
        if names
    ]
    if listed:
        raise CheckpointError(f"the weights in {where} do not fit their config: " + "; ".join(listed))


def refuse(name: str, unsupported: Mapping[str, object]) -> None:
    """Raises CheckpointError that names every feature of `unsupported` (feature -> whether the model has it)."""
    if found := [feature for feature, present in unsupported.items() if present]:
        raise CheckpointError(f"{name}: not supported: {'; '.join(found)}")


def halves_from_interleaved(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorder each head's rows from interleaved RoPE pairs (2i, 2i+1) to halves (i, i + d/2): even rows, then odd.

    `rows` is `[heads * head_dim, ...]`: a q or k projection, its bias, or (heads=1) a QK norm weight.
    """
    split = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return split.transpose(1, 2).reshape(rows.shape).contiguous()
