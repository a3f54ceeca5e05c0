"""AdamW and the published schedules (docs/method.md section 4).

Steps of a schedule count from 0; `steps` is the length of the whole run.
"""

from __future__ import annotations

import math

import torch

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


def learning_rate(chosen: OptimizerRecipe, step: int, steps: int) -> float:
    """AdamW's learning rate: from 0 linearly to `lr` over the warm-up, then along a cosine to `final_lr` at the end."""
    warm = round(chosen.warmup * steps)
    if step < warm:
        return chosen.lr * step / warm
    progress = (step - warm) / (steps - warm)
    return chosen.final_lr + (chosen.lr - chosen.final_lr) * (1 + math.cos(math.pi * progress)) / 2


def inner_lr_scale(chosen: OptimizerRecipe, step: int, steps: int) -> float:
    """What the inner learning rate is multiplied by: it rises linearly to 1 over the inner loop's warm-up."""
    warm, start = round(chosen.inner_warmup * steps), chosen.inner_warmup_from
    return 1.0 if step >= warm else start + (1 - start) * step / warm
