"""The optimizer of a LightningModule: its schedule over the budget, clipping, and the steps that are skipped."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import torch

from tslm.model import TransformerLM
from tslm.optim import AdamW, clip_gradients
from tslm.training.lightning_features import check_clip_algorithm
from tslm.training.nonfinite import SkippedSteps, check_diverged
from tslm.training.optimizers import make_optimizer
from tslm.training.settings import OptimizerSettings


class OptimizedModule(pl.LightningModule):
    """The part of a `LanguageModule` that trains its model.

    Args:
        settings: The optimizer and its schedule.
        model: The model.

    Raises:
        UserError: a setting is out of range.
    """

    def __init__(self, settings: OptimizerSettings, model: TransformerLM) -> None:
        super().__init__()
        self.model, self.optimizer_settings = model, settings
        settings.check()
        make_optimizer(settings.class_path, model, settings.arguments())  # checks it
        self.gradient_norm = torch.zeros(())
        self.skipped = SkippedSteps(self.device)
        self.is_reported = False  # whether a callback reports the figures
        self.total_steps: int | None = None  # the budget that the schedule spans
        self._drops_gradients = False  # of steps to be skipped, because the optimizer cannot skip steps by itself
        self._rate: Callable[[int], float] = lambda step: 0.0

    def configure_optimizers(self) -> Any:
        """Return the optimizer with a LambdaLR around the schedule, which spans the trainer's budget."""
        return self.make_optimizer(self._total_steps())

    @property
    def has_own_optimizer(self) -> bool:
        """Whether a subclass makes the optimizer; then Lightning alone restores its state, with its own settings."""
        return type(self).configure_optimizers is not OptimizedModule.configure_optimizers

    def _total_steps(self) -> int | None:
        """The trainer's budget in optimizer steps; None if it has none, as with max_time alone."""
        if self.trainer.max_steps >= 0:
            return self.trainer.max_steps
        steps = self.trainer.estimated_stepping_batches  # of a stock Trainer
        return None if math.isinf(steps) else int(steps)

    def make_optimizer(self, max_steps: int | None) -> dict[str, Any]:
        """Build the optimizer and its schedule for a budget; without one the rate stays constant."""
        settings = self.optimizer_settings
        if max_steps is None and settings.cosine_steps is None:
            warnings.warn("the trainer has no budget in steps or epochs, so the learning rate stays at its peak after "
                          "a warm-up of 100 steps: give OptimizerSettings(cosine_steps=...)", stacklevel=2)
            self.optimizer_settings = settings = replace(settings, schedule="constant", warmup_steps=100,
                                                         cosine_steps=100)
        self._rate = self._schedule(max_steps or settings.cosine_steps or 1)
        optimizer = make_optimizer(settings.class_path, self.model, settings.arguments())
        self.skipped = SkippedSteps(next(self.parameters()).device)
        self._drops_gradients = not isinstance(optimizer, AdamW)
        if isinstance(optimizer, AdamW):
            optimizer.skip = self.skipped.skip
        # A function, not an object: LambdaLR saves an object's state, and on resuming it would overwrite new settings.
        factor = (lambda step: self._rate(step) / settings.lr) if settings.lr else (lambda step: 1.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _schedule(self, max_steps: int) -> Callable[[int], float]:
        """Return the learning rate as a function of the step, and remember the budget that it spans."""
        self.total_steps = max_steps
        in_minutes = getattr(self._trainer, "max_minutes", None) is not None
        return self.optimizer_settings.rate(max_steps, in_minutes=in_minutes)

    def set_total_steps(self, max_steps: int, measured_steps: int) -> None:
        """Let the schedule span another budget from the next step on; the `measured_steps` had a provisional one."""
        self.optimizer_settings = replace(self.optimizer_settings, measured_steps=measured_steps)
        self._rate = self._schedule(max_steps)
        for each in self.trainer.lr_scheduler_configs:
            schedule: Any = each.scheduler
            schedule.last_epoch -= 1  # the coming step's rate once more, by the new schedule
            schedule.step()

    def clip(self, max_norm: float | None) -> None:
        """Clip the gradients in place and remember their norm; if it is not finite, the optimizer skips the step.

        With AdamW the norm is not read here, because on a GPU that would make the CPU wait for every step.
        """
        self.gradient_norm = clip_gradients(self.parameters(), math.inf if max_norm is None else max_norm)
        # The bare loop has no trainer, and its reports do not name the step.
        self.skipped.update(self.gradient_norm, self.trainer.global_step + 1 if self._trainer is not None else 0)
        if self._drops_gradients and self.skipped.skip:  # optimizers skip parameters without a gradient
            self.zero_grad()

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, gradient_clip_val: float | None = None,
                                    gradient_clip_algorithm: str | None = None) -> None:
        """Clip by the global norm; Lightning calls this at every optimizer step, after unscaling.

        Raises:
            UserError: another algorithm is asked for.
        """
        check_clip_algorithm(gradient_clip_algorithm)
        self.clip(gradient_clip_val)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """End a training that has diverged, if no callback does."""
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not self.is_reported and self.trainer.scaler is None and every and (batch_idx + 1) % every == 0:
            check_diverged(self.skipped.report(), self.optimizer_settings, None)
