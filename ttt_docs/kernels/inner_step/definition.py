"""Steps 4 and 5 of the inner loop (docs/method.md section 3): clip the gradient, and step along it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ttt_docs.kernels.inner_step.layout import FastLayout, PrimeWeights, joined


class Rule(NamedTuple):
    """How a gradient becomes a step."""

    name: str = "sgd"  # sgd, normalized or balanced
    rate: float = 1.0
    clip: float = 1.0  # limit of the global norm, for `sgd`; 0 switches it off


class Step(NamedTuple):
    """One update of the fast weights of every document."""

    fast: Tensor  # [batch, n], float32 (or float64), after the step
    products: Tensor  # [batch, n], the same in the products' dtype
    grad_norm: Tensor  # [batch], the gradient's global norm before clipping
    clip: Tensor  # [batch], the factor of the clip (1 where it did not bind, or the rule has none)
    before: Tensor  # [batch, n], the fast weights before the step
    addresses: Tensor | None = None  # of the gradients, where a kernel finds them by a table; for CUDA graphs


class Balance(NamedTuple):
    """What the rule `balanced` multiplies a gradient [batch, rows, columns] with: each entry is divided by the root of
    its row's and its column's root mean square, so that no few rows or columns take the whole step."""

    rows: Tensor  # [batch, rows]
    columns: Tensor  # [batch, columns]

    @classmethod
    def of(cls, row_squares: Tensor, column_squares: Tensor) -> Balance:
        """From the mean squares of rows and columns. Zeros stay zeros, and 1 is a factor that can be differentiated."""
        return cls(*(torch.where(mean > 0, mean, 1.0).pow(-0.25) for mean in (row_squares, column_squares)))

    def __call__(self, grad: Tensor) -> Tensor:
        return grad * self.rows[:, :, None] * self.columns[:, None, :]


def balanced(grad: Tensor) -> Tensor:
    """The balanced gradient [batch, rows, columns]."""
    squares = grad.square()
    return Balance.of(squares.mean(dim=2), squares.mean(dim=1))(grad)


def updated(
    fast: Tensor, grad: Tensor, layout: FastLayout, rule: Rule, rates: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition, differentiable any number of times: fast weights after a step, gradient norm and clip [batch].

    fast, grad [batch, n]; `rates` [3 * blocks] multiplies the learning rate, for w1, w2, w3 of each block.
    """
    norms = _norms(layout.matrices(grad))
    grad_norm = global_norm(norms)
    if rule.name == "balanced":
        matrices = [balanced(matrix) for matrix in layout.matrices(grad)]
        grad, norms = layout.join(matrices), _norms(matrices)
    clip, sizes = step_sizes(grad_norm, norms, rule, rates)
    apart = (3 * layout.blocks, layout.matrix)
    after = torch.addcmul(fast.unflatten(1, apart), grad.unflatten(1, apart), layout.per_matrix(-sizes))
    return after.flatten(1), grad_norm, clip


def global_norm(norms: Tensor) -> Tensor:
    """[batch], from the norms [matrices, batch]."""
    return torch.linalg.vector_norm(norms, dim=0)


def step_sizes(grad_norm: Tensor, norms: Tensor, rule: Rule, rates: Tensor | None) -> tuple[Tensor, Tensor]:
    """The clip [batch], and what each matrix's gradient is multiplied by [matrices, batch]; norms likewise."""
    clip = torch.ones_like(grad_norm)
    if rule.name == "sgd":  # docs/method.md section 3: g *= min(1, clip / ||g||), then W - lr * g
        if rule.clip > 0:
            clip = rule.clip / grad_norm.clamp_min(rule.clip)
        factors = clip.expand_as(norms)
    else:  # docs/method.md section 6: each matrix takes a step of norm lr. Without a gradient, 1 can be differentiated.
        factors = 1 / torch.where(norms > 0, norms, 1.0)
    if rates is None:
        rates = grad_norm.new_ones(len(norms))
    return clip, factors * (rule.rate * rates)[:, None]


def inner_step_reference(
    fast: Tensor,
    grads: Sequence[PrimeWeights],
    rule: Rule,
    rates: Tensor | None,
    dtype: torch.dtype,
    into: tuple[Tensor, Tensor] | None = None,
    table: Tensor | None = None,
) -> Step:
    """One step from gradients of any dtype, and the weights after it in `dtype` for the products. `into` takes both
    tensors of weights; `table` is for kernels that need one (`inner_step.triton`)."""
    after, grad_norm, clip = updated(fast, joined(grads).to(fast.dtype), FastLayout.of(grads), rule, rates)
    products = after.to(dtype)
    if into is not None:
        after, products = into[0].copy_(after), into[1].copy_(products)
    return Step(after, products, grad_norm, clip, fast)


def undo_step_reference(step: Step, accepted: Tensor) -> Step:
    """The step, taken back for documents that are False in `accepted` bool [batch]."""
    if bool(accepted.all()):  # as nearly always: nothing to copy
        return step
    fast = torch.where(accepted[:, None], step.fast, step.before)
    return step._replace(fast=fast, products=fast.to(step.products.dtype))


def step_direction_reference(
    asked: Tensor, grads: Sequence[PrimeWeights], rule: Rule, rates: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradient for `grads` [batch, n], in their dtype, and for `rates`, given the one for the weights that a step
    makes with them: `asked` [batch, n]."""
    with torch.enable_grad():
        leaf, own_rates = joined(grads).to(asked.dtype).requires_grad_(), rates.detach().requires_grad_()
        after, _, _ = updated(torch.zeros_like(asked), leaf, FastLayout.of(grads), rule, own_rates)
        of_grads, of_rates = torch.autograd.grad(after, [leaf, own_rates], asked)
    return of_grads.to(grads[0].w2.dtype), of_rates


def _norms(matrices: Sequence[Tensor]) -> Tensor:
    return torch.stack([torch.linalg.vector_norm(matrix, dim=(1, 2)) for matrix in matrices])
