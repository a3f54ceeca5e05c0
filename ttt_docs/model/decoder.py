"""One decoder for the paper's block and for Llama-family models (METHOD section 2).

    x = x + post(attention(pre(x)))
    x = x + post'(prime_mlp(pre'(x)))      suffix blocks only; its weights are the fast weights
    x = x + post''(mlp(pre''(x)))

The slow weights are shared by a batch; the fast weights are passed in and carry a leading batch dimension, one set per
document. The prime MLPs' own parameters are the fast weights' *initial* value.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttt_docs.kernels.attention.definition import Sinks
from ttt_docs.kernels.backends import REFERENCE, Kernels
from ttt_docs.kernels.heads.definition import HeadSplit, Rotation, rotate
from ttt_docs.kernels.inner_step.layout import FastLayout, PrimeWeights
from ttt_docs.kernels.workspace import wide
from ttt_docs.model.cache import LayerCache
from ttt_docs.model.config import ModelConfig
from ttt_docs.model.fused import run_fused
from ttt_docs.model.rope import frequencies, rotation


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


@dataclass(frozen=True)
class SinkPlace:
    """How one chunk's queries see the sinks: either queries or sink keys are turned (see `Decoder.place`)."""

    query_turn: Rotation | None
    key_turn: Rotation | None
    hidden: Tensor | None  # bool [tokens, sinks]


@dataclass(frozen=True)
class Place:
    """Where a run of tokens stands in the document: RoPE angles, and the ranges that attend together."""

    turn: Rotation
    chunks: tuple[tuple[int, int], ...]  # in order; tokens outside all ranges are padding
    sinks: tuple[SinkPlace | None, ...]  # one per range

    def within(self, first: int, last: int) -> Place:
        """The place of tokens [first, last), which lie in one range, by themselves."""
        index = next(i for i, (a, b) in enumerate(self.chunks) if a <= first and last <= b)
        sink = self.sinks[index]
        if sink is not None and sink.query_turn is not None and sink.hidden is not None:
            here = slice(first - self.chunks[index][0], last - self.chunks[index][0])
            sink = SinkPlace((sink.query_turn[0][here], sink.query_turn[1][here]), None, sink.hidden[here])
        return Place((self.turn[0][first:last], self.turn[1][first:last]), ((0, last - first),), (sink,))


#: What `Kernels.window_attention` takes: q, k, v, window, sinks, the newest tokens' keys and values.
AttentionCall = tuple[Tensor, Tensor, Tensor, "int | None", "Sinks | None", tuple[Tensor, Tensor]]


