"""Our parameter names, what a source of weights is, and how the two are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ttt_docs.errors import CheckpointError
from ttt_docs.model.config import ModelConfig

Shapes = dict[str, tuple[int, ...]]
#: Our name -> the source's names, to be concatenated on the rows in this order.
Parts = dict[str, tuple[str, ...]]

HUGGING_FACE = {
    "embed.weight": ("model.embed_tokens.weight",),
    "final_norm.weight": ("model.norm.weight",),
    "head.weight": ("lm_head.weight",),
    "attention_norm.weight": ("input_layernorm.weight",),
    "attention.wqkv.weight": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "attention.wqkv.bias": ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"),
    "attention.wo.weight": ("self_attn.o_proj.weight",),
    "attention.q_norm.weight": ("self_attn.q_norm.weight",),
    "attention.k_norm.weight": ("self_attn.k_norm.weight",),
    "mlp_norm.weight": ("post_attention_layernorm.weight",),
    "mlp.w13.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "mlp.w2.weight": ("mlp.down_proj.weight",),
}
GGUF = {
    "embed.weight": ("token_embd.weight",),
    "final_norm.weight": ("output_norm.weight",),
    "head.weight": ("output.weight",),
    "attention_norm.weight": ("attn_norm.weight",),
    "attention.wqkv.weight": ("attn_q.weight", "attn_k.weight", "attn_v.weight"),
    "attention.wqkv.bias": ("attn_q.bias", "attn_k.bias", "attn_v.bias"),
    "attention.wo.weight": ("attn_output.weight",),
    "attention.q_norm.weight": ("attn_q_norm.weight",),
    "attention.k_norm.weight": ("attn_k_norm.weight",),
    "mlp_norm.weight": ("ffn_norm.weight",),
    "mlp.w13.weight": ("ffn_gate.weight", "ffn_up.weight"),
    "mlp.w2.weight": ("ffn_down.weight",),
}


def parameter_shapes(config: ModelConfig) -> Shapes:
    """Every parameter of a model with `config`: name -> shape, in the order of the forward pass."""
    dim, head_dim, heads, kv_heads = config.dim, config.head_dim, config.heads, config.kv_heads
    shapes: Shapes = {"embed.weight": (config.vocab_size, dim)}
    for index in range(config.blocks):
        block = f"blocks.{index}."
        qkv_rows = (heads + 2 * kv_heads) * head_dim
        if config.pre_norm:
            shapes[block + "attention_norm.weight"] = (dim,)
        shapes[block + "attention.wqkv.weight"] = (qkv_rows, dim)
        if config.attention_bias:
            shapes[block + "attention.wqkv.bias"] = (qkv_rows,)
        if config.qk_norm:
            shapes[block + "attention.q_norm.weight"] = (head_dim,)
            shapes[block + "attention.k_norm.weight"] = (head_dim,)
        shapes[block + "attention.wo.weight"] = (dim, heads * head_dim)
        if config.post_norm:
            shapes[block + "attention_post_norm.weight"] = (dim,)
        if index in config.suffix:
            if config.prime_norm and config.pre_norm:
                shapes[block + "prime_norm.weight"] = (dim,)
            shapes[block + "prime_mlp.w1"] = (config.prime_dim, dim)
            shapes[block + "prime_mlp.w2"] = (dim, config.prime_dim)
            shapes[block + "prime_mlp.w3"] = (config.prime_dim, dim)
            if config.post_norm:
                shapes[block + "prime_post_norm.weight"] = (dim,)
        if config.pre_norm:
            shapes[block + "mlp_norm.weight"] = (dim,)
        shapes[block + "mlp.w13.weight"] = (2 * config.mlp_dim, dim)
        shapes[block + "mlp.w2.weight"] = (dim, config.mlp_dim)
        if config.post_norm:
            shapes[block + "mlp_post_norm.weight"] = (dim,)
    shapes["final_norm.weight"] = (dim,)
    if not config.tied_head:
        shapes["head.weight"] = (config.vocab_size, dim)
    return shapes


def source_parts(config: ModelConfig, table: Parts, block: str) -> Parts:
    """Our names -> those of a source format (`HUGGING_FACE` or `GGUF`), whose blocks are called `block` + index."""
    parts: Parts = {}
    for name in parameter_shapes(config):
        if name.startswith("blocks."):
            _, index, rest = name.split(".", 2)
            parts[name] = tuple(f"{block}{index}.{part}" for part in table[rest])
        else:
            parts[name] = table[name]
    return parts


def part_shapes(config: ModelConfig, name: str, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Shapes of the source tensors, in order, that make up our parameter `name` of `shape`."""
    if ".wqkv." in name:
        rows = [config.heads * config.head_dim, config.kv_heads * config.head_dim, config.kv_heads * config.head_dim]
    elif name.endswith(".w13.weight"):
        rows = [config.mlp_dim, config.mlp_dim]
    else:
        return [shape]
    return [(count, *shape[1:]) for count in rows]


def halves_from_interleaved(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorder each head's rows from interleaved RoPE pairs (2i, 2i+1) to halves (i, i + d/2): even rows, then odd.

    `rows` is `[heads * head_dim, ...]`: a q or k projection, its bias, or (heads=1) a QK norm weight.
    """
    split = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return split.transpose(1, 2).reshape(rows.shape).contiguous()


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
