"""The walk through the blocks: `Decoder.run`.

Between two sub-layers stand a post-norm, a residual and the next pre-norm. Here a sub-layer's output waits (`delta`)
until the next one's pre-norm, so that a backend can do the three in one pass over memory instead of seven.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ttt_docs.model.cache import LayerCache

if TYPE_CHECKING:
    from ttt_docs.kernels.backends import Kernels
    from ttt_docs.kernels.inner_step.layout import PrimeWeights
    from ttt_docs.model.decoder import Decoder, Place

#: Pre-norm's weight, post-norm's (None: there is none), and what stands between them.
SubLayer = tuple[Tensor, "Tensor | None", Callable[[Tensor], Tensor]]


def run_fused(
    model: Decoder,
    x: Tensor,
    blocks: range,
    place: Place,
    caches: Sequence[LayerCache],
    fast: Sequence[PrimeWeights] | None,
    kernels: Kernels,
    commit: bool,
) -> Tensor:
    """As `Decoder.run`."""
    eps = model.config.norm_eps
    delta: Tensor | None = None
    post: Tensor | None = None
    for pre_norm, post_norm, layer in _sub_layers(model, blocks, place, caches, fast, kernels, commit):
        if delta is None:
            y = kernels.rms_norm(x, pre_norm, eps)
        else:
            x, y = kernels.residual_norm(x, delta, post, pre_norm, eps)
        delta, post = layer(y), post_norm
    if delta is None:
        return x
    return x + (delta if post is None else kernels.rms_norm(delta, post, eps))


def _sub_layers(
    model: Decoder,
    blocks: range,
    place: Place,
    caches: Sequence[LayerCache],
    fast: Sequence[PrimeWeights] | None,
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

        if model.attends:
            yield block.attention_norm.weight, post("attention_post_norm"), attend
        if block.has_prime and fast is not None:
            own = fast[i - config.prefix_blocks]
            norm = block.prime_norm if config.prime_norm else block.mlp_norm
            yield norm.weight, post("prime_post_norm"), _mlp(kernels, own.w13, own.w2)
        yield block.mlp_norm.weight, post("mlp_post_norm"), _mlp(kernels, block.mlp.w13.weight, block.mlp.w2.weight)


def _mlp(kernels: Kernels, w13: Tensor, w2: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda y: kernels.swiglu(y, w13, w2)
