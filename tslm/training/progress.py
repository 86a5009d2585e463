"""The progress bars: one for the training, with the latest figures, and a short one for each evaluation."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from tqdm import tqdm

from tslm.loops.lightning import StepCallback
from tslm.training.metrics import StepMetrics

FIGURES = {"train_loss": "loss {:.3f}", "valid_loss": "valid {:.3f}", "tokens_per_second": "{:,.0f} tokens/s"}


class StepProgress(StepCallback, pl.callbacks.ProgressBar):
    """A bar over the budget's optimizer steps, and a short one while evaluating.

    The bar shows what the last report measured, and reads nothing from the device itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self._train: tqdm[Any] | None = None
        self._evaluation: tqdm[Any] | None = None

    def disable(self) -> None:
        """Do nothing: only the first process shows bars anyway."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar at the step that training starts from."""
        self._train = tqdm(
            total=trainer.max_steps, initial=trainer.global_step, desc="training", unit=" steps", dynamic_ncols=True,
            disable=not trainer.is_global_zero, smoothing=0.1,
        )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance the bar at the end of an optimizer step."""
        if self._train is not None and trainer.global_step > self._train.n:
            self._train.update(trainer.global_step - self._train.n)

    def on_step_log(self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int) -> None:
        """Show the latest figures."""
        if self._train is not None:
            self._train.set_postfix_str(latest_figures(trainer), refresh=False)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the bar."""
        if self._train is not None:
            self._train.close()
            self._train = None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Close the bars, so that the message starts on its own line."""
        self._close_evaluation()
        self.on_train_end(trainer, pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the short bar."""
        self._open_evaluation(trainer, "validating", trainer.num_val_batches)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the short bar."""
        self._open_evaluation(trainer, "testing", trainer.num_test_batches)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the short bar."""
        self._open_evaluation(trainer, "writing stories", trainer.num_predict_batches)

    def on_validation_batch_end(self, *arguments: Any, **named: Any) -> None:
        """Advance the short bar."""
        if self._evaluation is not None:
            self._evaluation.update()

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the short bar, and show the validation loss in the long one."""
        self._close_evaluation()
        self.on_step_log(trainer, pl_module, trainer.global_step)

    on_test_end = on_predict_end = on_validation_end

    def _open_evaluation(self, trainer: pl.Trainer, what: str, batches: Any) -> None:
        total = sum(batches) if isinstance(batches, list) else batches
        self._evaluation = tqdm(
            total=total, desc=what, unit=" batches", leave=False, dynamic_ncols=True, disable=not trainer.is_global_zero
        )

    def _close_evaluation(self) -> None:
        if self._evaluation is not None:
            self._evaluation.close()
            self._evaluation = None


def latest_figures(trainer: pl.Trainer) -> str:
    """Format the last report's loss and speed, and the last validation's loss, in one short line."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, StepMetrics):
            latest = callback.latest
            return ", ".join(text.format(latest[name]) for name, text in FIGURES.items() if name in latest)
    return ""
