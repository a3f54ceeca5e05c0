"""One token at a time: what `Decoder.run` computes for a single token, in as few operations as possible.

At one token a product takes about as long as its weights take to come from memory, so what counts is everything around
it: rotations are computed for all blocks at once, keys and values of all blocks live in one buffer, and sinks stand in
that buffer right before the window, so that attention is a single call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ttt_docs.kernels.inner_step.layout import PrimeWeights
from ttt_docs.model.cache import LayerCache
from ttt_docs.model.decoder import Block, Decoder
from ttt_docs.model.rope import rotation

#: Tokens of room in the buffer, and rotations made at once.
ROOM = 256


class _Weights(NamedTuple):
    """One block's weights, looked up once; None where the architecture has no such part."""

    attention_norm: Tensor
    wqkv: Tensor
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    wo: Tensor
    attention_post_norm: Tensor | None
    prime_norm: Tensor | None
    prime_w13: Tensor | None
    prime_w2: Tensor | None
    prime_post_norm: Tensor | None
    mlp_norm: Tensor
    w13: Tensor
    w2: Tensor
    mlp_post_norm: Tensor | None


class SingleTokens:
    """Goes on from where one document was read to, token by token. The caches stay as they were."""

    @torch.no_grad()
    def __init__(
        self, model: Decoder, caches: Sequence[LayerCache], fast: Sequence[PrimeWeights] | None, position: int
    ) -> None:
        """`fast` as for `Decoder.run`, of a batch of one; `position` is the number of tokens before."""
        self.model, self.position = model, position
        config = self.config = self.model.config
        window = caches[0].window
        assert window is not None
        self.sinks = caches[0].sinks
        self.seen = window + self.sinks  # keys a query sees at most
        self.weights = [_weights(model, i, fast) for i in range(config.blocks)]
        self.device, self.dtype = self.model.embed.weight.device, self.model.dtype
        self.wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        keys = config.kv_heads
        held = min(self.position, self.seen - 1)
        # Keys (rotated), then values, of every block: [blocks, 2 * kv_heads, slots, head_dim]. The slot before `end`
        # is the newest token's.
        self.cache = torch.zeros(
            config.blocks, 2 * keys, held + ROOM, config.head_dim, dtype=self.dtype, device=self.device
        )
        self.end = held
        self.sink_kv = self.cache[:, :, :0]
        if held:
            windows = [cache.kept() for cache in caches]
            within = torch.stack([torch.cat(kv, dim=1)[0] for kv in windows if kv is not None])
            within = within[:, :, max(0, within.shape[2] - held) :]
            self.cache[:, :, held - within.shape[2] : held] = within
        if self.sinks and held >= self.sinks:
            pairs = [(cache.sink_k, cache.sink_v) for cache in caches]
            self.sink_kv = torch.stack([torch.cat([k, v], 1)[0] for k, v in pairs if k is not None and v is not None])
            missing = held - within.shape[2]
            self.cache[:, :, :missing] = self.sink_kv[:, :, :missing]
        self.turns: tuple[Tensor, Tensor] | None = None
        self.sink_turns: tuple[Tensor, Tensor] | None = None
        self.turns_from = 0

    def copy(self) -> SingleTokens:
        """An independent one at the same place."""
        other = object.__new__(SingleTokens)
        other.__dict__.update(self.__dict__)
        other.cache = self.cache.clone()
        return other

    def _prepare(self) -> int:
        """Rotations for the next tokens and room for them; the row of this token's rotation."""
        row = self.position - self.turns_from
        if self.turns is None or row >= ROOM:
            row, self.turns_from = 0, self.position
            ahead = torch.arange(self.position, self.position + ROOM, device=self.device)
            self.turns = rotation(ahead, self.model.inverse_frequencies, self.wide)
            if self.sinks:
                self.sink_turns = rotation(ahead - (self.seen - 1), self.model.inverse_frequencies, self.wide)
        if self.end == self.cache.shape[2]:
            held = min(self.end, self.seen - 1)
            self.cache = F.pad(self.cache[:, :, self.end - held :], (0, 0, 0, ROOM))
            self.end = held
        return row

    def _place_sinks(self, row: int, first: int) -> None:
        """Once the window has left the first tokens, puts the sinks right before it, at that place's angle."""
        assert self.sink_turns is not None
        kv_heads, half = self.config.kv_heads, self.config.head_dim // 2
        cos, sin = self.sink_turns[0][row], self.sink_turns[1][row]
        k = self.sink_kv[:, :kv_heads].to(self.wide)
        self.cache[:, :kv_heads, first : first + self.sinks] = torch.addcmul(k * cos, k.roll(half, -1), sin)
        self.cache[:, kv_heads:, first : first + self.sinks] = self.sink_kv[:, kv_heads:]

    @torch.no_grad()
    def step(self, token: int) -> Tensor:
        """Runs one token and returns the logits after it [vocab], in the products' dtype."""
        config, eps, dim = self.config, self.config.norm_eps, (self.config.dim,)
        heads, kv_heads, head_dim = config.heads, config.kv_heads, config.head_dim
        turned, half, rms_norm, linear = heads + kv_heads, head_dim // 2, F.rms_norm, F.linear
        row = self._prepare()
        assert self.turns is not None
        cos, sin = self.turns[0][row], self.turns[1][row]
        slot, self.end = self.end, self.end + 1
        first = self.end - min(self.position + 1, self.seen, self.end)
        if self.sinks and self.position >= self.seen:
            self._place_sinks(row, first)
        newest = self.cache[:, :, slot].unbind(0)
        visible = self.cache[:, :, first : self.end]
        all_k, all_v = visible[:, None, :kv_heads].unbind(0), visible[:, None, kv_heads:].unbind(0)
        x = self.model.embed.weight[token : token + 1]
        for i, w in enumerate(self.weights):
            qkv = linear(rms_norm(x, dim, w.attention_norm, eps), w.wqkv, w.qkv_bias).view(-1, head_dim)
            qk = qkv[:turned]
            if w.q_norm is not None and w.k_norm is not None:
                q, k = qk[:heads], qk[heads:]
                size = (head_dim,)
                qk = torch.cat([rms_norm(q, size, w.q_norm, eps), rms_norm(k, size, w.k_norm, eps)])
            wide = qk.to(self.wide)
            qkv[:turned] = torch.addcmul(wide * cos, wide.roll(half, -1), sin)
            newest[i].copy_(qkv[heads:])
            # Queries that share a key head stand as rows of one query: each key is read once.
            q = qkv[:heads].view(1, kv_heads, -1, head_dim)
            out = F.scaled_dot_product_attention(q, all_k[i], all_v[i]).view(1, -1)
            x = x + _post(linear(out, w.wo), w.attention_post_norm, eps)
            if w.prime_w13 is not None and w.prime_w2 is not None:
                gate, up = linear(rms_norm(x, dim, w.prime_norm, eps), w.prime_w13).chunk(2, -1)
                x = x + _post(linear(F.silu(gate).mul_(up), w.prime_w2), w.prime_post_norm, eps)
            gate, up = linear(rms_norm(x, dim, w.mlp_norm, eps), w.w13).chunk(2, -1)
            x = x + _post(linear(F.silu(gate).mul_(up), w.w2), w.mlp_post_norm, eps)
        self.position += 1
        if self.position == self.sinks:
            self.sink_kv = self.cache[:, :, self.end - self.sinks : self.end].clone()
        return linear(rms_norm(x, dim, self.model.final_norm.weight, eps), self.model.head_weight)[0]


