"""The published layout, and the reference outputs that are kept in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.reference import load_reference, state_from_published
from ttt_docs.errors import CheckpointError
from ttt_docs.weights.parameters import halves_from_interleaved, parameter_shapes

FOLDER = Path(__file__).parents[1] / "reference"
FILES = sorted(FOLDER.glob("*.npz"))


def rotate(x: torch.Tensor, first: torch.Tensor, second: torch.Tensor, theta: float = 100.0) -> torch.Tensor:
    """RoPE of `[positions, dim]` where dimensions `first[i]` and `second[i]` make pair i."""
    positions, dim = x.shape
    angle = torch.arange(positions)[:, None] * theta ** (-torch.arange(dim // 2) * 2.0 / dim)
    out = torch.empty_like(x)
    out[:, first] = x[:, first] * angle.cos() - x[:, second] * angle.sin()
    out[:, second] = x[:, first] * angle.sin() + x[:, second] * angle.cos()
    return out


def test_permuted_weights_give_the_same_attention_scores():
    torch.manual_seed(0)
    dim, heads, head_dim, positions = 12, 3, 8, 5
    x = torch.randn(positions, dim, dtype=torch.float64)
    wq, wk = torch.randn(2, heads * head_dim, dim, dtype=torch.float64)
    norm = torch.randn(head_dim, dtype=torch.float64)  # a QK norm weight multiplies each dimension before RoPE
    even, odd = torch.arange(0, head_dim, 2), torch.arange(1, head_dim, 2)
    low, high = torch.arange(head_dim // 2), torch.arange(head_dim // 2, head_dim)
    ours_q, ours_k, ours_norm = (halves_from_interleaved(w, h) for w, h in ((wq, heads), (wk, heads), (norm, 1)))
    for head in range(heads):
        rows = slice(head * head_dim, (head + 1) * head_dim)
        theirs = rotate(x @ wq[rows].T * norm, even, odd) @ rotate(x @ wk[rows].T * norm, even, odd).T
        ours = rotate(x @ ours_q[rows].T * ours_norm, low, high) @ rotate(x @ ours_k[rows].T * ours_norm, low, high).T
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_reference_file_comes_over(path):
    reference = load_reference(path)
    config, reading, settings = reference.config, reference.reading, reference.settings
    assert {name: tuple(value.shape) for name, value in reference.state.items()} == parameter_shapes(config)
    assert reference.grads.keys() == reference.state.keys()
    assert all(value.is_contiguous() for value in reference.state.values())
    assert len(reference.tokens) == len(reference.token_nll) + 1
    assert reference.token_nll.mean().item() == pytest.approx(reference.loss, rel=1e-5)
    assert config.suffix_blocks == (settings["suffix_len"] if settings["prime"] else 0)
    assert reading.learn == settings["prime"]
    assert (config.window is None) == (settings["seq_modeling_block"] == "self_attention")
    with np.load(path) as file:
        blocks = file["param/language_model.model.h.blocks.feed_forward.w1.weight"]
        wv = file["grad/language_model.model.h.blocks.seq_modeling_block.wv.weight"]
        arrays = {name.removeprefix("param/"): file[name] for name in file.files if name.startswith("param/")}
    last = config.blocks - 1
    w13 = reference.state[f"blocks.{last}.mlp.w13.weight"]
    np.testing.assert_array_equal(w13[: config.mlp_dim].numpy(), blocks[last].T)
    values = reference.grads["blocks.0.attention.wqkv.weight"][-config.dim :]
    np.testing.assert_array_equal(values.numpy(), wv[0].T)
    del arrays["language_model.model.ln_f.weight"]
    with pytest.raises(CheckpointError, match=r"missing: language_model.model.ln_f\.weight"):
        state_from_published(config, arrays)


def test_reading_parameters_of_the_meta_file():
    reading = load_reference(FOLDER / "tiny_meta_2suffix.npz").reading
    assert (reading.chunk, reading.window, reading.inner_rule) == (16, 48, "sgd")
    assert (reading.inner_lr, reading.inner_clip, reading.sinks, reading.guard) == (0.5, 1.0, 0, None)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="not a reference file"):
        load_reference(tmp_path / "no.npz")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(CheckpointError, match="not a reference file"):
        load_reference(tmp_path / "other.npz")
