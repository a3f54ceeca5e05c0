"""Our parameter names, the names that other formats have for them, and what a source of weights is.

All matrices are `[out, in]` (as `torch.nn.functional.linear` wants them); RoPE rotates halves (i, i + head_dim / 2).
Fused matrices stack their parts on the rows: `wqkv` is q, k, v (all heads of each), `w13` is gate then up.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ttt_docs.errors import CheckpointError
from ttt_docs.model.config import ModelConfig
from ttt_docs.model.decoder import Decoder

State = dict[str, torch.Tensor]
Shapes = dict[str, tuple[int, ...]]

#: What is known about other formats and published models. "huggingface" and "gguf" map our modules to those of a
#: source, to be concatenated on the rows in this order; "" is what its blocks are called. "defaults" says, by
#: model_type, what a config.json leaves out when it means the default (as transformers does). "models" is the registry.
TABLES: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("tables.json").read_text("utf-8"))


@dataclass(frozen=True)
class WeightSource:
    """One model somewhere on disk: what a conversion needs; `tensor(name)` reads one parameter and nothing else."""

    config: ModelConfig
    dtypes: dict[str, torch.dtype]
    tensor: Callable[[str], torch.Tensor]
    kind: str
    files: tuple[Path, ...] = ()
    write_tokenizer: Callable[[Path], None] | None = None
    licence: str | None = None
    #: For sources that are best read in an order of their own: (parameter, first row, rows), covering every parameter.
    pieces: Callable[[], Iterator[tuple[str, int, torch.Tensor]]] | None = None

    def state(self) -> State:
        """The whole model in memory (for tests and small models)."""
        return {name: self.tensor(name) for name in self.dtypes}


def parts_source(
    config: ModelConfig,
    kind: str,
    shapes: Shapes,
    dtypes: Mapping[str, torch.dtype],
    read: Callable[[str], torch.Tensor],
    where: Path,
    **about: Any,
) -> WeightSource:
    """A source of a `kind` ("huggingface" or "gguf") whose tensors have other names and are parts of ours.

    `shapes` and `dtypes` are of what it holds; `read` gives one tensor of it; `about` goes into the WeightSource.

    Raises:
        CheckpointError: missing, unexpected and wrongly shaped tensors (it names the first few of each).
    """
    table = TABLES[kind]
    parts: dict[str, list[str]] = {}
    wanted: Shapes = {}
    for name, shape in parameter_shapes(config).items():
        block, rest = "", name
        if name.startswith("blocks."):
            _, index, rest = name.split(".", 2)
            block = f"{table[''][0]}.{index}."
        module, _, leaf = rest.rpartition(".")
        parts[name] = [f"{block}{part}.{leaf}" for part in table[module]]
        rows = [shape[0]]
        if module == "attention.wqkv":
            rows = [count * config.head_dim for count in (config.heads, config.kv_heads, config.kv_heads)]
        elif module == "mlp.w13":
            rows = [config.mlp_dim, config.mlp_dim]
        wanted |= {part: (count, *shape[1:]) for part, count in zip(parts[name], rows, strict=True)}
    compare_shapes(wanted, shapes, str(where))
    stored = {name: stored_dtype(dtypes[part] for part in names) for name, names in parts.items()}

    def tensor(name: str) -> torch.Tensor:
        loaded = [read(part).to(stored[name]) for part in parts[name]]
        return torch.cat(loaded) if len(loaded) > 1 else loaded[0]

    return WeightSource(config, stored, tensor, kind, **about)


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
