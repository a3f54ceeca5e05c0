"""Parts of `Decoder` for kernels that do in one pass over memory what otherwise takes several.

Between two sub-layers stand a post-norm, a residual and the next pre-norm. Here (`run_fused`) a sub-layer's output
waits (`delta`) until the next one's pre-norm, and the three are one pass instead of seven. Between an attention's first
product and its scores stand QK norm, RoPE and the cache: one pass, too (`fused_ranges`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ttt_docs.kernels.heads import HeadsPlan
from ttt_docs.model.cache import LayerCache

if TYPE_CHECKING:
    from ttt_docs.kernels.dispatch import Kernels
    from ttt_docs.model.config import ModelConfig
    from ttt_docs.model.decoder import Attention, AttentionCall, Decoder, Place, ProductWeights

#: Pre-norm's weight, post-norm's (None: there is none), and what stands between them.
SubLayer = tuple[Tensor, "Tensor | None", Callable[[Tensor], Tensor]]


def run_fused(
    model: Decoder,
    x: Tensor,
    blocks: range,
    place: Place,
    caches: Sequence[LayerCache],
    fast: Sequence[ProductWeights] | None,
    kernels: Kernels,
    commit: bool,
) -> Tensor:
    """As `Decoder.run`."""
    assert kernels.add_rms_norm is not None
    eps = model.config.norm_eps
    delta: Tensor | None = None
    post: Tensor | None = None
    for pre_norm, post_norm, layer in _sub_layers(model, blocks, place, caches, fast, kernels, commit):
        if delta is None:
            y = kernels.rms_norm(x, pre_norm, eps)
        else:
            x, y = kernels.add_rms_norm(x, delta, post, pre_norm, eps)
        delta, post = layer(y), post_norm
    if delta is None:
        return x
    return x + (delta if post is None else kernels.rms_norm(delta, post, eps))


def _sub_layers(
    model: Decoder,
    blocks: range,
    place: Place,
    caches: Sequence[LayerCache],
    fast: Sequence[ProductWeights] | None,
    kernels: Kernels,
    commit: bool,
) -> Iterator[SubLayer]:
    config = model.config
    for i in blocks:
        block, cache = model.block(i), caches[i]

        def post(name: str, block: object = block) -> Tensor | None:
            return getattr(block, name).weight if config.post_norm else None

        def attend(y: Tensor, block: object = block, cache: LayerCache = cache) -> Tensor:
            return model._attend(block.attention, y, place, cache, kernels, commit)  # type: ignore[attr-defined]

        yield block.attention_norm.weight, post("attention_post_norm"), attend
        if block.has_prime and fast is not None:
            own = fast[i - config.prefix_blocks]
            norm = block.prime_norm if config.prime_norm else block.mlp_norm
            yield norm.weight, post("prime_post_norm"), _mlp(kernels, own.w13, own.w2)
        yield block.mlp_norm.weight, post("mlp_post_norm"), _mlp(kernels, block.mlp.w13.weight, block.mlp.w2.weight)


def _mlp(kernels: Kernels, w13: Tensor, w2: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda y: kernels.swiglu(y, w13, w2)


def fused_ranges(
    config: ModelConfig,
    attention: Attention,
    qkv: Tensor,
    place: Place,
    cache: LayerCache,
    kernels: Kernels,
    commit: bool,
) -> Iterator[AttentionCall]:
    """As `decoder._ranges`. Keys and values go straight into the cache's buffer, unless it is a differentiable one."""
    from ttt_docs.model.decoder import sinks_of

    assert kernels.heads is not None
    norms = (attention.q_norm.weight, attention.k_norm.weight) if config.qk_norm else (None, None)
    for (first, last), sink_place in zip(place.chunks, place.sinks, strict=True):
        turn = place.turn[0][first:last], place.turn[1][first:last]
        sink_turn = None if sink_place is None else sink_place.query_turn
        slots = None if cache.differentiable else cache.room(qkv, config.kv_heads, last - first)
        plan = HeadsPlan(config.kv_heads, turn, sink_place is not None, sink_turn, slots, config.norm_eps)
        q, k, v, sink_q = kernels.heads(qkv[:, first:last], *norms, plan)
        all_k, all_v = cache.extend(k, v, commit) if slots is None else cache.grow(last - first, commit)
        sinks = None if sink_place is None or sink_q is None else sinks_of(cache, sink_place, sink_q)
        yield q, all_k, all_v, cache.window, sinks, (k, v)
