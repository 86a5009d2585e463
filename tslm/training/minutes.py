"""The budget in minutes: the run measures its own speed, and then becomes a run of a fixed number of steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch

from tslm.data.datamodule import TextDataModule
from tslm.errors import UserError
from tslm.loops.lightning import StepCallback
from tslm.loops.step import Budget
from tslm.training.forecast import amount, duration
from tslm.training.metrics import say
from tslm.training.module import LanguageModule
from tslm.training.settings import MEASURED_STEPS

FIRST = 3  # steps whose time says nothing: kernels are compiled, memory is fetched from the system
FORWARD = 0.4  # time of a token that is only evaluated, as a share of that of a trained one; the operations are a third
STEADY = 0.97  # share of the time that is planned, because speeds vary
AT_THE_END = 3.0  # seconds: stories, summary, curves


class MinutesBudget(StepCallback):
    """Fixes the number of steps so that everything ends in time, validation and stories included.

    The first `MEASURED_STEPS` steps are measured. They are ordinary steps of the run, and `OptimizerSettings.rate` has
    their learning rates. The number found becomes part of the settings, in config.yaml and in checkpoints, beside the
    minutes. A run whose settings have both does not measure: it repeats the one that did, bit for bit.

    Args:
        minutes: the budget.
        began: when the time began, by `clock`.
        clock: returns the time in seconds.

    Raises:
        UserError: the minutes are no number above 0.
    """

    def __init__(self, minutes: float, began: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self.minutes, self.began = minutes, began
        self._clock = clock
        self._first_step = 0
        self._ends: list[float] = []  # of the steps so far

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to measure.

        Raises:
            UserError: the time is over before the first step.
        """
        self._first_step, self._ends = trainer.global_step, []
        passed = self._clock() - self.began
        if passed >= 60 * self.minutes:
            raise UserError(f"trainer.max_minutes is {self.minutes:g}, but {duration(passed)} have passed before the "
                            "first step: give more minutes, or --trainer.max_steps")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After an optimizer step, fix the number of steps if the speed is known, or the time over."""
        assert isinstance(pl_module, LanguageModule)
        step_loop: Any = getattr(trainer, "step_loop")  # noqa: B009 (set at run time, unknown to type checkers)
        if not step_loop.loop.budget.is_open or trainer.global_step == self._first_step + len(self._ends):
            return
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self._ends.append(self._clock())
        steps = self._steps_in_time(trainer)
        # The clocks of several processes differ; the first one's decides.
        steps = trainer.strategy.broadcast(steps)
        if steps is None:
            return
        step_loop.set_budget(Budget(steps))
        pl_module.set_total_steps(steps)
        pl_module.run_config.setdefault("trainer", {})["max_steps"] = steps
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, StepCallback):
                callback.on_budget_fixed(trainer, pl_module, steps)

    def _steps_in_time(self, trainer: pl.Trainer) -> int | None:
        """Return the number of steps of the whole run; None if the speed is not known yet."""
        done, now = len(self._ends), self._ends[-1]
        left = STEADY * (60 * self.minutes - (now - self.began))
        if done < MEASURED_STEPS:
            return None if left > 0 else self._first_step + done
        seconds = self._seconds_per_step()
        validation = FORWARD * seconds * sum(trainer.num_val_batches)  # a batch has the windows of a step
        left -= AT_THE_END + validation
        every: int = trainer.step_loop.cadence.val  # type: ignore[attr-defined]
        whole, rest = divmod(left, every * seconds + validation) if every else (0, left)
        return self._first_step + done + max(0, int(whole * every + rest / seconds))

    def _seconds_per_step(self) -> float:
        return max(self._ends[-1] - self._ends[FIRST - 1], 1e-9) / (len(self._ends) - FIRST)

    def on_budget_fixed(self, trainer: pl.Trainer, pl_module: pl.LightningModule, steps: int) -> None:
        """Print the number of steps."""
        if not trainer.is_global_zero:
            return
        here, tokens = steps - self._first_step, _tokens_per_step(trainer)
        if len(self._ends) < MEASURED_STEPS:
            say(f"The {duration(60 * self.minutes)} are over after {here} steps.")
        else:
            say(f"{'budget':<11}{tokens / self._seconds_per_step():,.0f} tokens/s here: "
                f"{amount(here * tokens)} tokens, {here:,} steps, in {duration(60 * self.minutes)}")


def _tokens_per_step(trainer: pl.Trainer) -> int:
    data = getattr(trainer, "datamodule", None)
    return data.tokens_per_step if isinstance(data, TextDataModule) else 1
