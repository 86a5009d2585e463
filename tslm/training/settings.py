"""The settings of `--optimizer.*` and `--generation.*`, and the translation of settings saved by earlier versions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tslm.errors import UserError
from tslm.generation import SamplingRule
from tslm.loops.step import OPEN
from tslm.model.own_classes import import_named
from tslm.optim import SCHEDULES, Schedule, check_schedule
from tslm.training.optimizers import COMMON, optimizer_class, parameter_names

PROVISIONAL_STEPS = 3000  # the length of a training whose budget is in minutes, until the number of its steps is fixed
SMALLEST = 1e-37  # above 0 in a float32
SMALLEST_HALF = 1e-4  # of ε, if the parameters are in float16
LARGEST = 1e18  # of a setting of the optimizer; the product of any two fits in a float32


@dataclass(frozen=True)
class OptimizerSettings:
    """The optimizer and the schedule of its learning rate.

    Args:
        class_path: `AdamW`, `SGD`, `Muon`, or a class of your own as `module.Class`, called with the parameters, with
            lr, and with those of betas, eps and weight_decay that it has.
        init_args: Further arguments of the class.
        lr: Peak learning rate, reached at the end of the warm-up.
        lr_min: Learning rate at the end of the schedule.
        schedule: `cosine`, `linear`, `wsd` (constant, then a line over the last fifth), `constant`, or a function of
            your own as `module.function`, called with t, lr_max, lr_min, warmup_steps and the number of steps.
        warmup_steps: Steps of linear warm-up; unless given, a twentieth of cosine_steps.
        cosine_steps: Length of every schedule: the step at which it reaches lr_min; unless given, the budget.
        betas: Decay rates of the first and the second moment.
        eps: Added to the root of the second moment.
        weight_decay: Decay per step, times the learning rate; decoupled from the gradient.
        measured_steps: Written by a run whose budget is in minutes: its first steps, before their number was fixed.
            They followed the schedule of `PROVISIONAL_STEPS`.
        max_skipped: A step whose loss or gradient is not finite is skipped; this many skipped steps in a row end the
            training at the next report.
    """

    class_path: str = "AdamW"
    init_args: dict[str, Any] | None = None
    lr: float = 3e-3
    lr_min: float = 0.0
    schedule: str = "cosine"
    warmup_steps: int | None = None
    cosine_steps: int | None = None
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.01
    measured_steps: int | None = None
    max_skipped: int = 3

    def check(self) -> None:
        """Check the settings that do not depend on the budget.

        Raises:
            UserError: a setting is out of range.
        """
        for name, value, fine, allowed in (
            ("lr", self.lr, 0 <= self.lr <= LARGEST, f"between 0 and {LARGEST:g}"),
            ("lr_min", self.lr_min, 0 <= self.lr_min <= self.lr, f"between 0 and lr, which is {self.lr:g}"),
            ("betas", list(self.betas), all(0 <= beta < 1 for beta in self.betas), "two numbers from 0 to below 1"),
            # A token that no batch has had yet has two moments of 0, and 0/0 is not a number.
            ("eps", self.eps, SMALLEST <= self.eps <= LARGEST, f"between {SMALLEST:g} and {LARGEST:g}"),
            ("weight_decay", self.weight_decay, 0 <= self.weight_decay <= LARGEST, f"between 0 and {LARGEST:g}"),
            ("max_skipped", self.max_skipped, self.max_skipped >= 1, "1 or more"),
            ("warmup_steps", self.warmup_steps, (self.warmup_steps or 0) >= 0, "0 or more"),
            ("cosine_steps", self.cosine_steps, (self.cosine_steps or 0) >= 0, "0 or more"),
        ):
            if not fine:
                raise UserError(f"optimizer.{name} is {value}, but it must be {allowed}: change --optimizer.{name}")
        optimizer_class(self.class_path)
        self.rate(self.cosine_steps or max(1, self.warmup_steps or 0))

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of the optimizer's class."""
        common = {name: getattr(self, name) for name in COMMON if name in parameter_names(self.class_path)}
        return {"lr": self.lr, **common, **(self.init_args or {})}

    def check_precision(self, precision: str) -> None:
        """Refuse AdamW's division by √v + ε where v vanishes: the squares of gradients below 1e-3 are 0 in float16.

        Raises:
            UserError: the parameters are in float16, and ε is too small to take the place of v.
        """
        eps = self.arguments().get("eps", SMALLEST_HALF)
        if precision == "16-true" and isinstance(eps, float) and eps < SMALLEST_HALF:
            raise UserError(f"trainer.precision is 16-true, where the squares of gradients below 0.001 are 0, and "
                            f"optimizer.eps is {eps:g}: give --optimizer.eps {SMALLEST_HALF:g} or more, or another "
                            "--trainer.precision, such as bf16-mixed")

    def _schedule(self) -> Schedule:
        if self.schedule in SCHEDULES:
            return SCHEDULES[self.schedule]
        if "." not in self.schedule:
            raise UserError(f"optimizer.schedule is {self.schedule!r}: give one of {', '.join(SCHEDULES)}, or a "
                            "function of your own as module.function")
        return import_named(self.schedule, "optimizer.schedule")

    def lengths(self, max_steps: int) -> tuple[int, int]:
        """Return warmup_steps and cosine_steps for a budget of `max_steps`."""
        cosine_steps = self.cosine_steps if self.cosine_steps is not None else max_steps
        return self.warmup_steps if self.warmup_steps is not None else cosine_steps // 20, cosine_steps

    def rate(self, max_steps: int, *, in_minutes: bool = False) -> Callable[[int], float]:
        """Return the learning rate as a function of the step, for a budget of `max_steps`.

        Args:
            max_steps: number of optimizer steps; `OPEN` if it is not fixed yet.
            in_minutes: whether the budget is in minutes, so that `max_steps` was not known in the first
                `measured_steps`.

        Raises:
            UserError: the warm-up is longer than the schedule, or a schedule of the user's own returns no rate.
        """
        if in_minutes:
            early = self.rate(max(PROVISIONAL_STEPS, self.warmup_steps or 0))
            later = early if max_steps >= OPEN else self.rate(max_steps)
            return lambda step: (early if step < (self.measured_steps or 0) else later)(step)
        warmup_steps, total_steps = self.lengths(max_steps)
        check_schedule(self.lr, self.lr_min, warmup_steps, total_steps)
        schedule = self._schedule()

        def rate(step: int) -> float:
            """Return the learning rate of a step, which the user's function may not have."""
            try:
                found = schedule(step, self.lr, self.lr_min, warmup_steps, total_steps)
            except (Exception, SystemExit) as error:  # whatever the user's function raises
                raise UserError(f"optimizer.schedule is {self.schedule}, which fails for step {step}: "
                                f"{type(error).__name__}: {error}") from error
            if not isinstance(found, int | float) or not 0 <= found <= LARGEST:
                raise UserError(f"optimizer.schedule is {self.schedule}, which returns {found!r} for step {step}: it "
                                "must return a rate of at least 0")
            return float(found)

        rate(0)
        return rate


