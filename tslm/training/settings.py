"""The options of optimization and of text generation: what `--optimizer.*` and `--generation.*` mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tslm.generation import SamplingRule
from tslm.optim import check_schedule, lr_cosine_schedule


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW and its cosine schedule.

    Args:
        lr: Peak learning rate, reached at the end of the warm-up.
        lr_min: Learning rate at the end of the schedule.
        warmup_steps: Steps of linear warm-up; unless given, a twentieth of the budget.
        cosine_steps: Step at which the schedule reaches lr_min; unless given, the budget.
        betas: Decay rates of the averages of the gradient and of its square.
        eps: Added to the root of the second moment.
        weight_decay: Decay per step, times the learning rate, apart from the gradient.
        max_skipped: A step whose loss or gradient is not finite is skipped; this many in a row end the training, at the
            next report.
    """

    lr: float = 3e-3
    lr_min: float = 0.0
    warmup_steps: int | None = None
    cosine_steps: int | None = None
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.01
    max_skipped: int = 3

    def check(self) -> None:
        """Check what does not depend on the budget, before anything is prepared.

        Raises:
            ValueError: a setting is out of range.
        """
        for name, value, fine, allowed in (
            ("lr", self.lr, self.lr >= 0, "0 or more"),
            ("lr_min", self.lr_min, 0 <= self.lr_min <= self.lr, f"between 0 and lr, which is {self.lr:g}"),
            ("betas", list(self.betas), all(0 <= beta < 1 for beta in self.betas), "two numbers from 0 to below 1"),
            ("eps", self.eps, self.eps >= 0, "0 or more"),
            ("weight_decay", self.weight_decay, self.weight_decay >= 0, "0 or more"),
            ("max_skipped", self.max_skipped, self.max_skipped >= 1, "1 or more"),
        ):
            if not fine:
                raise ValueError(f"optimizer.{name} is {value}, but it must be {allowed}: change --optimizer.{name}")

    def schedule(self, max_steps: int) -> Callable[[int], float]:
        """Return the learning rate as a function of the step, for a budget of `max_steps`.

        Raises:
            ValueError: the warm-up is longer than the schedule.
        """
        cosine_steps = self.cosine_steps if self.cosine_steps is not None else max_steps
        warmup_steps = self.warmup_steps if self.warmup_steps is not None else cosine_steps // 20
        check_schedule(self.lr, self.lr_min, warmup_steps, cosine_steps)
        return lambda step: lr_cosine_schedule(step, self.lr, self.lr_min, warmup_steps, cosine_steps)


@dataclass(frozen=True)
class GenerationSettings:
    """How stories are drawn from the model.

    Args:
        max_new_tokens: Longest continuation, in tokens.
        temperature: The logits are divided by it; 0 takes the likeliest token each time.
        top_p: Draw from the smallest set of tokens whose probabilities reach this sum.
        top_k: Draw from this many likeliest tokens.
        seed: Seed of the draws.
    """

    max_new_tokens: int = 256
    temperature: float = 0.8
    top_p: float = 0.95
    top_k: int | None = None
    seed: int = 0

    def check(self) -> None:
        """Check the ranges now, and not at the first story of a training.

        Raises:
            ValueError: a setting is out of range.
        """
        SamplingRule(self.temperature, self.top_p, self.top_k)
        if self.max_new_tokens < 0:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}: give 0 or more")
