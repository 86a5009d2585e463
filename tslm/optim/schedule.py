"""The learning rate as a function of the step: a linear warm-up, then a decay to a smaller rate.

`check_schedule` only checks the settings, so that a mistake is reported before training starts.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from tslm.errors import UserError


def lr_cosine_schedule(t: int, lr_max: float, lr_min: float, warmup_steps: int, cosine_steps: int) -> float:
    r"""Return the learning rate of step t, counted from 0 (Loshchilov & Hutter 2017, with a warm-up before it).

        t < T_w          lr_max · t / T_w
        T_w ≤ t ≤ T_c    lr_min + ½ (1 + cos(π (t - T_w) / (T_c - T_w))) (lr_max - lr_min)
        t > T_c          lr_min

    With T_w = 0 the first step has lr_max. With T_w = T_c the cosine is the single point t = T_w, of
    value lr_max.

    Args:
        t: the step.
        lr_max: the rate at the end of the warm-up.
        lr_min: the rate after the cosine.
        warmup_steps: T_w.
        cosine_steps: T_c, counted from step 0 like T_w, not from the end of the warm-up.

    Raises:
        UserError: as in `check_schedule`.

    Example: for lr_max = 1, lr_min = 0, T_w = 2, T_c = 6 the rates of the steps 0 to 7 are 0, 0.5, 1, 0.854, 0.5,
        0.146, 0, 0.
    """
    check_schedule(lr_max, lr_min, warmup_steps, cosine_steps)
    if t < warmup_steps:
        return lr_max * t / warmup_steps
    if t > cosine_steps:
        return lr_min
    progress = (t - warmup_steps) / max(1, cosine_steps - warmup_steps)
    return lr_min + 0.5 * (1.0 + math.cos(math.pi * progress)) * (lr_max - lr_min)


def lr_linear_schedule(t: int, lr_max: float, lr_min: float, warmup_steps: int, total_steps: int) -> float:
    """Return the learning rate of step t: a warm-up to lr_max, then a straight line to lr_min at `total_steps`.

        T_w ≤ t ≤ T:  lr_max + (lr_min - lr_max) · (t - T_w) / (T - T_w)

    The other arguments, the warm-up and the errors are those of `lr_cosine_schedule`.
    """
    check_schedule(lr_max, lr_min, warmup_steps, total_steps)
    if t < warmup_steps:
        return lr_max * t / warmup_steps
    return lr_max + (lr_min - lr_max) * min(1.0, (t - warmup_steps) / max(1, total_steps - warmup_steps))


def lr_wsd_schedule(t: int, lr_max: float, lr_min: float, warmup_steps: int, total_steps: int) -> float:
    """Return the learning rate of step t: a warm-up, lr_max, and over the last fifth a straight line to lr_min.

    Sources: Hu et al. 2024, "MiniCPM", section 4.2 (warm-up–stable–decay); Hägele et al. 2024, "Scaling Laws and
    Compute-Optimal Training Beyond Fixed Training Durations", section 3, for the fifth and the line.

    The other arguments, the warm-up and the errors are those of `lr_cosine_schedule`.
    """
    check_schedule(lr_max, lr_min, warmup_steps, total_steps)
    if t < warmup_steps:
        return lr_max * t / warmup_steps
    decay_from = max(warmup_steps, total_steps - total_steps // 5)
    return lr_max + (lr_min - lr_max) * min(1.0, max(0, t - decay_from) / max(1, total_steps - decay_from))


def lr_constant_schedule(t: int, lr_max: float, lr_min: float, warmup_steps: int, total_steps: int) -> float:
    """Return the learning rate of step t: a warm-up, then lr_max to the end; lr_min has no effect."""
    check_schedule(lr_max, lr_min, warmup_steps, total_steps)
    return lr_max * t / warmup_steps if t < warmup_steps else lr_max


# Called with t, lr_max, lr_min, warmup_steps and total_steps; returns the learning rate of step t.
Schedule = Callable[[int, float, float, int, int], float]
SCHEDULES: dict[str, Schedule] = {
    "cosine": lr_cosine_schedule, "linear": lr_linear_schedule, "wsd": lr_wsd_schedule,
    "constant": lr_constant_schedule,
}


def check_schedule(lr_max: float, lr_min: float, warmup_steps: int, cosine_steps: int) -> None:
    """Raise an error for settings that define no schedule; the arguments are those of `lr_cosine_schedule`.

    Raises:
        UserError: a rate is negative, lr_min is above lr_max, or the warm-up is negative or longer than the schedule.
    """
    if not 0 <= lr_min <= lr_max:
        raise UserError(f"lr_min is {lr_min} and lr_max is {lr_max}, but the rates must satisfy 0 <= lr_min <= lr_max")
    if not 0 <= warmup_steps <= cosine_steps:
        raise UserError(
            f"warmup_steps is {warmup_steps} and cosine_steps is {cosine_steps}, but the warm-up is the first part of "
            "the schedule: choose 0 <= warmup_steps <= cosine_steps"
        )
