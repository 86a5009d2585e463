"""The learning rate as a function of the step: a linear warm-up, half a cosine down, then a floor.

`lr_cosine_schedule` is the curve itself; `CosineSchedule` is the same curve in the form that LambdaLR wants.
"""

from __future__ import annotations

import math


def lr_cosine_schedule(t: int, lr_max: float, lr_min: float, warmup_steps: int, cosine_steps: int) -> float:
    r"""Return the learning rate of step t, counted from 0 (Loshchilov & Hutter 2017, with a warm-up before it).

        t < T_w          lr_max · t / T_w
        T_w ≤ t ≤ T_c    lr_min + ½ (1 + cos(π (t - T_w) / (T_c - T_w))) (lr_max - lr_min)
        t > T_c          lr_min

    With T_w = 0 the first step has lr_max already. With T_w = T_c the cosine is the single point t = T_w, where it has
    its starting value lr_max.

    For lr_max = 1, lr_min = 0, T_w = 2, T_c = 6 the rates of the steps 0 to 7 are 0, 0.5, 1, 0.854, 0.5, 0.146, 0, 0.

    Args:
        t: the step.
        lr_max: the rate at the end of the warm-up.
        lr_min: the rate after the cosine.
        warmup_steps: T_w.
        cosine_steps: T_c, counted from step 0 like T_w, not from the end of the warm-up.

    Raises:
        ValueError: the warm-up is negative or longer than the whole schedule, or a rate is negative.
    """
    _check(lr_max, lr_min, warmup_steps, cosine_steps)
    if t < warmup_steps:
        return lr_max * t / warmup_steps
    if t > cosine_steps:
        return lr_min
    progress = (t - warmup_steps) / max(1, cosine_steps - warmup_steps)
    return lr_min + 0.5 * (1.0 + math.cos(math.pi * progress)) * (lr_max - lr_min)


class CosineSchedule:
    """The cosine schedule as a factor of lr_max, for LambdaLR around an optimizer whose lr is lr_max.

    An object and not a closure, because LambdaLR saves the attributes of objects in its state dict and can say nothing
    about functions; the attributes are plain numbers, so that a checkpoint holds data only.

    Args:
        lr_max: the rate at the end of the warm-up; with 0 every factor is 0.
        lr_min: the rate after the cosine.
        warmup_steps: length of the warm-up.
        cosine_steps: the step at which the cosine ends.

    Raises:
        ValueError: as in `lr_cosine_schedule`, but when the schedule is built and not at its first step.
    """

    def __init__(self, lr_max: float, lr_min: float, warmup_steps: int, cosine_steps: int) -> None:
        _check(lr_max, lr_min, warmup_steps, cosine_steps)
        self.lr_max = lr_max
        self.lr_min = lr_min
        self.warmup_steps = warmup_steps
        self.cosine_steps = cosine_steps

    def __call__(self, t: int) -> float:
        """Return lr(t) / lr_max."""
        if self.lr_max == 0:
            return 0.0
        return lr_cosine_schedule(t, self.lr_max, self.lr_min, self.warmup_steps, self.cosine_steps) / self.lr_max


def _check(lr_max: float, lr_min: float, warmup_steps: int, cosine_steps: int) -> None:
    if not 0 <= lr_min <= lr_max:
        raise ValueError(f"lr_min is {lr_min} and lr_max is {lr_max}, but the rates must satisfy 0 <= lr_min <= lr_max")
    if not 0 <= warmup_steps <= cosine_steps:
        raise ValueError(
            f"warmup_steps is {warmup_steps} and cosine_steps is {cosine_steps}, but the warm-up is the first part of "
            "the schedule: choose 0 <= warmup_steps <= cosine_steps"
        )
