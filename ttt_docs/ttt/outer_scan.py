"""The outer loop chunk by chunk: its equations (`outer_loop`) with little memory, forward and backward.

The forward pass reads a sequence as `ReadingState` does: for each chunk a loss l_c, the inner gradient g_c and a step.
It keeps the suffix's keys and values, and each g_c in the products' dtype. The fast weights are not kept: W_c follows
from W_c+1 and g_c. The rest is computed again in the backward pass (activation checkpointing). `logarithmic` keeps a
few fast weights in place of the g_c.

The backward pass goes from the last chunk to the first. D_c is dL/dW_c, and s(g) is what the step subtracts:

    (5)  v   = - (ds/dg_c)^T D_c+1                           the direction; the clip's own gradient is in it
    (6)  D_c = D_c+1 + d(l_c / n + <g_c, v>) / dW_c          n: all chunks of the batch
    (7)  dL/dS += d(l_c / n + <g_c, v>) / dS                 S also: hidden states, keys and values of earlier chunks

<g_c, v> is the derivative of l_c along v (jvp). Kernels with a `jvp` backend compute it in one forward pass, and its
gradient in one backward pass; with kernels that are differentiable twice, g_c itself is differentiated.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ttt_docs.kernels.backends import Kernels
from ttt_docs.kernels.inner_step.layout import PrimeWeights
from ttt_docs.kernels.workspace import wide
from ttt_docs.model.cache import LayerCache
from ttt_docs.model.config import ModelConfig
from ttt_docs.ttt.inner_loop import InnerLoop, Weights, chunk_loss, rule_of
from ttt_docs.ttt.recompute import add_gradients, gradients

#: Chunks between two fast weights that `logarithmic` keeps at the finest level.
SEGMENT = 4


def scan_updates(
    loop: InnerLoop, x: Tensor, targets: Tensor, fast: Tensor, second_order: bool, logarithmic: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean loss (differentiable), then for the record losses and inner gradient norms [batch, chunks] and token losses
    [batch, tokens].

    x [batch, tokens, dim] has been through the attention of the first suffix block; targets [batch, tokens]; fast
    [batch, n]. Without `second_order`, what earlier chunks left counts as constants.
    """
    scan = _Scan(loop, x.detach(), targets, second_order, logarithmic)
    return _ThroughUpdates.apply(scan, x, loop.rates, fast, *scan.parameters)


def names_above(config: ModelConfig, names: Iterable[str]) -> list[str]:
    """Those of `names` that are used above the attention of the first suffix block, the head's left out."""
    first = config.prefix_blocks
    below = (f"blocks.{first}.attention.", f"blocks.{first}.attention_norm.", f"blocks.{first}.attention_post_norm.")
    above = ("final_norm.", *(f"blocks.{i}." for i in config.suffix))
    return [name for name in names if name.startswith(above) and not name.startswith(below)]


class _ChunkCache(LayerCache):
    """What one chunk sees of the chunks before it, and afterwards its own keys and values in `newest`.

    `past` are keys, sink keys, values, sink values, [batch, kv_heads, cached, head_dim] each. If they ask for
    gradient, what `extend` returns does too. Otherwise all of it is constant (see `CpuKernels`).
    """

    def __init__(self, window: int, past: Sequence[Tensor]) -> None:
        super().__init__(window, differentiable=True)
        self.past_k, sink_k, self.past_v, sink_v = past
        self.sink_kv = sink_k, sink_v

    def extend(self, k: Tensor, v: Tensor, commit: bool = True) -> tuple[Tensor, Tensor]:
        self.newest = k, v
        if not self.past_k.requires_grad:
            k, v = k.detach(), v.detach()
        return torch.cat([self.past_k, k], dim=2), torch.cat([self.past_v, v], dim=2)


