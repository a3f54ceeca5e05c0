"""The updates of a tiny model: everything is kept for plain autograd, and a chunk's step is compiled.

A step of a tiny model on a CPU is hundreds of operations on tensors of a few kilobytes: calling them costs more than
computing them. With one suffix block, a chunk's step has no attention in it: the block's own comes before its prime MLP
and runs ahead of the updates. So the step is a pure function. torch.compile makes one program of it, inner gradient
included, and one of its gradient. This takes some twenty seconds at the first step, and a C++ compiler.
"""

from __future__ import annotations

import os
import shutil

import torch
from torch import Tensor

from ttt_docs.errors import UsageError
from ttt_docs.kernels.inner_step.definition import updated
from ttt_docs.kernels.inner_step.layout import PrimeWeights, joined
from ttt_docs.ttt.inner_loop import InnerLoop, chunk_loss, rule_of


def compiled_updates(
    loop: InnerLoop, x: Tensor, targets: Tensor, fast: Tensor, second_order: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same as `outer_scan.scan_updates`. The kernels must be differentiable twice.

    Raises UsageError where there is no C++ compiler.
    """
    if x.device.type == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is None:
        raise UsageError("recompute 'compiled' needs a C++ compiler, g++ or the one in CXX: or set it to 'none'")
    fast, chunk, record = fast.contiguous(), loop.reading.chunk, []  # one layout for all chunks: one program
    for here, wanted in zip(x.split(chunk, dim=1), targets.split(chunk, dim=1), strict=True):
        fast, *measured = _step(loop, here.contiguous(), wanted.contiguous(), fast, second_order)
        record.append(measured)
    losses, norms, nlls = zip(*record, strict=True)
    by_chunk = torch.stack(losses, dim=1)
    return by_chunk.mean(), by_chunk.detach(), torch.stack(norms, dim=1), torch.cat(nlls, dim=1).detach()


@torch.compile(fullgraph=True, dynamic=False)
def _step(
    loop: InnerLoop, x: Tensor, targets: Tensor, fast: Tensor, second_order: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The fast weights after a chunk, its loss [batch], its gradient's norm [batch], and its tokens' losses."""
    model = loop.model

    def predict(weights: PrimeWeights) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        out = model.feed_forward(x, model.config.prefix_blocks, [weights], loop.kernels)
        nll = model.token_nll(out, targets, loop.kernels)
        loss = chunk_loss(nll, targets, model.config.bos_token_id)
        return loss.sum(), (loss, nll)

    (weights,) = model.fast_layout.views(fast.to(model.dtype))
    grads, (loss, nll) = torch.func.grad(predict, has_aux=True)(weights)
    grad = joined([PrimeWeights(*grads)]).to(fast.dtype)
    if not second_order:
        grad = grad.detach()
    after, _, _ = updated(fast, grad, model.fast_layout, rule_of(loop.reading), loop.rates)
    # Inductor's gradient is wrong if the step's own norm is an output as well (seen with torch 2.13; a test holds it).
    return after, loss, grad.detach().square().sum(dim=1).sqrt(), nll
