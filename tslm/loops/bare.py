"""The bare loop: `StepLoop` drives the LightningModule in plain PyTorch, without a Trainer.

`BareDriver.train_step` shows what a training step is. A test checks that twenty steps of the bare loop and twenty steps
of a Trainer give bit-identical weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch

from tslm.loops.step import Budget, Cadence, StepLoop

Batch = tuple[torch.Tensor, torch.Tensor]  # inputs and targets, (windows, tokens) each


class TrainableModule(Protocol):
    """The part of a LightningModule that training needs."""

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Return the mean loss of a micro-batch."""

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a loss that `training_step` returned."""

    def validation_step(self, batch: Batch, batch_idx: int) -> Any:
        """Add a batch to the validation loss."""

    def reset_validation(self) -> None:
        """Reset the validation loss."""

    def clip(self, max_norm: float | None) -> None:
        """Clip the gradients in place and remember their norm."""


class BareDriver:
    """Executes the decisions of `StepLoop` on one device.

    Args:
        module: computes the loss and clips.
        optimizer: updates the module's parameters.
        schedule: sets the learning rate after each step.
        micro_batches: an endless iterator of inputs and targets; all micro-batches have the same size.
        accumulate: micro-batches in one optimizer step, whose gradient is the mean of their gradients.
        max_norm: largest global norm of the gradient; None disables clipping.
        autocast: returns the context in which the loss is computed.
        on_log: called with the step and its mean loss when a report is due.
        valid_batches: the validation data.
    """

    def __init__(
        self,
        module: TrainableModule,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LambdaLR,
        micro_batches: Iterator[Batch],
        *,
        accumulate: int = 1,
        max_norm: float | None = 1.0,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        on_log: Callable[[int, torch.Tensor], None] | None = None,
        valid_batches: list[Batch] | None = None,
    ) -> None:
        self.module, self.optimizer, self.schedule = module, optimizer, schedule
        self.micro_batches, self.accumulate = micro_batches, accumulate
        self.max_norm, self.autocast, self.on_log = max_norm, autocast, on_log
        self.valid_batches = valid_batches or []
        self.micro_batches_seen = 0
        self.loss = torch.zeros(())

    def train_step(self) -> None:
        """Add up the gradients of `accumulate` micro-batches; clip them; update the weights and the learning rate."""
        self.optimizer.zero_grad()
        self.loss = torch.zeros(())
        for _ in range(self.accumulate):
            with self.autocast():
                loss = self.module.training_step(next(self.micro_batches), self.micro_batches_seen) / self.accumulate
            self.module.backward(loss)
            self.loss = self.loss + loss.detach()
            del loss  # or its graph would occupy memory during the next forward pass
            self.micro_batches_seen += 1
        self.module.clip(self.max_norm)
        self.optimizer.step()
        self.schedule.step()

    def validate(self) -> bool:
        """Compute the loss of every validation batch."""
        self.module.reset_validation()
        with torch.no_grad(), self.autocast():
            for index, batch in enumerate(self.valid_batches):
                self.module.validation_step(batch, index)
        return True

    def log(self, step: int) -> None:
        """Pass the last step's loss to `on_log`."""
        if self.on_log is not None:
            self.on_log(step, self.loss)

    def save(self, step: int) -> None:
        """Save nothing: the caller holds the module and the optimizer."""

    def stop_requested(self) -> bool:
        """Never stop early."""
        return False


def train(driver: BareDriver, max_steps: int, cadence: Cadence | None = None) -> None:
    """Take `max_steps` optimizer steps.

    Args:
        driver: executes the steps.
        max_steps: number of optimizer steps.
        cadence: when to validate and report; by default only at the end.
    """
    StepLoop(driver, Budget(max_steps), cadence or Cadence()).run()
