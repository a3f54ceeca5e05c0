"""A skill: a low-rank change of the static weights, in effect while answering and writing only.

Reading, memories and fingerprints never see it. One safetensors file holds, for each changed matrix NAME [out, in],
NAME/down [rank, in] and NAME/up [out, rank] in 8 bits with a scale per row of rank. The change is up @ down. The file
also holds the norms' weights that the skill was learned with: an adapter may have other ones.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ttt_docs.errors import CheckpointError
from ttt_docs.io import replacing
from ttt_docs.model.decoder import Decoder
from ttt_docs.weights.converted import open_safetensors
from ttt_docs.weights.registry import entry_of

#: What stands before every prompt, in training and in use. The model's own words there are longer.
SYSTEM = "Read and answer."
FORMAT = 1
#: What a skill is for.
Task = Literal["answers", "summaries"]
_KEY = "ttt-docs-skill"


@dataclass(frozen=True)
class Skill:
    """`factors` has, by parameter name, down [rank, in] and up [out, rank], float32."""

    base: str  # name of the model it was made for
    fingerprint: str  # of that model's weights
    factors: dict[str, tuple[Tensor, Tensor]]
    norms: dict[str, Tensor] = field(default_factory=dict)  # by parameter name [dim]
    provenance: dict[str, Any] = field(default_factory=dict)

    def fits(self, model: Decoder) -> bool:
        """Whether the model has the matrices that it changes: a name may stand for another architecture."""
        shapes = {name: weight.shape for name, weight in matrices(model)}
        return all(shapes.get(name) == (len(up), down.shape[1]) for name, (down, up) in self.factors.items())

    def applied_to(self, model: Decoder) -> Decoder:
        """A decoder with the changed weights; what is not changed is shared with `model`."""
        other = copy.deepcopy(model, {id(shared): shared for shared in (*model.parameters(), *model.buffers())})
        changed = {
            name: model.get_parameter(name).float() + (up @ down).to(model.embed.weight.device)
            for name, (down, up) in self.factors.items()
        }
        for name, new in (changed | self.norms).items():
            owner, _, leaf = name.rpartition(".")
            old = model.get_parameter(name)
            setattr(other.get_submodule(owner), leaf, nn.Parameter(new.to(old), requires_grad=False))
        return other


def matrices(model: Decoder, first: int = 0) -> Iterator[tuple[str, Tensor]]:
    """The static weights that a skill changes: every projection of attention and MLP, from block `first` on."""
    for name, weight in model.named_parameters():
        static = weight.dim() == 2 and name.startswith("blocks.") and "prime" not in name and "norm" not in name
        if static and int(name.split(".")[1]) >= first:
            yield name, weight


def norms(model: Decoder) -> dict[str, Tensor]:
    """The weights of all norms but those around fast weights, float32 [dim]."""
    named = model.named_parameters()
    return {name: w.detach().float() for name, w in named if "norm" in name and "prime" not in name}


def save_skill(skill: Skill, path: Path) -> None:
    """Writes it to `path`, whole or not at all. Raises as `ttt_docs.io.replacing`."""
    from safetensors.torch import save

    tensors = {f"{name}/norm": norm for name, norm in skill.norms.items()}
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
    kept = {name.removesuffix("/norm"): tensor for name, tensor in tensors.items() if name.endswith("/norm")}
    return Skill(header["base"], header["fingerprint"], _factors(tensors), kept, header["provenance"])


def shipped_skill(name: str, task: Task) -> Skill | None:
    """The skill for `task` that the package has for a model of that registry name."""
    entry = entry_of(name)
    file = entry.skills.get(task) if entry is not None else None
    return load_skill(Path(str(files("ttt_docs.weights") / "skills" / file))) if file is not None else None


_TAUGHT: WeakKeyDictionary[Decoder, dict[Task, Decoder | None]] = WeakKeyDictionary()


def taught(model: Decoder, name: str, task: Task) -> Decoder | None:
    """The model of that name with the package's skill for `task`, made once; None where there is none that fits it."""
    made = _TAUGHT.setdefault(model, {})
    if task not in made:
        skill = shipped_skill(name, task)
        made[task] = skill.applied_to(model) if skill is not None and skill.fits(model) else None
    return made[task]


def _factors(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    def part(name: str) -> Tensor:
        return tensors[name].float() * tensors[f"{name}.scale"][:, None]

    names = sorted(name.removesuffix("/down") for name in tensors if name.endswith("/down"))
    return {name: (part(f"{name}/down"), part(f"{name}/up").t().contiguous()) for name in names}
