"""The budget in minutes: the run measures its own speed, and then becomes a run of a fixed number of steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch

from tslm.data.datamodule import text_data
from tslm.errors import UserError
from tslm.loops.lightning import StepCallback
from tslm.loops.step import OPEN, Budget
from tslm.training.forecast import amount, duration
from tslm.training.metrics import say
from tslm.training.module import LanguageModule

MEASURED_STEPS = 160  # at most, until the number of steps is fixed
MEASURED_PART = 10  # a tenth of the steps, if that is less
FIRST = 3  # steps whose time says nothing: kernels are compiled, memory is fetched from the system
# Time of a token that is only evaluated, as a share of that of a trained one; the operations are a third. It is used
# until a validation is measured.
FORWARD = 0.4
STEADY = 0.97  # share of the time that is planned, because speeds vary
AT_THE_END = 3.0  # seconds: stories, summary, curves; the comparison with the exact floor comes on top


class MinutesBudget(StepCallback):
    """Fixes the number of steps so that everything ends in time, validation and stories included.

    The first tenth of the steps, `MEASURED_STEPS` at most, is measured, without the validations between them. They are
    ordinary steps of the run, and `OptimizerSettings.rate` has their learning rates. The number of all steps and that
    of the measured ones become part of the settings, in config.yaml and in checkpoints, beside the minutes. A run whose
    settings have them does not measure: it repeats the one that did, bit for bit.

    Args:
        minutes: the budget.
        began: when the time began, by `clock`.
        clock: returns the time in seconds.
    """

    def __init__(self, minutes: float, began: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self.minutes, self.began = minutes, began
        self._clock = clock
        self._first_step = 0
        self._start = 0.0  # seconds from the start of the command to the first step
        self._ends: list[float] = []  # of the steps so far, without the time of validations
        self._validations: list[float] = []  # seconds of each so far
        self._validation_began = 0.0
        self._floor_tokens = 0  # of the stories that are compared with the exact floor at the end
        self._seconds = 0.0  # from the start of the command to the end of the run, as planned

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to measure.

        Raises:
            UserError: the time is over before the first step.
        """
        self._first_step, self._ends, self._validations = trainer.global_step, [], []
        self._floor_tokens = _floor_tokens(trainer)
        self._start = self._clock() - self.began
        if self._start >= 60 * self.minutes:
            raise UserError(f"trainer.max_minutes is {self.minutes:g}, but {duration(self._start)} have passed before "
                            "the first step: give more minutes, or --trainer.max_steps")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After an optimizer step, fix the number of steps if the speed is known, or the time over.

        Raises:
            UserError: the learning rate's warm-up is longer than the run.
        """
        assert isinstance(pl_module, LanguageModule)
        step_loop: Any = getattr(trainer, "step_loop")  # noqa: B009 (set at run time, unknown to type checkers)
        if not step_loop.loop.budget.is_open or trainer.global_step == self._first_step + len(self._ends):
            return
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self._ends.append(self._clock() - sum(self._validations))
        steps = self._steps_in_time(trainer)
        # The clocks of several processes differ; the first one's decides.
        steps = trainer.strategy.broadcast(steps)
        if steps is None:
            return
        warmup_steps, schedule_steps = pl_module.optimizer_settings.lengths(steps)
        if warmup_steps > schedule_steps:
            raise UserError(f"optimizer.warmup_steps is {warmup_steps}, but only {steps} steps fit into "
                            f"{duration(60 * self.minutes)}: give fewer --optimizer.warmup_steps, or more minutes")
        step_loop.set_budget(Budget(steps))
        pl_module.set_total_steps(steps, trainer.global_step)
        if pl_module.run_config:  # else the settings of the module are saved
            pl_module.run_config["trainer"]["max_steps"] = steps
            pl_module.run_config["optimizer"]["measured_steps"] = trainer.global_step
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, StepCallback):
                callback.on_budget_fixed(trainer, pl_module, steps)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to measure a validation."""
        self._validation_began = self._clock()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the time of a validation apart from that of the steps."""
        self._validations.append(self._clock() - self._validation_began)

    def _steps_in_time(self, trainer: pl.Trainer) -> int | None:
        """Return the number of steps of the whole run; None if it is not known yet."""
        done, now = len(self._ends), self._ends[-1] + sum(self._validations)
        step = self._first_step + done
        left = STEADY * (60 * self.minutes - (now - self.began))
        if done <= FIRST:
            return None if left > 0 else step
        seconds, validation = self._seconds_per_step(), self._seconds_per_validation(trainer)
        end = AT_THE_END + FORWARD * seconds * self._floor_tokens / _tokens_per_step(trainer)
        every: int = trainer.step_loop.cadence.val or OPEN  # type: ignore[attr-defined]
        before = (step - 1) // every * every  # the step of the last validation; that of this step is still to come
        left += (step - before) * seconds - end - validation  # from there to the end, without the last one
        periods, rest = divmod(left, every * seconds + validation)
        steps = max(step, before + int(periods * every + min(every, rest / seconds)))
        measured = done >= FIRST + 10 and step >= min(MEASURED_STEPS, steps // MEASURED_PART)
        if steps > step and not measured:
            return None
        validations = (steps - 1) // every - before // every + 1
        self._seconds = now - self.began + (steps - step) * seconds + validations * validation + end
        return steps

    def _seconds_per_step(self) -> float:
        first = max(FIRST, len(self._ends) // 2)  # the first ones take longer than all later ones
        return max(self._ends[-1] - self._ends[first - 1], 1e-9) / (len(self._ends) - first)

    def _seconds_per_validation(self, trainer: pl.Trainer) -> float:
        if self._validations:
            return sum(self._validations) / len(self._validations)
        batches: int = sum(trainer.num_val_batches)  # type: ignore[arg-type]
        return FORWARD * self._seconds_per_step() * batches  # a batch has the windows of a step

    def on_budget_fixed(self, trainer: pl.Trainer, pl_module: pl.LightningModule, steps: int) -> None:
        """Print the number of steps."""
        if not trainer.is_global_zero:
            return
        here, tokens, budget = steps - self._first_step, _tokens_per_step(trainer), duration(60 * self.minutes)
        if len(self._ends) <= FIRST:
            say(f"{'budget':<11}{budget}, which are over at step {here}")
            return
        late = self._seconds > 60 * self.minutes
        time = f"about {duration(self._seconds)}" if late else budget
        say(f"{'budget':<11}{tokens / self._seconds_per_step():,.0f} tokens/s here: "
            f"{amount(here * tokens)} tokens, {here:,} step{'s' * (here > 1)}, in {time}")
        if late:
            say(f"{'warning':<11}this is more than {budget}: a step takes {self._seconds_per_step():,.2f} s, a "
                f"validation {self._seconds_per_validation(trainer):,.2f} s, and what came before the first step took "
                f"{duration(self._start)}; give more minutes, or a smaller --trainer.limit_val_batches")


def _floor_tokens(trainer: pl.Trainer) -> int:
    """Return the tokens of the stories that the summary compares with the exact floor; 0 for other texts."""
    data = text_data(trainer)
    if data is None or data.tokenizer is None:
        return 0
    return sum(len(data.tokenizer.encode(story.text)) for story in data.held_out_stories() or [])


def _tokens_per_step(trainer: pl.Trainer) -> int:
    data = text_data(trainer)
    return 1 if data is None else data.tokens_per_step
