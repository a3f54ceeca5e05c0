"""The scan over chunks: each is predicted with the fast weights that the one before left; and its gradient.

Forward, a sequence is read as `ReadingState` reads it: for each chunk a loss, the inner gradient g and a step. What is
kept is the suffix's keys and values and, for each chunk, its g in the products' dtype, with which the fast weights can
be walked back: half of the fast weights' own size in bfloat16. `logarithmic` keeps a few states instead.

Backward goes from the last chunk to the first. The gradient L for the fast weights that a chunk left turns into the one
for those it was given: the step W' = W - lr clip(g) g hands L to W as it is, and to g the direction v that the step's
own gradient makes of L. So the chunk adds the gradient of `loss + <g, v>` (METHOD section 4). `<g, v>` is the loss's
derivative along v: kernels on pairs make it in one forward pass, and its gradient in one backward pass; for kernels
that are differentiable twice g itself is differentiated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ttt_docs.kernels.backends import Kernels
from ttt_docs.kernels.inner_step.layout import PrimeWeights, joined
from ttt_docs.kernels.workspace import wide
from ttt_docs.model.config import ModelConfig, ReadingConfig
from ttt_docs.model.decoder import Decoder
from ttt_docs.ttt.inner_loop import Weights, chunk_loss, rule_of
from ttt_docs.ttt.sums import Sums
from ttt_docs.ttt.tape import ChunkCache, Tape

#: Chunks between two fast weights that `logarithmic` keeps at the finest level.
SEGMENT = 4


class Learned(NamedTuple):
    """What one chunk said."""

    nll: Tensor  # [batch, chunk], nats
    loss: Tensor  # [batch]
    grads: list[PrimeWeights]  # its inner gradient


class Gradients:
    """The gradient of the whole loss, as far as it has been collected."""

    def __init__(self, scan: Scan) -> None:
        self.fast: Tensor | None = None  # [batch, n], for the fast weights before the chunk last looked at; None: zero
        self.x = torch.zeros_like(scan.x) if scan.x_learns else None
        self.tape = scan.new_tape(wide(scan.x.dtype))  # for keys and values, from the chunks that saw them
        self.slow = Sums(scan.parameters)
        self.rates = torch.zeros_like(scan.rates)


class Scan:
    """A batch of sequences on their way through the suffix: what stays the same while chunk follows chunk."""

    def __init__(
        self,
        model: Decoder,
        reading: ReadingConfig,
        kernels: Kernels,
        x: Tensor,
        targets: Tensor,
        rates: Tensor,
        x_learns: bool,
    ) -> None:
        """x [batch, tokens, dim] has been through the attention of the first suffix block; targets [batch, tokens];
        rates as `outer_loss` has them. `x_learns`: the gradient for x is wanted."""
        self.model, self.reading, self.kernels = model, reading, kernels
        #: For passes in which only fast weights learn. A loss whose head is a constant makes its gradient at once.
        self.reading_kernels = kernels.replace(linear_cross_entropy=_with_constant_head(kernels.linear_cross_entropy))
        self.x, self.targets, self.rates, self.x_learns = x, targets, rates, x_learns
        self.above = range(model.config.prefix_blocks + 1, model.config.blocks)
        self.attending = self.above if model.attends else range(0)
        self.parameters = trained_above(model)
        self.chunks = x.shape[1] // reading.chunk
        self.weight = 1 / (x.shape[0] * self.chunks)  # of one chunk's loss in the whole
        self.tape = self.new_tape(x.dtype)

    def new_tape(self, dtype: torch.dtype) -> Tape:
        config = self.model.config
        shape = (self.x.shape[0], config.kv_heads, self.x.shape[1], config.head_dim)
        return Tape(self.reading, self.attending, self.x.new_zeros(shape, dtype=dtype))

    def tokens(self, chunk: int) -> slice:
        return slice(chunk * self.reading.chunk, (chunk + 1) * self.reading.chunk)

    def predict(
        self, chunk: int, x: Tensor, weights: Sequence[PrimeWeights], past: Sequence[Tensor], kernels: Kernels
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Losses [batch, chunk] and their mean [batch], and the chunk's own keys and values in the tape's order."""
        model, reading = self.model, self.reading
        caches: list[Any] = [None] * model.config.blocks
        for n, i in enumerate(self.attending):
            window_k, window_v, sink_k, sink_v = past[4 * n : 4 * n + 4]
            caches[i] = ChunkCache(reading.window, (window_k, window_v), (sink_k, sink_v))
        place = model.place(self.tokens(chunk).start, reading.chunk, reading.window, reading.sinks)
        x = model.feed_forward(x, self.above.start - 1, weights, kernels)
        x = model.run(x, self.above, place, caches, weights, kernels)
        targets = self.targets[:, self.tokens(chunk)].repeat(len(x) // len(self.targets), 1)  # twice for pairs
        nll = model.token_nll(x, targets, kernels)
        loss = chunk_loss(nll, targets, model.config.bos_token_id)
        return nll, loss, [new for i in self.attending for new in caches[i].newest]

    def learn(self, chunk: int, before: Weights, into: Gradients | None = None, through_past: bool = False) -> Learned:
        """Predicts a chunk as reading does and takes its inner gradient; its keys and values go onto the tape.

        With `into`, the chunk's loss is differentiated with respect to everything else as well; the keys and values of
        earlier chunks count as constants unless `through_past`.
        """
        here = self.tokens(chunk)
        weights = self._leaves(before.products)
        flat_weights = [w for block in weights for w in block]
        x = self.x[:, here].detach().requires_grad_(into is not None and self.x_learns)
        past = [p.detach().requires_grad_(through_past) for p in self.tape.past(here.start)]
        with torch.enable_grad():
            nll, loss, new = self.predict(
                chunk, x, weights, past, self.reading_kernels if into is None else self.kernels
            )
            inputs = flat_weights if into is None else [*flat_weights, *self._inputs(x, past)]
            grads = torch.autograd.grad(loss.sum(), inputs, allow_unused=into is not None)
        for kept, made in zip(self.tape.chunk(here.start), new, strict=True):
            kept.copy_(made.detach())
        inner = _paired(grads[: len(flat_weights)])
        if into is not None:
            self._collect(chunk, inner, grads[len(flat_weights) :], self.weight, into)
        return Learned(nll.detach(), loss.detach(), inner)

    def learn_through(self, chunk: int, before: Weights, grads: list[PrimeWeights], into: Gradients) -> None:
        """The outer gradient of a chunk and of the step made from its inner gradient `grads`, added `into` what the
        later chunks gave."""
        here = self.tokens(chunk)
        direction = self._direction(grads, into)
        asked = [a.to(self.x.dtype) for a in into.tape.chunk(here.start)]
        x = self.x[:, here].detach().requires_grad_(self.x_learns)
        past = [p.detach().requires_grad_() for p in self.tape.past(here.start)]
        jvp = self.kernels.jvp
        with torch.enable_grad():
            if jvp is not None:
                weights = self._leaves(torch.cat([before.products, direction]))
                seen = [torch.cat([p, torch.zeros_like(p)]) for p in past]
                _, loss, new = self.predict(chunk, torch.cat([x, torch.zeros_like(x)]), weights, seen, jvp)
                each = torch.ones_like(loss)
                each[: len(each) // 2] = self.weight
                outputs = [loss, *new]
                cotangents = [each, *(torch.cat([a, torch.zeros_like(a)]) for a in asked)]
                flat_weights = [w for block in weights for w in block]
            else:
                weights = self._leaves(before.products)
                flat_weights = [w for block in weights for w in block]
                _, loss, new = self.predict(chunk, x, weights, past, self.kernels)
                inner = torch.autograd.grad(loss.sum(), flat_weights, create_graph=True)
                outputs = [loss, *new, *inner]
                along = [v for block in self.model.fast_layout.views(direction) for v in block]
                cotangents = [torch.full_like(loss, self.weight), *asked, *along]
            parts = torch.autograd.grad(outputs, [*flat_weights, *self._inputs(x, past)], cotangents, allow_unused=True)
        of_weights = [part[: len(self.x)] for part in parts[: len(flat_weights)]]
        self._collect(chunk, _paired(of_weights), parts[len(flat_weights) :], 1.0, into)

    def _inputs(self, x: Tensor, past: Sequence[Tensor]) -> list[Tensor]:
        return [*([x] if x.requires_grad else []), *(p for p in past if p.requires_grad), *self.parameters]

    def _collect(
        self, chunk: int, of_fast: list[PrimeWeights], rest: Sequence[Tensor | None], factor: float, into: Gradients
    ) -> None:
        """Adds `factor` times a chunk's gradients; `rest` is in the order of `_inputs`."""
        here, left = self.tokens(chunk), list(rest)
        if into.fast is None:
            grad = joined(of_fast)
            into.fast = grad.to(wide(grad.dtype)) * factor
        else:
            for sums, block in zip(self.model.fast_layout.views(into.fast), of_fast, strict=True):
                for total, part in zip(sums, block, strict=True):
                    total.add_(part, alpha=factor)
        if into.x is not None:
            of_x = left.pop(0)
            assert of_x is not None
            into.x[:, here] = of_x * factor
        slow = len(self.parameters)
        into.slow.add(left[len(left) - slow :], factor)
        for total_, part_ in zip(into.tape.past(here.start), left[: len(left) - slow], strict=False):
            if part_ is not None:
                total_.add_(part_, alpha=factor)

    def _direction(self, grads: list[PrimeWeights], into: Gradients) -> Tensor:
        """The gradient [batch, n] for `grads`, given the one for the fast weights that a step makes with them."""
        assert into.fast is not None
        direction, of_rates = self.kernels.step_direction(into.fast, grads, rule_of(self.reading), self.rates)
        into.rates += of_rates
        return direction

    def step(self, before: Weights, grads: list[PrimeWeights], sign: int = 1) -> tuple[Weights, Tensor]:
        """The fast weights after a chunk, and the norm [batch] of its gradient; with sign -1 those before it."""
        rule = rule_of(self.reading)
        rule = rule._replace(rate=sign * rule.rate)
        step = self.kernels.inner_step(before.fast, grads, rule, self.rates, self.model.dtype)
        return Weights(step.fast, step.products), step.grad_norm

    def _leaves(self, products: Tensor) -> list[PrimeWeights]:
        views = self.model.fast_layout.views(products)
        return [PrimeWeights(*(w.detach().requires_grad_() for w in block)) for block in views]

    def learn_back(
        self, first: int, last: int, after: Weights, grads: list[list[PrimeWeights]], into: Gradients
    ) -> None:
        """`learn_through` the chunks first..last - 1, last one first; `after` are the weights after them, `grads`
        (which gets empty) their inner gradients."""
        for chunk in reversed(range(first, last)):
            own = grads.pop()
            after, _ = self.step(after, own, -1)
            self.learn_through(chunk, after, own, into)

    def learn_back_again(self, first: int, last: int, fast: Weights, into: Gradients) -> None:
        """The same from `fast`, the weights before chunk `first`, alone: halves are read again, the later one first."""
        if last - first <= SEGMENT:
            grads = []
            for chunk in range(first, last):
                grads.append(self.learn(chunk, fast).grads)
                fast, _ = self.step(fast, grads[-1])
            return self.learn_back(first, last, fast, grads, into)
        middle, later = (first + last) // 2, fast
        for chunk in range(first, middle):
            later, _ = self.step(later, self.learn(chunk, later).grads)
        self.learn_back_again(middle, last, later, into)
        self.learn_back_again(first, middle, fast, into)


class _ThroughUpdates(torch.autograd.Function):
    """Mean loss, losses and gradient norms [batch, chunks], token losses [batch, tokens]; only the first has gradient,
    for x, the rates, the initial fast weights and the trained slow weights, in this order."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        scan: Scan,
        second_order: bool,
        logarithmic: bool,
        x: Tensor,
        rates: Tensor,
        start: Tensor,
        *slow: Tensor,
    ) -> tuple[Tensor, ...]:
        initial = Weights.of(start.detach(), scan.model.dtype)
        learns = any(ctx.needs_input_grad)
        into, fast, kept, nlls, losses, norms = Gradients(scan), initial, [], [], [], []
        for chunk in range(scan.chunks):
            last = chunk == scan.chunks - 1
            # Nothing after the last chunk learns from its update, so its gradient can be had at once; so can every
            # chunk's where updates count as constants.
            at_once = learns and (last or not second_order)
            said = scan.learn(chunk, fast, into if at_once else None, through_past=at_once and second_order)
            after, norm = scan.step(fast, said.grads)
            nlls.append(said.nll)
            losses.append(said.loss)
            norms.append(norm)
            if not last:
                fast = after
                if learns and second_order and not logarithmic:
                    kept.append(said.grads)
        ctx.scan, ctx.into, ctx.kept, ctx.logarithmic = scan, into, kept, logarithmic
        ctx.fast = initial if logarithmic else fast
        ctx.second_order = second_order
        record = torch.stack(losses, dim=1), torch.stack(norms, dim=1), torch.cat(nlls, dim=1)
        ctx.mark_non_differentiable(*record)
        return record[0].mean(), *record

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        scan, into = ctx.scan, ctx.into
        if ctx.second_order and ctx.logarithmic:
            scan.learn_back_again(0, scan.chunks - 1, ctx.fast, into)
        elif ctx.second_order:
            scan.learn_back(0, scan.chunks - 1, ctx.fast, ctx.kept, into)
        assert into.fast is not None
        of_x = None if into.x is None else into.x * grad.to(into.x.dtype)
        return None, None, None, of_x, into.rates * grad, into.fast * grad, *into.slow.result(grad)


def through_updates(
    scan: Scan, x: Tensor, rates: Tensor, fast: Tensor, second_order: bool, logarithmic: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean loss (differentiable), then for the record losses and inner gradient norms [batch, chunks] and token losses
    [batch, tokens]. Without `second_order`, what earlier chunks left counts as constants."""
    return _ThroughUpdates.apply(scan, second_order, logarithmic, x, rates, fast, *scan.parameters)


def trained_above(model: Decoder) -> list[Tensor]:
    """The slow weights that are trained and used above the attention of the first suffix block."""
    names = [name for name, p in model.named_parameters() if p.requires_grad and ".prime_mlp." not in name]
    head = [model.head_weight] if model.head_weight.requires_grad else []
    return [*(model.get_parameter(name) for name in names_above(model.config, names)), *head]


def names_above(config: ModelConfig, names: Iterable[str]) -> list[str]:
    """Those of `names` that are used above the attention of the first suffix block, the head's left out."""
    first = config.prefix_blocks
    below = (f"blocks.{first}.attention.", f"blocks.{first}.attention_norm.", f"blocks.{first}.attention_post_norm.")
    above = ("final_norm.", *(f"blocks.{i}." for i in config.suffix))
    return [name for name in names if name.startswith(above) and not name.startswith(below)]


def _with_constant_head(cross_entropy: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x, head, *rest: cross_entropy(x, head.detach(), *rest)


def _paired(flat: Sequence[Tensor]) -> list[PrimeWeights]:
    return [PrimeWeights(*flat[i : i + 2]) for i in range(0, len(flat), 2)]