class _Gradients:
    """The gradient of the whole loss, as far as it has been summed."""

    def __init__(self, scan: _Scan, fast: Tensor, x_learns: bool) -> None:
        self.fast = torch.zeros_like(fast)  # D_c [batch, n], for the chunk last looked at
        self.x = torch.zeros_like(scan.x) if x_learns else None
        self.stored, self.slow = (
            [torch.zeros_like(t, dtype=wide(t.dtype)) for t in part] for part in (scan.stored, scan.parameters)
        )
        self.rates = torch.zeros_like(scan.rates)


class _Scan:
    """A batch of sequences on their way through the suffix: what stays the same while chunk follows chunk."""

    def __init__(self, loop: InnerLoop, x: Tensor, targets: Tensor, second_order: bool, logarithmic: bool) -> None:
        assert loop.rates is not None
        self.model, self.reading, self.kernels, self.rates = loop.model, loop.reading, loop.kernels, loop.rates.detach()
        self.x, self.targets, self.second_order, self.logarithmic = x, targets, second_order, logarithmic
        model, config, kernels = loop.model, loop.model.config, loop.kernels
        self.above = range(config.prefix_blocks + 1, config.blocks)  # blocks whose attention depends on fast weights
        self.chunks = x.shape[1] // loop.reading.chunk
        self.weight = 1 / (len(x) * self.chunks)  # of one chunk's loss in the whole
        #: The slow weights that are trained and used above the attention of the first suffix block.
        names = [name for name, p in model.named_parameters() if p.requires_grad and ".prime_mlp." not in name]
        head = [model.head_weight] if model.head_weight.requires_grad else []
        self.parameters = [*(model.get_parameter(name) for name in names_above(config, names)), *head]
        #: Keys and values of all tokens [batch, kv_heads, tokens, head_dim], of each block in turn.
        self.attending = self.above if model.attends else range(0)
        shape = (len(x), config.kv_heads, x.shape[1], config.head_dim)
        self.stored = [x.new_zeros(shape) for _ in self.attending for _ in "kv"]
        #: For passes in which only fast weights learn: with a constant head, the loss computes its gradient at once.
        cross_entropy = kernels.linear_cross_entropy
        self.reading_kernels = kernels.replace(
            linear_cross_entropy=lambda x, head, *rest: cross_entropy(x, head.detach(), *rest)
        )

    def tokens(self, chunk: int) -> slice:
        return slice(chunk * self.reading.chunk, (chunk + 1) * self.reading.chunk)

    def own(self, stored: list[Tensor], chunk: int) -> list[Tensor]:
        """Views of `stored` (keys and values, or gradients for them): the chunk's own."""
        return [kv[:, :, self.tokens(chunk)] for kv in stored]

    def past(self, stored: list[Tensor], chunk: int) -> list[Tensor]:
        """Views of `stored`: what the chunk sees of the chunks before, as `_ChunkCache` takes it."""
        start = self.tokens(chunk).start
        window, sinks = slice(max(0, start - self.reading.window + 1), start), slice(self.reading.sinks)
        return [kv[:, :, part] for kv in stored for part in (window, sinks)]

    def predict(
        self, chunk: int, x: Tensor, weights: Sequence[PrimeWeights], past: Sequence[Tensor], kernels: Kernels
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Losses [batch, chunk], their mean [batch], and the chunk's own keys and values."""
        model, reading = self.model, self.reading
        caches: list[Any] = [None] * model.config.blocks
        for n, i in enumerate(self.attending):
            caches[i] = _ChunkCache(reading.window, past[4 * n : 4 * n + 4])
        positions = model.positions(self.tokens(chunk).start, reading.chunk, reading.window, reading.sinks)
        x = model.feed_forward(x, self.above.start - 1, weights, kernels)
        x = model.run(x, self.above, positions, caches, weights, kernels)
        targets = self.targets[:, self.tokens(chunk)].repeat(len(x) // len(self.targets), 1)  # twice for a jvp
        nll = model.token_nll(x, targets, kernels)
        loss = chunk_loss(nll, targets, model.config.bos_token_id)
        return nll, loss, [new for i in self.attending for new in caches[i].newest]

    def read(
        self, chunk: int, before: Weights, into: _Gradients | None = None
    ) -> tuple[list[PrimeWeights], Tensor, Tensor]:
        """Predicts a chunk as reading does and stores its keys and values. Returns its inner gradient, its loss
        [batch] and those of its tokens [batch, chunk].

        With `into`, the gradient of the chunk's loss is added there for everything else as well. The keys and values of
        earlier chunks then get gradient too, if updates do.
        """
        weights = self._leaves(before.products)
        x = self.x[:, self.tokens(chunk)].detach().requires_grad_(into is not None and into.x is not None)
        through_past = into is not None and self.second_order
        past = [kv.detach().requires_grad_(through_past) for kv in self.past(self.stored, chunk)]
        slow = [] if into is None else self.parameters
        with torch.enable_grad():
            kernels = self.reading_kernels if into is None else self.kernels
            nll, loss, new = self.predict(chunk, x, weights, past, kernels)
            grads = gradients([loss.sum()], [*_flat(weights), x, *past, *slow])
        for kept, made in zip(self.own(self.stored, chunk), new, strict=True):
            kept.copy_(made.detach())
        if into is not None:
            self._add(chunk, grads, self.weight, into)
        inner = [PrimeWeights(*grads[i : i + 2]) for i in range(0, 2 * len(weights), 2)]
        return inner, loss.detach(), nll.detach()

    def read_back(self, chunk: int, before: Weights, grads: list[PrimeWeights], into: _Gradients) -> None:
        """Equations (5) to (7) for a chunk that was read with the weights `before` and had the inner gradient `grads`;
        `into` holds what later chunks gave."""
        rule, layout, jvp = rule_of(self.reading), self.model.fast_layout, self.kernels.jvp
        direction, of_rates = self.kernels.step_direction(into.fast, grads, rule, self.rates)  # (5)
        into.rates += of_rates
        x = self.x[:, self.tokens(chunk)].detach().requires_grad_(into.x is not None)
        past = [kv.detach().requires_grad_() for kv in self.past(self.stored, chunk)]
        asked = [kv.to(self.x.dtype) for kv in self.own(into.stored, chunk)]
        with torch.enable_grad():
            if jvp is not None:  # everything twice along the batch: values, then derivatives along v
                weights = self._leaves(torch.cat([before.products, direction]))
                inputs = [torch.cat([value, torch.zeros_like(value)]) for value in (x, *past)]
                _, loss, new = self.predict(chunk, inputs[0], weights, inputs[1:], jvp)
                each = torch.ones_like(loss)
                each[: len(self.x)] = self.weight
                outputs = [loss, *new]
                cotangents = [each, *(torch.cat([kv, torch.zeros_like(kv)]) for kv in asked)]
            else:
                weights = self._leaves(before.products)
                _, loss, new = self.predict(chunk, x, weights, past, self.kernels)
                inner = torch.autograd.grad(loss.sum(), _flat(weights), create_graph=True)
                outputs = [loss, *new, *inner]
                cotangents = [torch.full_like(loss, self.weight), *asked, *_flat(layout.views(direction))]
            parts = gradients(outputs, [*_flat(weights), x, *past, *self.parameters], cotangents)
        self._add(chunk, parts, 1.0, into)  # (6), (7)

    def _add(self, chunk: int, parts: Sequence[Tensor | None], factor: float, into: _Gradients) -> None:
        """Adds `factor` times a chunk's gradients: for weights, x, past and parameters, in this order."""
        of_x = None if into.x is None else into.x[:, self.tokens(chunk)]
        of_fast = _flat(self.model.fast_layout.views(into.fast))
        add_gradients([*of_fast, of_x, *self.past(into.stored, chunk), *into.slow], parts, factor)

    def step(self, before: Weights, grads: list[PrimeWeights], sign: int = 1) -> tuple[Weights, Tensor]:
        """The fast weights after a chunk, and the norm [batch] of its gradient; with sign -1 those before it."""
        rule = rule_of(self.reading)
        rule = rule._replace(rate=sign * rule.rate)
        step = self.kernels.inner_step(before.fast, grads, rule, self.rates, self.model.dtype)
        return Weights(step.fast, step.products), step.grad_norm

    def _leaves(self, products: Tensor) -> list[PrimeWeights]:
        views = self.model.fast_layout.views(products)
        return [PrimeWeights(*(w.detach().requires_grad_() for w in block)) for block in views]

    def walk_back(
        self, first: int, last: int, after: Weights, grads: list[list[PrimeWeights]], into: _Gradients
    ) -> None:
        """`read_back` for the chunks first..last - 1, the last one first. `after` are the weights after them. `grads`
        are their inner gradients; the list is emptied."""
        for chunk in reversed(range(first, last)):
            own = grads.pop()
            after, _ = self.step(after, own, -1)
            self.read_back(chunk, after, own, into)

    def walk_back_reading_again(self, first: int, last: int, fast: Weights, into: _Gradients) -> None:
        """The same from `fast` alone, the weights before chunk `first`. The first half is read again to reach the
        second, which is walked back first."""
        if last - first <= SEGMENT:
            grads = []
            for chunk in range(first, last):
                grads.append(self.read(chunk, fast)[0])
                fast, _ = self.step(fast, grads[-1])
            return self.walk_back(first, last, fast, grads, into)
        middle, later = (first + last) // 2, fast
        for chunk in range(first, middle):
            later, _ = self.step(later, self.read(chunk, later)[0])
        self.walk_back_reading_again(middle, last, later, into)
        self.walk_back_reading_again(first, middle, fast, into)


class _ThroughUpdates(torch.autograd.Function):
    """`scan_updates`: only the first result has gradient, for x, the rates, the initial fast weights and the trained
    slow weights, in this order."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, scan: _Scan, x: Tensor, rates: Tensor, start: Tensor, *slow: Tensor
    ) -> tuple[Tensor, ...]:
        learns, kept, record = any(ctx.needs_input_grad), [], []
        into = _Gradients(scan, start, ctx.needs_input_grad[1]) if learns else None
        fast = initial = Weights.of(start.detach(), scan.model.dtype)
        for chunk in range(scan.chunks):
            last = chunk == scan.chunks - 1
            # Nothing after the last chunk learns from its update, so its gradient can be had at once; so can every
            # chunk's where updates count as constants.
            grads, loss, nll = scan.read(chunk, fast, into if last or not scan.second_order else None)
            after, norm = scan.step(fast, grads)
            record.append((loss, norm, nll))
            if not last:
                fast = after
                if learns and scan.second_order and not scan.logarithmic:
                    kept.append(grads)
        ctx.scan, ctx.into, ctx.kept, ctx.fast = scan, into, kept, initial if scan.logarithmic else fast
        losses, norms, nlls = zip(*record, strict=True)
        by_chunk, norm, nll = torch.stack(losses, dim=1), torch.stack(norms, dim=1), torch.cat(nlls, dim=1)
        ctx.mark_non_differentiable(by_chunk, norm, nll)
        return by_chunk.mean(), by_chunk, norm, nll

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        scan, into = ctx.scan, ctx.into
        if scan.second_order and scan.logarithmic:
            scan.walk_back_reading_again(0, scan.chunks - 1, ctx.fast, into)
        elif scan.second_order:
            scan.walk_back(0, scan.chunks - 1, ctx.fast, ctx.kept, into)
        of_x = None if into.x is None else into.x * grad.to(into.x.dtype)
        of_slow = ((total * grad).to(w.dtype) for total, w in zip(into.slow, scan.parameters, strict=True))
        return None, of_x, into.rates * grad, into.fast * grad, *of_slow


def _flat(weights: Sequence[PrimeWeights]) -> list[Tensor]:
    return [w for block in weights for w in block]