def _sinks(cache: LayerCache, place: SinkPlace, q: Tensor) -> Sinks:
    """The cache's sinks, for queries q [batch, heads, tokens, head_dim] that are turned for them."""
    k, v = cache.sink_k, cache.sink_v
    assert k is not None and v is not None
    if place.key_turn is not None:
        k = rotate(k.transpose(1, 2), place.key_turn).transpose(1, 2)
    return Sinks(q, k, v, place.hidden)


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
        """Random weights as the paper starts from: normal with deviation 0.02, norms 1 (METHOD section 4)."""
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

    def place(
        self,
        start: int,
        tokens: int,
        window: int | None,
        sinks: int = 0,
        chunk: int | None = None,
        slots: slice | None = None,
    ) -> Place:
        """The place of `tokens` tokens that begin at document position `start`.

        With `chunk`, they attend in ranges of that length, of which only `slots` hold real tokens. Sinks (METHOD
        section 6) stand right before each query's window: a query at position p sees sink s once p >= window + s, at
        the distance it has at p = window + sinks - 1 for ever after. So beyond that point the sink keys are turned
        once and the queries come unturned; in the chunk where the window passes it, the queries are turned instead.
        """
        device = self.inverse_frequencies.device
        positions = torch.arange(start, start + tokens, device=device)
        step = chunk or max(tokens, 1)
        ranges = [(i, min(i + step, tokens)) for i in range(0, tokens, step)]
        ranges = ranges[slots] if slots is not None else ranges

        @cache
        def settled(farthest: int) -> SinkPlace:
            turned = torch.full((sinks,), -farthest, device=device)
            return SinkPlace(None, rotation(turned, self.inverse_frequencies, self.dtype), None)

        def sink_place(first: int, last: int) -> SinkPlace | None:
            if not sinks or window is None or start + last <= window:
                return None
            farthest = window + sinks - 1
            if start + first >= farthest:
                return settled(farthest)
            here = positions[first:last]
            turn = rotation(here.clamp(max=farthest), self.inverse_frequencies, self.dtype)
            return SinkPlace(turn, None, (here - window)[:, None] < torch.arange(sinks, device=device))

        turn = rotation(positions, self.inverse_frequencies, self.dtype)
        return Place(turn, tuple(ranges), tuple(sink_place(a, b) for a, b in ranges))

    def hidden(self, tokens: Tensor) -> Tensor:
        """Token ids [batch, tokens] -> the residual stream's start [batch, tokens, dim]."""
        return F.embedding(tokens, self.embed.weight)

    def run(
        self,
        x: Tensor,
        blocks: range,
        place: Place,
        caches: Sequence[LayerCache],
        fast: Sequence[PrimeWeights] | None = None,
        kernels: Kernels = REFERENCE,
        commit: bool = True,
    ) -> Tensor:
        """Runs x [batch, tokens, dim] through `blocks`.

        `fast` holds one entry per suffix block (not needed below them); None leaves the prime MLPs out. With
        `commit=False` the caches are as before afterwards.
        """
        return run_fused(self, x, blocks, place, caches, fast, kernels, commit)

    def attend(
        self, x: Tensor, index: int, place: Place, cache: LayerCache, kernels: Kernels = REFERENCE, commit: bool = True
    ) -> Tensor:
        """The first sub-layer of block `index`: x + post(attention(pre(x))). It does not depend on the block's own fast
        weights, only on those of blocks below."""
        if not self.attends:
            return x
        block = self.block(index)
        y = kernels.rms_norm(x, block.attention_norm.weight, self.config.norm_eps)
        y = self._attend(block.attention, y, place, cache, kernels, commit)
        return x + self._post(block, "attention_post_norm", y, kernels)

    def feed_forward(
        self, x: Tensor, index: int, fast: Sequence[PrimeWeights] | None = None, kernels: Kernels = REFERENCE
    ) -> Tensor:
        """The rest of block `index`: the prime MLP, where the block has one and `fast` is given, and the static MLP."""
        block, eps = self.block(index), self.config.norm_eps
        if block.has_prime and fast is not None:
            norm = block.prime_norm if self.config.prime_norm else block.mlp_norm
            own = fast[index - self.config.prefix_blocks]
            y = kernels.swiglu(kernels.rms_norm(x, norm.weight, eps), own.w13, own.w2)
            x = x + self._post(block, "prime_post_norm", y, kernels)
        y = kernels.rms_norm(x, block.mlp_norm.weight, eps)
        y = kernels.swiglu(y, block.mlp.w13.weight, block.mlp.w2.weight)
        return x + self._post(block, "mlp_post_norm", y, kernels)

    def _post(self, block: Block, name: str, y: Tensor, kernels: Kernels) -> Tensor:
        return kernels.rms_norm(y, getattr(block, name).weight, self.config.norm_eps) if self.config.post_norm else y

    def _attend(
        self, attention: Attention, x: Tensor, place: Place, cache: LayerCache, kernels: Kernels, commit: bool
    ) -> Tensor:
        c = self.config
        batch, tokens, _ = x.shape
        qkv = kernels.linear(x, attention.wqkv.weight, attention.wqkv.bias).view(
            batch, tokens, c.heads + 2 * c.kv_heads, c.head_dim
        )
        outs = [
            kernels.window_attention(*arguments).transpose(1, 2)
            for arguments in _ranges(c, attention, qkv, place, cache, kernels, commit)
        ]
        out = outs[0] if len(outs) == 1 else torch.cat(outs, dim=1)
        out = out.reshape(batch, out.shape[1], -1)
        if out.shape[1] < tokens:  # padding keeps a product's shape, and so its bits, the same whatever is real in it
            before = place.chunks[0][0]
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


def _ranges(
    config: ModelConfig,
    attention: Attention,
    qkv: Tensor,
    place: Place,
    cache: LayerCache,
    kernels: Kernels,
    commit: bool,
) -> Iterator[AttentionCall]:
    """For each range of `place`, in order, what its window attention takes; qkv [batch, tokens, heads, head_dim]. Keys
    and values go straight into the cache's buffer, unless it is a differentiable one."""
    q_norm, k_norm = (attention.q_norm.weight, attention.k_norm.weight) if config.qk_norm else (None, None)
    for (first, last), sink_place in zip(place.chunks, place.sinks, strict=True):
        turn = place.turn[0][first:last], place.turn[1][first:last]
        sink_turn = None if sink_place is None else sink_place.query_turn
        slots = None if cache.differentiable else cache.room(qkv, config.kv_heads, last - first)
        split = HeadSplit(config.kv_heads, turn, sink_place is not None, sink_turn, slots, config.norm_eps)
        q, k, v, sink_q = kernels.split_heads(qkv[:, first:last], q_norm, k_norm, split)
        all_k, all_v = cache.extend(k, v, commit) if slots is None else cache.grow(last - first, commit)
        sinks = None if sink_place is None or sink_q is None else _sinks(cache, sink_place, sink_q)
        yield q, all_k, all_v, cache.window, sinks, (k, v)
