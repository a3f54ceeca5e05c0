"""A skill: a low-rank change of the static weights, in effect while answering and writing only.

Reading, memories and fingerprints never see it. One safetensors file holds, for each changed matrix NAME [out, in],
NAME/down [rank, in] and NAME/up [out, rank] in 8 bits with a scale per row of rank. The change is up @ down.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ttt_docs.errors import CheckpointError
from ttt_docs.io import replacing
from ttt_docs.model.decoder import Decoder
from ttt_docs.weights.converted import open_safetensors

#: What stands before every prompt, in training and in use. The model's own words there are longer.
SYSTEM = "Read and answer."
FORMAT = 1
_KEY = "ttt-docs-skill"


@dataclass(frozen=True)
class Skill:
    """`factors` has, by parameter name, down [rank, in] and up [out, rank], float32."""

    base: str  # name of the model it was made for
    fingerprint: str  # of that model's weights
    factors: dict[str, tuple[Tensor, Tensor]]
    provenance: dict[str, Any] = field(default_factory=dict)

    def applied_to(self, model: Decoder) -> Decoder:
        """A decoder with the changed weights; what is not changed is shared with `model`."""
        other = copy.deepcopy(model, {id(shared): shared for shared in (*model.parameters(), *model.buffers())})
        for name, (down, up) in self.factors.items():
            owner, _, leaf = name.rpartition(".")
            old = model.get_parameter(name)
            new = old.float() + (up @ down).to(old.device)
            setattr(other.get_submodule(owner), leaf, nn.Parameter(new.to(old.dtype), requires_grad=False))
        return other


def matrices(model: Decoder) -> Iterator[tuple[str, Tensor]]:
    """The static weights that a skill changes: every projection of attention and MLP."""
    for name, weight in model.named_parameters():
        if weight.dim() == 2 and name.startswith("blocks.") and "prime" not in name and "norm" not in name:
            yield name, weight


def save_skill(skill: Skill, path: Path) -> None:
    """Writes it to `path`, whole or not at all. Raises as `ttt_docs.io.replacing`."""
    from safetensors.torch import save

    tensors = {}
    for name, (down, up) in skill.factors.items():
        # Both factors of a term get the same size, so that neither loses much to rounding.
        sizes = (up.norm(dim=0) / down.norm(dim=1).clamp_min(1e-12)).clamp_min(1e-12).sqrt()
        for part, rows in (("down", down * sizes[:, None]), ("up", (up / sizes).t())):
            scale = rows.abs().amax(dim=1).clamp_min(1e-12) / 127
            tensors[f"{name}/{part}"] = (rows / scale[:, None]).round().to(torch.int8).contiguous()
            tensors[f"{name}/{part}.scale"] = scale
    header = {"format": FORMAT, "base": skill.base, "fingerprint": skill.fingerprint, "provenance": skill.provenance}
    with replacing(path) as file:
        file.write(save(tensors, {_KEY: json.dumps(header)}))


def load_skill(path: Path) -> Skill:
    """Raises CheckpointError for a file that is no skill."""
    with open_safetensors(path) as file:
        header = json.loads((file.metadata() or {}).get(_KEY, "{}"))
        if header.get("format") != FORMAT:
            raise CheckpointError(f"{path} is not a skill that this version reads")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    return Skill(header["base"], header["fingerprint"], _factors(tensors), header["provenance"])


def _factors(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    def part(name: str) -> Tensor:
        return tensors[name].float() * tensors[f"{name}.scale"][:, None]

    names = sorted(name.removesuffix("/down") for name in tensors if name.endswith("/down"))
    return {name: (part(f"{name}/down"), part(f"{name}/up").t().contiguous()) for name in names}
