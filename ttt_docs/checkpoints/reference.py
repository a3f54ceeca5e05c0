"""Reference outputs of the published method (METHOD section 7): tiny models with their losses and gradients.

The published layout stacks parameters over blocks, stores matrices `[in, out]` and rotates interleaved RoPE pairs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ttt_docs.checkpoints.names import halves_from_interleaved
from ttt_docs.checkpoints.source import State, check_state
from ttt_docs.errors import CheckpointError
from ttt_docs.model.config import ModelConfig, ReadingConfig

_MODEL = "language_model.model."
_BLOCKS = _MODEL + "h.blocks."
_PRIME = _MODEL + "h.prime_storage."
_NORMS = {
    "attention_norm": _BLOCKS + "seq_norm",
    "attention_post_norm": _BLOCKS + "seq_post_norm",
    "mlp_norm": _BLOCKS + "ffn_norm",
    "mlp_post_norm": _BLOCKS + "ffn_post_norm",
}
_PRIME_NORMS = {"prime_norm": _PRIME + "ffn_prime_norm", "prime_post_norm": _PRIME + "ffn_prime_post_norm"}


@dataclass(frozen=True)
class Reference:
    """One reference file. `tokens` is `[T + 1]`, `token_nll` `[T]` in nats, `grads` has the names of `state`."""

    config: ModelConfig
    reading: ReadingConfig
    state: State
    tokens: torch.Tensor
    token_nll: torch.Tensor
    loss: float
    grads: State
    settings: dict[str, Any]  # the file's own config; settings["train_mode"] is "meta" or "pretrain"


def load_reference(path: str | Path) -> Reference:
    """Read a reference .npz file, weights and gradients under our names.

    Raises:
        CheckpointError: not such a file, or a layout that is not known.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        settings = json.loads(str(arrays["config"]))
        config, reading = configs_from_reference(settings)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is not a reference file: {error}") from error

    def group(prefix: str) -> dict[str, np.ndarray]:
        return {name[len(prefix) :]: array for name, array in arrays.items() if name.startswith(prefix)}

    return Reference(
        config=config,
        reading=reading,
        state=state_from_published(config, group("param/")),
        tokens=torch.from_numpy(arrays["tokens"].astype(np.int64)),
        token_nll=torch.from_numpy(arrays["token_nll"]),
        loss=float(arrays["loss"]),
        grads=state_from_published(config, group("grad/")),
        settings=settings,
    )


def configs_from_reference(settings: dict[str, Any]) -> tuple[ModelConfig, ReadingConfig]:
    """The two configurations that a published config (a dict of its own names) amounts to.

    Raises:
        CheckpointError: a block type that is not known.
    """
    kind = settings["seq_modeling_block"]
    if kind not in ("SWA", "SWAFull", "self_attention"):
        raise CheckpointError(f"{settings['name']}: seq_modeling_block {kind!r} is not known")
    full = kind == "self_attention"
    window = settings["seq_len"] if full else settings["sliding_window_size"]
    heads, dim, prime = settings["num_attention_heads"], settings["hidden_size"], settings["prime"]
    config = ModelConfig(
        name=settings["name"],
        vocab_size=settings["vocab_size"],
        blocks=settings["num_hidden_layers"],
        dim=dim,
        heads=heads,
        kv_heads=heads,
        head_dim=dim // heads,
        mlp_dim=settings["intermediate_size"],
        suffix_blocks=settings["suffix_len"] if prime else 0,
        post_norm=True,
        qk_norm=settings["qk_norm"],
        norm_eps=settings["rms_norm_eps"],
        rope_theta=settings["rope_theta"],
        tied_head=settings["tie_word_embeddings"],
        max_positions=settings["seq_len"],
        window=None if full else window,
    )
    reading = ReadingConfig(
        chunk=min(settings["mini_batch_size"], window),  # without an update the chunk is only a way of computing
        window=window,
        learn=prime,
        inner_rule="sgd",
        inner_lr=settings["inner_lr"],
        inner_clip=settings["inner_clip"],
        guard=None,  # the published method has none
    )
    return config, reading


def state_from_published(config: ModelConfig, arrays: dict[str, np.ndarray]) -> State:
    """Parameters, or gradients with respect to them, from the published layout to our names.

    Raises:
        CheckpointError: arrays missing, left over or of the wrong shape.
    """
    left = dict(arrays)

    def take(path: str) -> torch.Tensor:
        if path not in left:
            raise CheckpointError(f"{config.name}: {path} is missing")
        return torch.from_numpy(np.array(left.pop(path)))

    state: State = {"embed.weight": take(_MODEL + "wte.weight"), "final_norm.weight": take(_MODEL + "ln_f.weight")}
    if not config.tied_head:
        raise CheckpointError(f"{config.name}: an untied head is not known in this layout")
    attention = _BLOCKS + "seq_modeling_block."
    wq, wk, wv, wo = (take(f"{attention}{key}.weight").transpose(1, 2) for key in ("wq", "wk", "wv", "wo"))
    w1, w2, w3 = (take(f"{_BLOCKS}feed_forward.{key}.weight").transpose(1, 2) for key in ("w1", "w2", "w3"))
    norms = {name: take(path + ".weight") for name, path in _NORMS.items()}
    qk_norms = {key: take(f"{attention}{key}.weight") for key in ("q_norm", "k_norm")} if config.qk_norm else {}
    for index in range(config.blocks):
        block = f"blocks.{index}."
        q, k = halves_from_interleaved(wq[index], config.heads), halves_from_interleaved(wk[index], config.heads)
        state[block + "attention.wqkv.weight"] = torch.cat([q, k, wv[index]])
        state[block + "attention.wo.weight"] = wo[index].contiguous()
        state[block + "mlp.w13.weight"] = torch.cat([w1[index], w3[index]])
        state[block + "mlp.w2.weight"] = w2[index].contiguous()
        for name, stacked in norms.items():
            state[f"{block}{name}.weight"] = stacked[index].clone()
        for name, stacked in qk_norms.items():
            state[f"{block}attention.{name}.weight"] = halves_from_interleaved(stacked[index], 1)
    if config.suffix_blocks:
        prime = {key: take(f"{_PRIME}feed_forward_prime.{key}.weight").transpose(1, 2) for key in ("w1", "w2", "w3")}
        prime_norms = {name: take(path + ".weight") for name, path in _PRIME_NORMS.items()}
        for place, index in enumerate(config.suffix):
            for name, stacked in prime.items():
                state[f"blocks.{index}.prime_mlp.{name}"] = stacked[place].contiguous()
            for name, stacked in prime_norms.items():
                state[f"blocks.{index}.{name}.weight"] = stacked[place].clone()
    if left:
        raise CheckpointError(f"{config.name}: unexpected {', '.join(sorted(left))}")
    check_state(config, state, config.name)
    return state
