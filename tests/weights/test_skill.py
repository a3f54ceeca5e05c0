"""A skill changes the static weights of a copy, and comes back from its file nearly as it was."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_model import tiny_decoder

from ttt_docs.errors import CheckpointError
from ttt_docs.model.decoder import Decoder
from ttt_docs.weights.skill import Skill, load_skill, matrices, norms, save_skill


def skill_for(model: Decoder, rank: int = 3) -> Skill:
    chance = torch.Generator().manual_seed(1)
    factors = {
        name: (torch.randn(rank, w.shape[1], generator=chance), torch.randn(w.shape[0], rank, generator=chance))
        for name, w in matrices(model)
    }
    return Skill("tiny", "f" * 64, factors, provenance={"steps": 7})


def test_every_projection_and_nothing_else_is_changed():
    model = tiny_decoder()
    names = [name for name, _ in matrices(model)]
    parts = ("attention.wqkv", "attention.wo", "mlp.w13", "mlp.w2")
    assert names == [f"blocks.{i}.{part}.weight" for i in range(model.config.blocks) for part in parts]


def test_applied_to_a_copy_that_shares_the_rest():
    model = tiny_decoder()
    before = {name: w.clone() for name, w in model.named_parameters()}
    skill = skill_for(model)
    changed = skill.applied_to(model)
    for name, weight in changed.named_parameters():
        down, up = skill.factors.get(name, (None, None))
        if down is None:
            assert weight is model.get_parameter(name)
        else:
            torch.testing.assert_close(weight, before[name] + up @ down)
    assert all(torch.equal(w, before[name]) for name, w in model.named_parameters())


def test_it_brings_its_norms(tmp_path):
    model, other = tiny_decoder(), tiny_decoder()
    with torch.no_grad():
        other.block(1).mlp_norm.weight.mul_(3)
    save_skill(replace(skill_for(model), norms=norms(model)), tmp_path / "skill.safetensors")
    changed = load_skill(tmp_path / "skill.safetensors").applied_to(other)
    assert torch.equal(changed.block(1).mlp_norm.weight, model.block(1).mlp_norm.weight)


def test_a_file_holds_it_in_8_bits(tmp_path):
    model = tiny_decoder()
    skill, path = skill_for(model), tmp_path / "skill.safetensors"
    save_skill(skill, path)
    loaded = load_skill(path)
    assert (loaded.base, loaded.fingerprint, loaded.provenance) == (skill.base, skill.fingerprint, skill.provenance)
    for name, (down, up) in skill.factors.items():
        found, wanted = loaded.factors[name][1] @ loaded.factors[name][0], up @ down
        assert (found - wanted).norm() < 0.02 * wanted.norm()
    floats = sum(4 * (down.numel() + up.numel()) for down, up in skill.factors.values())
    assert path.stat().st_size < 0.5 * floats + 12_000  # a tiny model's names and scales weigh more than its numbers


def test_other_files_are_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="not a skill"):
        load_skill(tmp_path / "other.safetensors")
