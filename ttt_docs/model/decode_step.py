"""One token at a time: what `Decoder.run` computes for a single token, in as few operations as possible.

At one token a product takes about as long as its weights take to come from memory, so what counts is everything around
it: rotations are computed for all blocks at once, keys and values of all blocks live in one buffer, and sinks stand in
that buffer right before the window, so that attention is a single call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ttt_docs.kernels.backends import Kernels
from ttt_docs.kernels.inner_step.layout import PrimeWeights
from ttt_docs.model.cache import LayerCache
from ttt_docs.model.decoder import Decoder, SubLayer, walk
from ttt_docs.model.rope import rotation

#: Tokens of room in the buffer, and rotations made at once.
ROOM = 256


class _OneToken(Kernels):
    """The operations on one token's row [1, dim], in as few calls as possible."""

    name = "one token"

    @staticmethod
    def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, eps)

    @staticmethod
    def swiglu(x: Tensor, w13: Tensor, w2: Tensor) -> Tensor:
        gate, up = F.linear(x, w13).chunk(2, -1)
        return F.linear(F.silu(gate).mul_(up), w2)


_KERNELS = _OneToken()


class _Now:
    """What the blocks' attention takes of one token. Attentions hold this and not the `SingleTokens` that holds them,
    so that its buffer is freed with it."""

    cos: Tensor
    sin: Tensor
    newest: Sequence[Tensor]  # of each block, where its key and value go
    keys: Sequence[Tensor]  # of each block, all that the token sees
    values: Sequence[Tensor]


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
        self.fast = None if fast is None else [PrimeWeights(w.w13[0], w.w2[0]) for w in fast]
        self.device, self.dtype = self.model.embed.weight.device, self.model.dtype
        self.wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.now = _Now()
        self.sub_layers = self._sub_layers()
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
            kept = [cache.sink_kv for cache in caches]
            self.sink_kv = torch.stack([torch.cat(kv, 1)[0] for kv in kept if kv is not None])
            missing = held - within.shape[2]
            self.cache[:, :, :missing] = self.sink_kv[:, :, :missing]
        self.rotations: tuple[Tensor, Tensor] | None = None
        self.sink_rotations: tuple[Tensor, Tensor] | None = None
        self.rotations_from = 0

    def copy(self) -> SingleTokens:
        """An independent one at the same position."""
        other = object.__new__(SingleTokens)
        other.__dict__.update(self.__dict__)
        other.cache, other.now = self.cache.clone(), _Now()
        other.sub_layers = other._sub_layers()
        return other

    def _sub_layers(self) -> list[SubLayer]:
        """Every block's, with its weights looked up once."""
        return [
            layer
            for i in range(self.config.blocks)
            for layer in (
                *self.model.attention_layer(i, self._attention(i)),
                *self.model.mlp_layers(i, self.fast, _KERNELS),
            )
        ]

    def _attention(self, index: int) -> Callable[[Tensor], Tensor]:
        """The attention of block `index` for the row x [1, dim] of the token that `step` has made room for."""
        config, now, precise, own = self.config, self.now, self.wide, self.model.block(index).attention
        heads, kv_heads, head_dim, eps = config.heads, config.kv_heads, config.head_dim, config.norm_eps
        rotated, half, size = heads + kv_heads, head_dim // 2, (head_dim,)
        wqkv, bias, wo = own.wqkv.weight, own.wqkv.bias, own.wo.weight
        q_norm, k_norm = (own.q_norm.weight, own.k_norm.weight) if config.qk_norm else (None, None)

        def attend(x: Tensor) -> Tensor:
            qkv = F.linear(x, wqkv, bias).view(-1, head_dim)
            qk = qkv[:rotated]
            if q_norm is not None:
                qk = torch.cat([F.rms_norm(qk[:heads], size, q_norm, eps), F.rms_norm(qk[heads:], size, k_norm, eps)])
            wide = qk.to(precise)
            qkv[:rotated] = torch.addcmul(wide * now.cos, wide.roll(half, -1), now.sin)
            now.newest[index].copy_(qkv[heads:])
            # Queries that share a key head stand as rows of one query: each key is read once.
            q = qkv[:heads].view(1, kv_heads, -1, head_dim)
            return F.linear(F.scaled_dot_product_attention(q, now.keys[index], now.values[index]).view(1, -1), wo)

        return attend

    def _prepare(self) -> int:
        """Rotations for the next tokens and room for them; the row of this token's rotation."""
        row = self.position - self.rotations_from
        if self.rotations is None or row >= ROOM:
            row, self.rotations_from = 0, self.position
            ahead = torch.arange(self.position, self.position + ROOM, device=self.device)
            self.rotations = rotation(ahead, self.model.inverse_frequencies, self.wide)
            if self.sinks:
                self.sink_rotations = rotation(ahead - (self.seen - 1), self.model.inverse_frequencies, self.wide)
        if self.end == self.cache.shape[2]:
            held = min(self.end, self.seen - 1)
            self.cache = F.pad(self.cache[:, :, self.end - held :], (0, 0, 0, ROOM))
            self.end = held
        return row

    def _put_sinks(self, row: int, first: int) -> None:
        """Once the window has left the first tokens, puts the sinks right before it, with the angle they have there."""
        assert self.sink_rotations is not None
        kv_heads, half = self.config.kv_heads, self.config.head_dim // 2
        cos, sin = self.sink_rotations[0][row], self.sink_rotations[1][row]
        k = self.sink_kv[:, :kv_heads].to(self.wide)
        self.cache[:, :kv_heads, first : first + self.sinks] = torch.addcmul(k * cos, k.roll(half, -1), sin)
        self.cache[:, kv_heads:, first : first + self.sinks] = self.sink_kv[:, kv_heads:]

    @torch.no_grad()
    def step(self, token: int) -> Tensor:
        """Runs one token and returns the logits after it [vocab], in the products' dtype."""
        kv_heads, eps = self.config.kv_heads, self.config.norm_eps
        row = self._prepare()
        assert self.rotations is not None
        now = self.now
        now.cos, now.sin = self.rotations[0][row], self.rotations[1][row]
        slot, self.end = self.end, self.end + 1
        first = self.end - min(self.position + 1, self.seen, self.end)
        if self.sinks and self.position >= self.seen:
            self._put_sinks(row, first)
        now.newest = self.cache[:, :, slot].unbind(0)
        visible = self.cache[:, :, first : self.end]
        now.keys, now.values = visible[:, None, :kv_heads].unbind(0), visible[:, None, kv_heads:].unbind(0)
        x = walk(self.model.embed.weight[token : token + 1], self.sub_layers, _KERNELS, eps)
        self.position += 1
        if self.position == self.sinks:
            self.sink_kv = self.cache[:, :, self.end - self.sinks : self.end].clone()
        return self.model.logits(x, _KERNELS)[0]