@dataclass(frozen=True)
class GenerationSettings:
    """How stories are drawn from the model.

    Args:
        max_new_tokens: Longest continuation, in tokens.
        temperature: The logits are divided by it; 0 always takes the most likely token.
        top_p: Draw from the smallest set of most likely tokens whose probabilities reach this sum.
        top_k: Draw from this many most likely tokens.
        seed: Seed of the draws.
    """

    max_new_tokens: int = 256
    temperature: float = 0.8
    top_p: float = 0.95
    top_k: int | None = None
    seed: int = 0

    def check(self) -> None:
        """Check the ranges before training, not when the first story is drawn.

        Raises:
            UserError: a setting is out of range.
        """
        SamplingRule(self.temperature, self.top_p, self.top_k)
        if self.max_new_tokens < 0:
            raise UserError(f"max_new_tokens is {self.max_new_tokens}: give 0 or more")
        if not -(2**63) <= self.seed < 2**63:
            raise UserError(f"generation.seed is {self.seed}: give a whole number from {-(2**63)} to {2**63 - 1}")


def translate_batch_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Express the batch settings that an earlier version saved by today's options.

    Formerly `data.batch_size` counted the windows of one process in one of `trainer.accumulate_grad_batches` batches.
    Now it counts the windows of one optimizer step over all processes. A run resumed with the translated settings
    continues with the same windows. `data.micro_batch_size` becomes what was computed at a time, or a divisor of it,
    unless that was the whole step; then it is left to its default. Settings that have `data.micro_batch_size` are
    returned unchanged.

    Example: batch_size 16 with accumulate_grad_batches 4 on 2 devices becomes batch_size 128 with micro_batch_size 16.

    Args:
        settings: values by dotted keys, such as "data.batch_size"; not changed.
    """
    if "data.batch_size" not in settings or "data.micro_batch_size" in settings:
        return settings
    new = dict(settings)
    windows, accumulate = new["data.batch_size"], new.get("trainer.accumulate_grad_batches", 1)
    devices = new.get("trainer.devices")
    processes = len(devices) if isinstance(devices, list) else devices if isinstance(devices, int) else 1
    step = windows * accumulate * max(1, processes) * new.get("trainer.num_nodes", 1)
    size = math.gcd(windows, min(windows, new.pop("model.micro_batch_size", None) or windows))
    new["data.batch_size"], new["data.micro_batch_size"] = step, size if size < step else None
    if accumulate > 1:
        new["trainer.accumulate_grad_batches"] = 1
        if isinstance(limit := new.get("trainer.limit_val_batches"), int):
            new["trainer.limit_val_batches"] = -(-limit // accumulate)  # validation batches have grown as much
    return new
