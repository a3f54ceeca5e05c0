"""The layout of the published checkpoints, and how each of its arrays becomes rows of ours.

Block parameters are stacked over blocks on axis 0, prime MLPs over suffix blocks; matrices are `[in, out]` and RoPE
rotates interleaved pairs (METHOD section 7). Ours are one tensor per block, `[out, in]`, with RoPE on halves; q, k, v
are rows of one tensor, and so are w1 and w3.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ttt_docs.errors import CheckpointError
from ttt_docs.model.config import ModelConfig
from ttt_docs.weights.names import halves_from_interleaved

_MODEL = "language_model.model."
_BLOCKS = _MODEL + "h.blocks."
_ATTENTION = _BLOCKS + "seq_modeling_block."
_PRIME = _MODEL + "h.prime_storage."
_NORMS = {
    "seq_norm": "attention_norm",
    "seq_post_norm": "attention_post_norm",
    "ffn_norm": "mlp_norm",
    "ffn_post_norm": "mlp_post_norm",
}
_PRIME_NORMS = {"ffn_prime_norm": "prime_norm", "ffn_prime_post_norm": "prime_post_norm"}


class Target(NamedTuple):
    """Where an array, or one entry of its axis 0, goes."""

    name: str  # of our tensor
    row: int = 0  # its first row there
    heads: int = 0  # more than 0: the rows are RoPE pairs of this many heads


class Published(NamedTuple):
    """One array: its shape, and one target for each entry of axis 0 if it is stacked."""

    shape: tuple[int, ...]
    targets: tuple[Target, ...]
    stacked: bool


def published_layout(config: ModelConfig) -> dict[str, Published]:
    """Every array of a published checkpoint of `config`, by its path.

    Raises:
        CheckpointError: an untied head, which no published model has.
    """
    if not config.tied_head:
        raise CheckpointError(f"{config.name}: an untied head is not known in the published layout")
    dim, mlp, prime, heads = config.dim, config.mlp_dim, config.prime_dim, config.heads
    layout = {
        _MODEL + "wte.weight": Published((config.vocab_size, dim), (Target("embed.weight"),), False),
        _MODEL + "ln_f.weight": Published((dim,), (Target("final_norm.weight"),), False),
    }

    def stacked(path: str, indices: range, shape: tuple[int, ...], name: str, row: int = 0, heads: int = 0) -> None:
        targets = tuple(Target(f"blocks.{index}.{name}", row, heads) for index in indices)
        layout[path + ".weight"] = Published((len(indices), *shape), targets, True)

    every, suffix, wide = range(config.blocks), config.suffix, heads * config.head_dim
    for place, key in enumerate(("wq", "wk", "wv")):
        turned = heads if key != "wv" else 0
        stacked(_ATTENTION + key, every, (dim, wide), "attention.wqkv.weight", place * wide, turned)
    stacked(_ATTENTION + "wo", every, (wide, dim), "attention.wo.weight")
    if config.qk_norm:
        for key in ("q_norm", "k_norm"):
            stacked(_ATTENTION + key, every, (config.head_dim,), f"attention.{key}.weight", heads=1)
    stacked(_BLOCKS + "feed_forward.w1", every, (dim, mlp), "mlp.w13.weight")
    stacked(_BLOCKS + "feed_forward.w2", every, (mlp, dim), "mlp.w2.weight")
    stacked(_BLOCKS + "feed_forward.w3", every, (dim, mlp), "mlp.w13.weight", row=mlp)
    for theirs, ours in _NORMS.items():
        stacked(_BLOCKS + theirs, every, (dim,), f"{ours}.weight")
    if config.suffix_blocks:
        for key, shape in (("w1", (dim, prime)), ("w2", (prime, dim)), ("w3", (dim, prime))):
            stacked(f"{_PRIME}feed_forward_prime.{key}", suffix, shape, f"prime_mlp.{key}")
        for theirs, ours in _PRIME_NORMS.items():
            stacked(_PRIME + theirs, suffix, (dim,), f"{ours}.weight")
    return layout


def rows_of(entry: torch.Tensor, target: Target, stacked: bool) -> torch.Tensor:
    """An array, or one entry of a stacked one, as rows of our tensor."""
    rows = entry.t() if stacked and entry.dim() == 2 else entry
    return halves_from_interleaved(rows, target.heads) if target.heads else rows.contiguous()
