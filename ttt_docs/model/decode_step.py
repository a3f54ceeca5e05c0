"""One token of each sequence at a time: what `Decoder.run` computes, in few operations.

At few tokens a product takes about as long as its weights take to come from memory. So sequences that are written
together cost little more than one, and what counts is everything around the products: rotations are computed for all
blocks at once, keys and values of all blocks live in one buffer, and sinks stand in that buffer right before the
window, so that attention is a single call. All sequences end at the same slot of the buffer, whatever their lengths.
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


class _SingleTokens(Kernels):
    """The operations on rows [sequences, dim], one token each, in as few calls as possible."""

    name = "single tokens"

    @staticmethod
    def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, eps)

    @staticmethod
    def swiglu(x: Tensor, w13: Tensor, w2: Tensor) -> Tensor:
        gate, up = F.linear(x, w13).chunk(2, -1)
        return F.linear(F.silu(gate).mul_(up), w2)


_KERNELS = _SingleTokens()


class _Now:
    """What the blocks' attention takes of one step. Attentions hold this and not the `TokenSteps` that holds them, so
    that its buffer is freed with it."""

    cos: Tensor  # [sequences, 1, head_dim], as sin
    sin: Tensor
    newest: Sequence[Tensor]  # of each block, where the newest keys and values go
    keys: Sequence[Tensor]  # of each block, all that the tokens see
    values: Sequence[Tensor]
    hidden: Tensor | None  # [sequences, 1, 1, keys], added to scores: -inf where a sequence has no token


class TokenSteps:
    """Goes on from where sequences were read to, one token of each at a time. The caches stay as they were.

    Sequences may have lengths of their own: caches then hold padding after the shorter ones.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: Decoder,
        caches: Sequence[LayerCache],
        fast: Sequence[PrimeWeights] | None,
        positions: Sequence[int],
    ) -> None:
        """`positions` are the numbers of tokens before, of each sequence in the caches. `fast` is as for `Decoder.run`:
        of one document, whose memory all sequences go on from."""
        self.model, self.positions = model, list(positions)
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
        longest, count = max(self.positions), len(self.positions)
        assert count == 1 or min(self.positions) >= self.sinks, "a sequence must reach beyond the sinks"
        held = self.end = min(longest, self.seen - 1)
        # Keys (rotated), then values, of every block: [blocks, sequences, 2 * kv_heads, slots, head_dim]. The slot
        # before `end` is the newest tokens'.
        self.cache = torch.zeros(
            config.blocks,
            count,
            2 * config.kv_heads,
            held + ROOM,
            config.head_dim,
            dtype=self.dtype,
            device=self.device,
        )
        self.sink_kv = self.cache[:, :, :, :0]
        if self.sinks and held >= self.sinks:
            kept = [cache.sink_kv for cache in caches]
            self.sink_kv = torch.stack([torch.cat(kv, 1) for kv in kept if kv is not None])
        for row, position in enumerate(self.positions):
            padding = longest - position
            windows = [cache.kept(padding) for cache in caches]
            within = torch.stack([torch.cat([part[row] for part in kv]) for kv in windows if kv is not None])
            own = min(position, held)
            within = within[:, :, : within.shape[2] - padding][:, :, -own:] if own else within[:, :, :0]
            self.cache[:, row, :, held - within.shape[2] : held] = within
            missing = own - within.shape[2]
            if missing and self.sink_kv.shape[3]:
                self.cache[:, row, :, held - own : held - own + missing] = self.sink_kv[:, row, :, :missing]
        self.rotations: tuple[Tensor, Tensor] | None = None
        self.sink_rotations: tuple[Tensor, Tensor] | None = None
        self.rotations_from = 0

    def of(self, rows: Sequence[int]) -> TokenSteps:
        """An independent one of some of the sequences."""
        other = object.__new__(TokenSteps)
        other.__dict__.update(self.__dict__)
        index = torch.tensor(list(rows), device=self.device)
        other.positions = [self.positions[row] for row in rows]
        other.cache, other.sink_kv, other.rotations = self.cache[:, index], self.sink_kv[:, index], None
        other.now = _Now()
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
        """The attention of block `index` for rows x [sequences, dim] of the tokens that `step` has made room for."""
        config, now, precise, own = self.config, self.now, self.wide, self.model.block(index).attention
        heads, kv_heads, head_dim, eps = config.heads, config.kv_heads, config.head_dim, config.norm_eps
        rotated, half, size, group = heads + kv_heads, head_dim // 2, (head_dim,), heads // kv_heads
        wqkv, bias, wo = own.wqkv.weight, own.wqkv.bias, own.wo.weight
        q_norm, k_norm = (own.q_norm.weight, own.k_norm.weight) if config.qk_norm else (None, None)

        def attend(x: Tensor) -> Tensor:
            rows = x.shape[0]
            qkv = F.linear(x, wqkv, bias).view(rows, -1, head_dim)
            qk = qkv[:, :rotated]
            if q_norm is not None:
                q, k = qk[:, :heads], qk[:, heads:]
                qk = torch.cat([F.rms_norm(q, size, q_norm, eps), F.rms_norm(k, size, k_norm, eps)], dim=1)
            wide = qk.to(precise)
            qkv[:, :rotated] = torch.addcmul(wide * now.cos, wide.roll(half, -1), now.sin)
            now.newest[index].copy_(qkv[:, heads:])
            # Queries that share a key head stand as rows of one query: each key is read once.
            q = qkv[:, :heads].view(rows, kv_heads, group, head_dim)
            out = F.scaled_dot_product_attention(q, now.keys[index], now.values[index], now.hidden)
            return F.linear(out.reshape(rows, -1), wo)

        return attend

    def _prepare(self) -> int:
        """Rotations for the next tokens and room for them; the row of these tokens' rotations."""
        row = self.positions[0] - self.rotations_from
        if self.rotations is None or row >= ROOM:
            row, self.rotations_from = 0, self.positions[0]
            firsts = torch.tensor(self.positions, device=self.device)
            ahead = (firsts[:, None] + torch.arange(ROOM, device=self.device)).flatten()

            def tables(positions: Tensor) -> tuple[Tensor, Tensor]:
                cos, sin = rotation(positions, self.model.inverse_frequencies, self.wide)
                return cos.view(len(firsts), ROOM, 1, -1), sin.view(len(firsts), ROOM, 1, -1)

            self.rotations = tables(ahead)
            if self.sinks:
                self.sink_rotations = tables(ahead - (self.seen - 1))
        if self.end == self.cache.shape[3]:
            held = min(self.end, self.seen - 1)
            self.cache = F.pad(self.cache[:, :, :, self.end - held :], (0, 0, 0, ROOM))
            self.end = held
        return row

    def _put_sinks(self, row: int, first: int) -> None:
        """Puts the sinks right before the window of sequences whose window has left the first tokens, with the angle
        they have there."""
        assert self.sink_rotations is not None
        kv_heads, half = self.config.kv_heads, self.config.head_dim // 2
        far = [i for i, position in enumerate(self.positions) if position >= self.seen]
        rows: list[int] | slice = slice(None) if len(far) == len(self.positions) else far
        cos, sin = self.sink_rotations[0][rows, row, None], self.sink_rotations[1][rows, row, None]
        own = self.sink_kv[:, rows]
        k = own[:, :, :kv_heads].to(self.wide)
        self.cache[:, rows, :kv_heads, first : first + self.sinks] = torch.addcmul(k * cos, k.roll(half, -1), sin).to(
            self.dtype
        )
        self.cache[:, rows, kv_heads:, first : first + self.sinks] = own[:, :, kv_heads:]

    def _hidden(self, first: int) -> Tensor | None:
        """What hides the slots from `first` on that hold no token of a sequence; None where all hold one."""
        lengths = [min(position + 1, self.seen, self.end) for position in self.positions]
        if min(lengths) == self.end - first:
            return None
        begin = torch.tensor([self.end - first - length for length in lengths], device=self.device)
        hidden = torch.arange(self.end - first, device=self.device) < begin[:, None]
        return torch.zeros(hidden.shape, dtype=self.dtype, device=self.device).masked_fill_(hidden, float("-inf"))[
            :, None, None
        ]

    @torch.no_grad()
    def step(self, tokens: Sequence[int]) -> Tensor:
        """Runs one token of each sequence and returns the logits after it [sequences, vocab]."""
        kv_heads, eps = self.config.kv_heads, self.config.norm_eps
        row = self._prepare()
        assert self.rotations is not None
        now = self.now
        now.cos, now.sin = self.rotations[0][:, row], self.rotations[1][:, row]
        slot, self.end = self.end, self.end + 1
        longest = max(self.positions)
        first = self.end - min(longest + 1, self.seen, self.end)
        if self.sinks and longest >= self.seen:
            self._put_sinks(row, first)
        now.hidden = self._hidden(first)
        now.newest = self.cache[:, :, :, slot].unbind(0)
        visible = self.cache[:, :, :, first : self.end]
        now.keys, now.values = visible[:, :, :kv_heads].unbind(0), visible[:, :, kv_heads:].unbind(0)
        x = walk(
            F.embedding(torch.tensor(tokens, device=self.device), self.model.embed.weight),
            self.sub_layers,
            _KERNELS,
            eps,
        )
        self.positions = [position + 1 for position in self.positions]
        if self.positions[0] == self.sinks:
            self.sink_kv = self.cache[:, :, :, self.end - self.sinks : self.end].clone()
        return self.model.logits(x, _KERNELS)
