"""The updates of a tiny model: everything is kept for plain autograd, and a chunk's step is compiled.

A step of a tiny model on a CPU is hundreds of operations on tensors of a few kilobytes: their calls cost more than
their numbers. With one suffix block a chunk touches no attention (its own comes before the prime MLP, and runs ahead of
the updates), so the step is a pure function: torch.compile makes one program of it, inner gradient included, and one
of its gradient. That takes some twenty seconds at the first step, and a C++ compiler.
"""

from __future__ import annotations

import os
import shutil

import torch
from torch import Tensor

from ttt_docs.errors import UsageError
from ttt_docs.kernels.backends import Kernels
from ttt_docs.kernels.inner_step.definition import updated
from ttt_docs.kernels.inner_step.layout import PrimeWeights, joined
from ttt_docs.model.config import ReadingConfig
from ttt_docs.model.decoder import Decoder
from ttt_docs.ttt.inner_loop import chunk_loss, rule_of


def compiled_updates(
    model: Decoder,
    x: Tensor,
    targets: Tensor,
    fast: Tensor,
    reading: ReadingConfig,
    second_order: bool,
    rates: Tensor,
    kernels: Kernels,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `outer_scan.scan_updates` gives: x [batch, tokens, dim] has been through the attention of the suffix block;
    targets [batch, tokens]; rates as `outer_loss` has them. The kernels must be differentiable twice.

    Raises UsageError where there is no C++ compiler.
    """
    if x.device.type == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is None:
        raise UsageError("recompute 'compiled' needs a C++ compiler, g++ or the one in CXX: or set it to 'none'")
    own = fast.contiguous()  # one layout for all chunks: one program
    losses, norms, nlls = [], [], []
    for here, wanted in zip(x.split(reading.chunk, dim=1), targets.split(reading.chunk, dim=1), strict=True):
        own, loss, norm, nll = _step(
            model, here.contiguous(), wanted.contiguous(), own, reading, second_order, rates, kernels
        )
        losses.append(loss)
        norms.append(norm.detach())
        nlls.append(nll.detach())
    stacked = torch.stack(losses, dim=1)
    return stacked.mean(), stacked.detach(), torch.stack(norms, dim=1), torch.cat(nlls, dim=1)


@torch.compile(fullgraph=True, dynamic=False)
def _step(
    model: Decoder, x: Tensor, targets: Tensor, fast: Tensor, reading: ReadingConfig, second_order: bool,
    rates: Tensor, kernels: Kernels,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The fast weights after a chunk; its loss [batch], gradient norm [batch] and token losses with those of before."""

    def predict(weights: PrimeWeights) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        out = model.feed_forward(x, model.config.prefix_blocks, [weights], kernels)
        nll = model.token_nll(out, targets, kernels)
        loss = chunk_loss(nll, targets, model.config.bos_token_id)
        return loss.sum(), (loss, nll)

    (weights,) = model.fast_layout.views(fast.to(model.dtype))
    grads, (loss, nll) = torch.func.grad(predict, has_aux=True)(weights)
    grad = joined([PrimeWeights(*grads)]).to(fast.dtype)
    if not second_order:
        grad = grad.detach()
    after, _, _ = updated(fast, grad, model.fast_layout, rule_of(reading), rates)
    # Inductor's gradient is wrong if the step's own norm is an output as well (seen with torch 2.13; a test holds it).
    return after, loss, grad.detach().square().sum(dim=1).sqrt(), nll
