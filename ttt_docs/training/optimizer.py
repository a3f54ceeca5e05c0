"""AdamW and the published schedules (docs/method.md section 4).

Steps of a schedule count from 0; `steps` is the length of the whole run.
"""

from __future__ import annotations

import math

import torch

from ttt_docs.errors import UsageError
from ttt_docs.training.parallel import INNER_LR, TrainedWeights
from ttt_docs.training.recipe import OptimizerRecipe


def optimizer_of(chosen: OptimizerRecipe, weights: TrainedWeights) -> torch.optim.AdamW:
    """AdamW over the masters: matrices decay, norms and inner learning rates do not.

    The learning rate of a group is its `factor` times the schedule's. The state is there from the start, zeros, for
    checkpoints to be loaded into.
    """
    rates = [] if weights.inner_lr is None else [weights.inner_lr]
    others = [master for name, master in weights.masters.items() if name != INNER_LR]
    matrices, vectors = [m for m in others if m.dim() > 1], [m for m in others if m.dim() <= 1]
    faster = (chosen.rates_lr or chosen.lr) / chosen.lr
    groups = [
        {"params": params, "weight_decay": decay, "factor": factor}
        for params, decay, factor in ((matrices, chosen.weight_decay, 1), (vectors, 0.0, 1), (rates, 0.0, faster))
        if params
    ]
    optimizer = torch.optim.AdamW(groups, lr=chosen.lr, betas=(chosen.beta1, chosen.beta2), eps=chosen.eps)
    for master in weights.masters.values():
        moments = {key: torch.zeros_like(master, requires_grad=False) for key in ("exp_avg", "exp_avg_sq")}
        optimizer.state[master] = {"step": torch.zeros(()), **moments}
    return optimizer


def learning_rate(step: int, steps: int, peak: float, final: float = 1e-5, warm_up: float = 0.1) -> float:
    """AdamW's learning rate: 0 at step 0, linearly to `peak` over the first `warm_up` of the run, then a cosine to
    `final` at step `steps`.

    Raises:
        UsageError: a step outside the run, or a warm-up that is not a part of it.
    """
    warm = _warm_up_steps(step, steps, warm_up)
    if step < warm:
        return peak * step / warm
    progress = (step - warm) / (steps - warm)
    return final + (peak - final) * (1 + math.cos(math.pi * progress)) / 2


def inner_lr_scale(step: int, steps: int, start: float = 0.1, warm_up: float = 0.1) -> float:
    """What the inner learning rate is multiplied by: from `start` linearly to 1 over the first `warm_up` of the run.

    Pre-training uses the defaults; extension to longer contexts runs without (`warm_up=0`).

    Raises:
        UsageError: a step outside the run, or a warm-up that is not a part of it.
    """
    warm = _warm_up_steps(step, steps, warm_up)
    return 1.0 if step >= warm else start + (1 - start) * step / warm


def _warm_up_steps(step: int, steps: int, warm_up: float) -> int:
    if not 0 <= step <= steps or steps < 1:
        raise UsageError(f"step {step} is not inside a run of {steps} steps")
    if not 0 <= warm_up < 1:
        raise UsageError(f"the warm-up must be a part of the run, at least 0 and less than 1, not {warm_up}")
    return round(warm_up * steps)