def _post(x: Tensor, norm: Tensor | None, eps: float) -> Tensor:
    return x if norm is None else F.rms_norm(x, (x.shape[-1],), norm, eps)


def _weights(model: Decoder, index: int, fast: Sequence[PrimeWeights] | None) -> _Weights:
    config, block = model.config, model.block(index)

    def norm(name: str, owner: Block | object = block) -> Tensor | None:
        table = getattr(owner, name, None)
        return None if table is None else table.weight

    prime_norm = prime_w13 = prime_w2 = None
    if block.has_prime and fast is not None:
        own = fast[index - config.prefix_blocks]
        prime_w13, prime_w2 = own.w13[0], own.w2[0]
        prime_norm = (block.prime_norm if config.prime_norm else block.mlp_norm).weight
    return _Weights(
        attention_norm=block.attention_norm.weight,
        wqkv=block.attention.wqkv.weight,
        qkv_bias=block.attention.wqkv.bias,
        q_norm=norm("q_norm", block.attention),
        k_norm=norm("k_norm", block.attention),
        wo=block.attention.wo.weight,
        attention_post_norm=norm("attention_post_norm"),
        prime_norm=prime_norm,
        prime_w13=prime_w13,
        prime_w2=prime_w2,
        prime_post_norm=norm("prime_post_norm"),
        mlp_norm=block.mlp_norm.weight,
        w13=block.mlp.w13.weight,
        w2=block.mlp.w2.weight,
        mlp_post_norm=norm("mlp_post_norm"),
    )
