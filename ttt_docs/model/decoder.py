"""One decoder for the paper's block and for Llama-family models (docs/method.md section 2).

    x = x + post(attention(pre(x)))
    x = x + post'(prime_mlp(pre'(x)))      suffix blocks only; its weights are the fast weights
    x = x + post''(mlp(pre''(x)))

The slow weights are shared by a batch; the fast weights are passed in and carry a leading batch dimension, one set per
document. The prime MLPs' own parameters are the fast weights' *initial* value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttt_docs.kernels.backends import REFERENCE, Kernels
from ttt_docs.kernels.heads.definition import HeadSplit
from ttt_docs.kernels.inner_step.layout import FastLayout, PrimeWeights
from ttt_docs.kernels.workspace import wide
from ttt_docs.model.cache import LayerCache
from ttt_docs.model.config import ModelConfig
from ttt_docs.model.positions import Positions
from ttt_docs.model.rope import frequencies


class Table(nn.Module):
    """A weight [rows, dim] without a forward of its own (embedding, norms)."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(*shape))


class Linear(nn.Module):
    """A weight [outputs, inputs], and perhaps a bias [outputs], without a forward of its own."""

    def __init__(self, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        rows = (config.heads + 2 * config.kv_heads) * config.head_dim
        self.wqkv = Linear(config.dim, rows, bias=config.attention_bias)
        self.wo = Linear(config.heads * config.head_dim, config.dim)
        if config.qk_norm:
            self.q_norm, self.k_norm = Table(config.head_dim), Table(config.head_dim)


class MLP(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.w13 = Linear(config.dim, 2 * config.mlp_dim)
        self.w2 = Linear(config.mlp_dim, config.dim)


class PrimeMLP(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.empty(config.prime_dim, config.dim))
        self.w2 = nn.Parameter(torch.empty(config.dim, config.prime_dim))
        self.w3 = nn.Parameter(torch.empty(config.prime_dim, config.dim))


class Block(nn.Module):
    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        self.index = index
        self.attention, self.attention_norm = Attention(config), Table(config.dim)
        self.mlp, self.mlp_norm = MLP(config), Table(config.dim)
        self.has_prime = index in config.suffix
        if self.has_prime:
            self.prime_mlp = PrimeMLP(config)
            if config.prime_norm:
                self.prime_norm = Table(config.dim)
        if config.post_norm:
            self.attention_post_norm, self.mlp_post_norm = Table(config.dim), Table(config.dim)
            if self.has_prime:
                self.prime_post_norm = Table(config.dim)


class SubLayer(NamedTuple):
    """x + post(apply(pre(x))): an attention or an MLP with its norms."""

    pre: Tensor  # weight of the RMSNorm before [dim]
    post: Tensor | None  # of the one after; None: there is none
    apply: Callable[[Tensor], Tensor]


def walk(x: Tensor, sub_layers: Iterable[SubLayer], kernels: Kernels, eps: float) -> Tensor:
    """The block's equation: x [..., dim] through sub-layers, one after the other.

    A sub-layer's output waits (`delta`) until the next one's pre-norm. Post-norm, residual and pre-norm are then one
    operation, which a backend can do in one pass over memory.
    """
    delta: Tensor | None = None
    waiting: Tensor | None = None  # the post-norm of what waits
    for pre, post, apply in sub_layers:
        if delta is None:
            y = kernels.rms_norm(x, pre, eps)
        else:
            x, y = kernels.residual_norm(x, delta, waiting, pre, eps)
        delta, waiting = apply(y), post
    if delta is None:
        return x
    return x + (delta if waiting is None else kernels.rms_norm(delta, waiting, eps))


class Decoder(nn.Module):
    """Every method is a function of its arguments, except that caches grow."""

    inverse_frequencies: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        #: False: attention adds nothing in any block (its output matrices are zero), so training leaves it out.
        self.attends = True
        self.embed = Table(config.vocab_size, config.dim)
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.blocks))
        self.final_norm = Table(config.dim)
        if not config.tied_head:
            self.head = Table(config.vocab_size, config.dim)
        self.register_buffer("inverse_frequencies", frequencies(config), persistent=False)

    @property
    def head_weight(self) -> Tensor:
        """[vocab, dim]"""
        return self.embed.weight if self.config.tied_head else self.head.weight

    @property
    def dtype(self) -> torch.dtype:
        """The products' dtype."""
        return self.embed.weight.dtype

    def block(self, index: int) -> Block:
        return cast(Block, self.blocks[index])

    def initialize(self, generator: torch.Generator | None = None) -> Decoder:
        """Random weights as the paper starts from: normal with deviation 0.02, norms 1 (docs/method.md section 4)."""
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter.data, std=0.02, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter.data)
            else:
                nn.init.ones_(parameter.data)
        return self

    @property
    def fast_layout(self) -> FastLayout:
        """Where each fast weight stands in one tensor [batch, n]."""
        return FastLayout(self.config.suffix_blocks, self.config.prime_dim, self.config.dim)

    def initial_fast_weights(self, batch: int = 1) -> Tensor:
        """W0, float32 (or float64) [batch, n] as `fast_layout` has it: one set per document, differentiable."""
        primes = [self.block(i).prime_mlp for i in self.config.suffix]
        matrices = [w.unsqueeze(0) for p in primes for w in (p.w1, p.w2, p.w3)]
        return self.fast_layout.join(w.to(wide(w.dtype)) for w in matrices).expand(batch, -1)

    def new_caches(self, window: int | None, sinks: int = 0, differentiable: bool = False) -> list[LayerCache]:
        """Empty caches, one per block."""
        return [LayerCache(window, sinks, differentiable) for _ in self.blocks]

    def positions(
        self,
        start: int,
        tokens: int,
        window: int | None,
        sinks: int = 0,
        chunk: int | None = None,
        slots: slice | None = None,
    ) -> Positions:
        """The positions of `tokens` tokens that begin at document position `start`. With `chunk`, they attend in ranges
        of that length, of which only `slots` hold real tokens."""
        return Positions.of(start, tokens, window, sinks, chunk, slots, self.inverse_frequencies, self.dtype)

    def hidden(self, tokens: Tensor) -> Tensor:
        """Token ids [batch, tokens] -> the residual stream's start [batch, tokens, dim]."""
        return F.embedding(tokens, self.embed.weight)

    def run(
        self,
        x: Tensor,
        blocks: range,
        positions: Positions,
        caches: Sequence[LayerCache],
        fast: Sequence[PrimeWeights] | None = None,
        kernels: Kernels = REFERENCE,
        commit: bool = True,
    ) -> Tensor:
        """Runs x [batch, tokens, dim] through `blocks`.

        `fast` holds one entry per suffix block (not needed below them); None leaves the prime MLPs out. With
        `commit=False` the caches are as before afterwards.
        """
        sub_layers: list[SubLayer] = []
        for i in blocks:
            attend = partial(self._attend, self.block(i).attention, positions, caches[i], kernels, commit)
            sub_layers += [*self.attention_layer(i, attend), *self.mlp_layers(i, fast, kernels)]
        return walk(x, sub_layers, kernels, self.config.norm_eps)

    def attend(
        self,
        x: Tensor,
        index: int,
        positions: Positions,
        cache: LayerCache,
        kernels: Kernels = REFERENCE,
        commit: bool = True,
    ) -> Tensor:
        """The first sub-layer of block `index`. It does not depend on the block's own fast weights, only on those of
        blocks below."""
        attend = partial(self._attend, self.block(index).attention, positions, cache, kernels, commit)
        return walk(x, self.attention_layer(index, attend), kernels, self.config.norm_eps)

    def feed_forward(
        self, x: Tensor, index: int, fast: Sequence[PrimeWeights] | None = None, kernels: Kernels = REFERENCE
    ) -> Tensor:
        """The other sub-layers of block `index`."""
        return walk(x, self.mlp_layers(index, fast, kernels), kernels, self.config.norm_eps)

    def attention_layer(self, index: int, attend: Callable[[Tensor], Tensor]) -> list[SubLayer]:
        """The sub-layer of block `index` that attends; none where attention adds nothing."""
        block = self.block(index)
        return [SubLayer(block.attention_norm.weight, self._post(block, "attention"), attend)] if self.attends else []

    def mlp_layers(self, index: int, fast: Sequence[PrimeWeights] | None, kernels: Kernels) -> list[SubLayer]:
        """The prime MLP of block `index`, where it has one and `fast` is given, and the static MLP."""
        block, layers = self.block(index), []
        if block.has_prime and fast is not None:
            own = fast[index - self.config.prefix_blocks]
            norm = block.prime_norm if self.config.prime_norm else block.mlp_norm
            prime = self._post(block, "prime")
            layers.append(SubLayer(norm.weight, prime, lambda y: kernels.swiglu(y, own.w13, own.w2)))
        w13, w2 = block.mlp.w13.weight, block.mlp.w2.weight
        static = SubLayer(block.mlp_norm.weight, self._post(block, "mlp"), lambda y: kernels.swiglu(y, w13, w2))
        return [*layers, static]

    def _post(self, block: Block, layer: str) -> Tensor | None:
        return getattr(block, f"{layer}_post_norm").weight if self.config.post_norm else None

    def _attend(
        self, attention: Attention, positions: Positions, cache: LayerCache, kernels: Kernels, commit: bool, x: Tensor
    ) -> Tensor:
        """x [batch, tokens, dim]. Keys and values go straight into the cache's buffer, unless it is differentiable."""
        c = self.config
        batch, tokens, _ = x.shape
        qkv = kernels.linear(x, attention.wqkv.weight, attention.wqkv.bias).view(
            batch, tokens, c.heads + 2 * c.kv_heads, c.head_dim
        )
        q_norm, k_norm = (attention.q_norm.weight, attention.k_norm.weight) if c.qk_norm else (None, None)
        outs = []
        for (first, last), of_sinks in zip(positions.ranges, positions.sinks, strict=True):
            rotation = positions.rotation[0][first:last], positions.rotation[1][first:last]
            sink_rotation = None if of_sinks is None else of_sinks.query_rotation
            slots = None if cache.differentiable else cache.room(qkv, c.kv_heads, last - first)
            split = HeadSplit(c.kv_heads, rotation, of_sinks is not None, sink_rotation, slots, c.norm_eps)
            q, k, v, sink_q = kernels.split_heads(qkv[:, first:last], q_norm, k_norm, split)
            keys, values = cache.extend(k, v, commit) if slots is None else cache.grow(last - first, commit)
            sinks = None
            if of_sinks is not None and sink_q is not None:
                assert cache.sink_kv is not None
                sinks = of_sinks.sinks(cache.sink_kv, sink_q)
            attended = kernels.window_attention(q, keys, values, cache.window, sinks, (k, v))
            outs.append(attended.transpose(1, 2))
        out = outs[0] if len(outs) == 1 else torch.cat(outs, dim=1)
        out = out.reshape(batch, out.shape[1], -1)
        if out.shape[1] < tokens:  # padding keeps a product's shape, and so its bits, the same whatever is real in it
            before = positions.ranges[0][0]
            out = F.pad(out, (0, 0, before, tokens - before - out.shape[1]))
        return kernels.linear(out, attention.wo.weight, None)

    def token_nll(self, x: Tensor, targets: Tensor, kernels: Kernels = REFERENCE) -> Tensor:
        """Losses of `targets` [batch, tokens] after hidden states x [batch, tokens, dim]: nats, float32; 0 for BOS."""
        x = kernels.rms_norm(x, self.final_norm.weight, self.config.norm_eps).flatten(0, 1)
        bos = self.config.bos_token_id
        nll = kernels.linear_cross_entropy(x, self.head_weight, targets.flatten(), bos)
        return nll.view(targets.shape)

    def logits(self, x: Tensor, kernels: Kernels = REFERENCE) -> Tensor:
        """[batch, tokens, vocab]"""
        return F.linear(kernels.rms_norm(x, self.final_norm.weight, self.config.norm_eps), self.head_weight)
