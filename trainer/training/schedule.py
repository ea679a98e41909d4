"""The learning rate as a pure function of the optimizer step: linear warm-up, then half a cosine; or one of timm's."""

import math
from collections.abc import Callable
from functools import partial

from trainer.config.schema import OptimConfig
from trainer.engine.schedules import timm_schedule


def schedule_of(optim: OptimConfig, total_steps: int) -> Callable[[int], float]:
    """The schedule of a recipe: the learning rate with which an optimizer step is taken (the first step is 0).

    Args:
        total_steps: optimizer steps of the whole run.
    """
    lengths = {"warmup_steps": optim.warmup_steps, "total_steps": total_steps, "final_ratio": optim.final_lr_ratio}
    if optim.schedule == "cosine":
        return partial(learning_rate, peak=optim.lr, **lengths)
    return timm_schedule(optim.schedule, peak=optim.lr, **lengths, options=optim.schedule_options)


def learning_rate(step: int, *, peak: float, warmup_steps: int, total_steps: int, final_ratio: float) -> float:
    """The learning rate with which optimizer step `step` is taken (the first step is 0).

    Warm-up is a line through peak / (warmup_steps + 1) at step 0 and `peak` at step `warmup_steps`, so that no step is
    wasted on a rate of 0. From there half a cosine falls towards `final_ratio` * `peak`, which it reaches at
    `total_steps`, the step after the last one (Loshchilov and Hutter 2017, SGDR, equation 5, without restarts).

    A run shorter than its warm-up sees the beginning of the line: its steps equal those of a longer run, and the peak
    is never reached. Steps after `total_steps` and after the warm-up have the final rate.

    Args:
        step: optimizer steps taken before this one, over the whole run.
        peak: the highest rate.
        warmup_steps: steps taken below the peak; 0 starts at the peak.
        total_steps: optimizer steps of the whole run.
        final_ratio: the rate at the end as a part of the peak, 0 to 1.
    """
    assert step >= 0, step
    assert warmup_steps >= 0, warmup_steps
    assert 0.0 <= final_ratio <= 1.0, final_ratio
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    if step >= total_steps:
        return peak * final_ratio
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return peak * (final_ratio + (1.0 - final_ratio) * (1.0 + math.cos(math.pi * progress)) / 2.0)
