"""The published schedules (METHOD section 4). Steps count from 0; `steps` is the length of the whole run."""

from __future__ import annotations

import math

from ttt_docs.errors import UsageError


def _warm_up_steps(step: int, steps: int, warm_up: float) -> int:
    if not 0 <= step <= steps or steps < 1:
        raise UsageError(f"step {step} is not inside a run of {steps} steps")
    if not 0 <= warm_up < 1:
        raise UsageError(f"the warm-up must be a part of the run, at least 0 and less than 1, not {warm_up}")
    return round(warm_up * steps)


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
