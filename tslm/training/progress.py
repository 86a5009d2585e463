"""The progress of a training: bars in a terminal, and a line for each report elsewhere."""

from __future__ import annotations

import shutil
import sys
from typing import Any

import lightning.pytorch as pl
from tqdm import tqdm

from tslm.loops.lightning import StepCallback
from tslm.loops.step import OPEN
from tslm.training.forecast import duration
from tslm.training.metrics import metrics_of

FIGURES = {"train_loss": "loss {:.3f}", "valid_loss": "valid {:.3f}", "tokens_per_second": "{:,.0f} tokens/s"}
_WIDE, _NARROW = 100, 60  # columns


class StepProgress(StepCallback, pl.callbacks.ProgressBar):
    """A bar over the budget's optimizer steps, and a short one while evaluating; lines where no terminal reads them.

    It shows what the last report measured, and reads nothing from the device itself.

    Args:
        bars: whether to show bars in a terminal.
    """

    def __init__(self, bars: bool = True) -> None:
        super().__init__()
        self._bars = bars
        self._train: tqdm[Any] | None = None
        self._evaluation: tqdm[Any] | None = None
        self._first_step = 0

    def disable(self) -> None:
        """Do nothing: only the first process shows anything anyway."""

    @property
    def _has_terminal(self) -> bool:
        return self._bars and sys.stderr.isatty()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar at the step that training starts from."""
        self._first_step = trainer.global_step
        if self._has_terminal:
            self._train = tqdm(total=_total(trainer), initial=trainer.global_step, desc="training", unit=" steps",
                               smoothing=0.1, dynamic_ncols=True, disable=not trainer.is_global_zero,
                               bar_format=bar_format())

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any,
                           batch_idx: int) -> None:
        """Advance the bar at the end of an optimizer step."""
        if self._train is not None and trainer.global_step > self._train.n:
            self._train.total = _total(trainer)
            self._train.update(trainer.global_step - self._train.n)

    def on_step_log(self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int) -> None:
        """Show the latest figures, in the bar or as a line."""
        if self._train is not None:
            self._train.bar_format = bar_format()
            self._train.set_postfix_str(latest_figures(trainer), refresh=False)
        elif trainer.is_global_zero:
            print(report_line(trainer, step, self._first_step), file=sys.stderr, flush=True)

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
        """Close the short bar, and show the validation loss."""
        self._close_evaluation()
        if self._train is not None:
            self._train.set_postfix_str(latest_figures(trainer), refresh=False)
        elif trainer.state.fn == "fit" and trainer.is_global_zero and not trainer.sanity_checking:
            loss = metrics_of(trainer).latest.get("valid_loss")
            if loss is not None:
                print(f"step {trainer.global_step:,}: validation loss {loss:.4f}", file=sys.stderr, flush=True)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the short bar."""
        self._close_evaluation()

    on_predict_end = on_test_end

    def _open_evaluation(self, trainer: pl.Trainer, what: str, batches: Any) -> None:
        if not self._has_terminal:
            return
        total = sum(batches) if isinstance(batches, list) else batches
        self._evaluation = tqdm(total=total, desc=what, unit=" batches", leave=False, dynamic_ncols=True,
                                disable=not trainer.is_global_zero)

    def _close_evaluation(self) -> None:
        if self._evaluation is not None:
            self._evaluation.close()
            self._evaluation = None


def _total(trainer: pl.Trainer) -> int | None:
    """Return the number of steps; None as long as a budget in minutes does not have one."""
    return trainer.max_steps if trainer.max_steps < OPEN else None


def bar_format(columns: int | None = None) -> str:
    """Return the layout of the bar for a width: loss and speed in 80 columns, the loss in 40."""
    columns = shutil.get_terminal_size().columns if columns is None else columns
    if columns >= _WIDE:
        return "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
    if columns >= _NARROW:
        return "{percentage:3.0f}%|{bar:9}|{remaining}{postfix}"
    return "{percentage:3.0f}% {remaining}{postfix}"


def latest_figures(trainer: pl.Trainer) -> str:
    """Format the last report's loss and speed, and the last validation's loss, in one short line."""
    latest = metrics_of(trainer).latest
    return ", ".join(text.format(latest[name]) for name, text in FIGURES.items() if name in latest)


def report_line(trainer: pl.Trainer, step: int, first_step: int) -> str:
    """Format a report as a line for a log: the step, loss, speed and time left."""
    metrics = metrics_of(trainer)
    total = _total(trainer)
    parts = [f"step {step:,}" if total is None else f"step {step:,} of {total:,}"]
    parts += [text.format(metrics.latest[name]) for name, text in FIGURES.items()
              if name in metrics.latest and name != "valid_loss"]
    if total is not None and first_step < step < total:
        parts.append(f"{duration((total - step) * metrics.seconds / (step - first_step))} left")
    return ", ".join(parts)
