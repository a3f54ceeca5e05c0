"""A source of weights: one model somewhere on disk, read one parameter at a time under our names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ttt_docs.errors import CheckpointError
from ttt_docs.model.config import ModelConfig
from ttt_docs.weights.names import Parts, parameter_shapes, part_shapes

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class WeightSource:
    """What a conversion needs to know; `tensor(name)` reads one parameter and nothing else."""

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


def state_source(config: ModelConfig, state: State, kind: str = "state") -> WeightSource:
    """A state dict as a source.

    Raises:
        CheckpointError: names or shapes are not those of `config`.
    """
    check_state(config, state)
    return WeightSource(config, {name: state[name].dtype for name in parameter_shapes(config)}, state.__getitem__, kind)


def stored_dtype(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """bfloat16 stays as it is (exact, half the size); everything else, quantized blocks included, becomes float32."""
    return torch.bfloat16 if all(dtype == torch.bfloat16 for dtype in dtypes) else torch.float32


def check_parts(config: ModelConfig, parts: Parts, found: dict[str, tuple[int, ...]], where: str) -> None:
    """Compare the tensors a source has (`found`: name -> shape) with those that `parts` needs.

    Raises:
        CheckpointError: names every missing, unexpected and wrongly shaped tensor (the first few of each).
    """
    wanted: dict[str, tuple[int, ...]] = {}
    for name, shape in parameter_shapes(config).items():
        wanted.update(zip(parts[name], part_shapes(config, name, shape), strict=True))
    compare_shapes(wanted, found, where)


def check_state(config: ModelConfig, state: State, where: str = "the state dict") -> None:
    """As `check_parts`, for a state dict with our own names."""
    compare_shapes(parameter_shapes(config), {name: tuple(tensor.shape) for name, tensor in state.items()}, where)


def compare_shapes(wanted: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]], where: str) -> None:
    """Raises CheckpointError that names what `found` lacks, has too much, or has in another shape than `wanted`."""
    wrong = [name for name in wanted if name in found and found[name] != wanted[name]]
    problems = [
        _listed("missing", [name for name in wanted if name not in found]),
        _listed("unexpected", [name for name in found if name not in wanted]),
        _listed("wrong shape", [f"{name} {list(found[name])}, expected {list(wanted[name])}" for name in wrong]),
    ]
    if any(problems):
        raise CheckpointError(f"the weights in {where} do not fit their config: " + "; ".join(filter(None, problems)))


def _listed(label: str, names: list[str], limit: int = 6) -> str:
    if not names:
        return ""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{label}: {', '.join(names[:limit])}{more}"
