"""The figures of a run: losses, learning rate, gradient norm and speed, and the loggers that receive them.

One callback measures. TensorBoard, metrics.csv, the progress bar and the summary show what it measured.
"""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tqdm import tqdm

from tslm.data.datamodule import text_data
from tslm.loops.lightning import StepCallback
from tslm.objective import perplexity
from tslm.training.checkpoint_callback import Checkpoints
from tslm.training.forecast import matmul_flops
from tslm.training.module import LanguageModule
from tslm.training.nonfinite import SkipReport, check_diverged

MOST_UNREAD = 1000  # optimizer steps whose losses may stay on the device
FLAT = 1e-5  # smallest standard deviation of losses, relative to the mean; below it, rounding would count as a spike


class LossSpikes:
    """Compares the loss of each step with the mean and the standard deviation of the steps before it.

    A spike is a loss above mean + deviations · σ with σ² = mean of squares - square of the mean. After a reported
    spike nothing is reported for `window` steps; then the mean has adapted if the loss has stayed high.

    Args:
        window: steps whose losses are compared.
        least: steps that must precede the first spike.
        deviations: a loss this many standard deviations above the mean is a spike.
    """

    def __init__(self, window: int = 1000, least: int = 100, deviations: float = 5.0) -> None:
        self.window, self.least, self.deviations = window, least, deviations
        self._losses: deque[float] = deque()
        self._sum = self._squares = 0.0
        self._silent = 0  # steps until a spike is reported again

    def add(self, loss: float) -> float | None:
        """Add the loss of the next step, in nats; if it is a spike to report, return its distance from the mean in σ.

        A loss that is not finite is left out, because its step is skipped and reported as such.
        """
        if not math.isfinite(loss):
            return None
        count, distance = len(self._losses), 0.0
        if count >= self.least:
            mean = self._sum / count
            deviation = math.sqrt(max(self._squares / count - mean * mean, 0.0))
            distance = (loss - mean) / max(deviation, FLAT * abs(mean), 1e-12)
        self._include(loss, 1)
        if count == self.window:
            self._include(self._losses.popleft(), -1)
        self._losses.append(loss)
        self._silent -= 1
        if distance <= self.deviations or self._silent > 0:
            return None
        self._silent = self.window
        return distance

    def _include(self, loss: float, sign: int) -> None:
        self._sum += sign * loss
        self._squares += sign * loss * loss


class StepMetrics(StepCallback):
    """Collects the loss of every step, and reports means at the logging cadence.

    Between two reports the losses stay on the device, those of at most `MOST_UNREAD` steps, because reading them makes
    the CPU wait.

    Args:
        clock: returns the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.tokens_seen = 0  # by all processes, since the first step of the run, including resumed parts
        self.skipped_steps = 0  # because of a gradient that was not finite; including resumed parts
        self.seconds = 0.0  # of training, without validation and saving
        self.latest: dict[str, float] = {}
        self._clock = clock
        self._started: float | None = None  # when the clock was started; None while it is stopped
        self._tokens_here = 0  # in this part of the run, which defines its speed
        self._learning_rate = 0.0
        self._losses: list[torch.Tensor] = []  # of micro-batches, on the device, not read yet
        self._steps_read = 0  # optimizer steps whose losses have been read
        self._loss_sum, self._finite = 0.0, 0  # over micro-batches with a finite loss, and their number
        self._spikes = LossSpikes()
        self._peak = 1.0  # operations per second of a plain matmul on all devices
        self._skipped_before = 0  # in earlier parts of the run
        self._steps_at_log = 0
        self._tokens_at_log = 0
        self._interval = 0.0  # seconds of training since the last report

    @property
    def tokens_per_second(self) -> float:
        """Mean training speed of this part of the run."""
        return self._tokens_here / self.seconds if self.seconds else 0.0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Report in place of the module, which would log each step."""
        assert isinstance(pl_module, LanguageModule)
        pl_module.is_reported = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin a run, or continue a resumed one; give the settings to the loggers."""
        assert isinstance(pl_module, LanguageModule)
        for logger in trainer.loggers:
            if not isinstance(logger, TensorBoardLogger | CSVLogger):  # config.yaml is beside their files
                logger.log_hyperparams(flat(pl_module.run_config))
        self._peak = matmul_flops(pl_module.device, half="16" in str(trainer.precision)) * trainer.world_size
        self._tokens_at_log = self.tokens_seen
        self._losses, self._loss_sum, self._finite = [], 0.0, 0
        self._skipped_before = self.skipped_steps
        self._steps_at_log = self._steps_read = trainer.global_step

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any,
                             batch_idx: int) -> None:
        """Remember the step's learning rate before the schedule advances; start the clock if it is stopped."""
        self._learning_rate = float(trainer.optimizers[0].param_groups[0]["lr"])
        if self._started is None:
            self._started = self._clock()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any,
                           batch_idx: int) -> None:
        """Add a micro-batch. Lightning has divided its loss by the number of micro-batches in a step."""
        self._losses.append(outputs["loss"])
        if len(self._losses) >= MOST_UNREAD * trainer.accumulate_grad_batches:
            self._read_losses(trainer)
        tokens = batch[0].numel() * trainer.world_size
        self.tokens_seen += tokens
        self._tokens_here += tokens

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock."""
        assert isinstance(pl_module, LanguageModule)
        self._stop_clock(pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the validation loss over all tokens of all processes."""
        assert isinstance(pl_module, LanguageModule)
        figures = pl_module.figures
        self.latest |= {f"valid_{name}": value for name, value in figures.items()}
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            report(trainer, {f"valid/{name}": value for name, value in figures.items()}, trainer.global_step)

    def on_step_log(self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int) -> None:
        """Report the means since the last report."""
        assert isinstance(pl_module, LanguageModule)
        skipped = self._stop_clock(pl_module)
        if step == self._steps_at_log:
            return
        if trainer.scaler is None:  # a loss scaler finds its scale by steps that overflow
            check_diverged(skipped, pl_module.optimizer_settings, newest_checkpoint(trainer),
                           windows_of(trainer, skipped.step))
        self._read_losses(trainer)
        self._count_skipped(trainer, skipped.total, step)
        sums = torch.tensor([self._loss_sum, self._finite], dtype=torch.float64, device=pl_module.device)
        loss_sum, finite = trainer.strategy.reduce(sums, reduce_op="mean").tolist()  # over processes
        loss = loss_sum / (finite / trainer.accumulate_grad_batches) if finite else math.nan
        speed = (self.tokens_seen - self._tokens_at_log) / max(self._interval, 1e-9)
        figures = {
            "train/loss": loss,
            "train/perplexity": perplexity(loss),
            "train/learning_rate": self._learning_rate,
            "train/gradient_norm": float(pl_module.gradient_norm),
            "train/skipped_steps": float(self.skipped_steps),
            "train/tokens_per_second": speed,
            "train/tokens_seen": float(self.tokens_seen),
            "train/flops_utilisation": speed * pl_module.model.flops_per_token() / self._peak,
        }
        if finite:
            self.latest["train_loss"] = loss
        self.latest["tokens_per_second"] = speed
        report(trainer, figures, step)
        self._loss_sum, self._finite = 0.0, 0
        self._steps_at_log, self._tokens_at_log, self._interval = step, self.tokens_seen, 0.0

    def on_step_save(self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int) -> None:
        """Stop the clock before saving; this callback precedes the one that saves."""
        assert isinstance(pl_module, LanguageModule)
        self._stop_clock(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Return the counts and the last reported loss."""
        last = {"train_loss": self.latest["train_loss"]} if "train_loss" in self.latest else {}
        return {"tokens_seen": self.tokens_seen, "skipped_steps": self.skipped_steps, **last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the counts and the last reported loss."""
        if "train_loss" in state_dict:
            self.latest["train_loss"] = state_dict["train_loss"]
        self.tokens_seen = state_dict["tokens_seen"]
        self.skipped_steps = state_dict.get("skipped_steps", 0)  # early checkpoints lack it: those runs skipped no step

    def _read_losses(self, trainer: pl.Trainer) -> None:
        """Read the losses from the device, add them up, and report a spike among those of this process."""
        losses = torch.stack(self._losses).tolist() if self._losses else []
        self._losses = []
        finite = [loss for loss in losses if math.isfinite(loss)]
        self._loss_sum += math.fsum(finite)
        self._finite += len(finite)
        for start in range(0, len(losses), trainer.accumulate_grad_batches):
            loss = sum(losses[start : start + trainer.accumulate_grad_batches])
            self._steps_read += 1
            distance = self._spikes.add(loss)
            if distance is not None and trainer.is_global_zero:
                windows = windows_of(trainer, self._steps_read)
                say(f"Loss spike at step {self._steps_read:,}: {loss:.4f} is {distance:.1f} standard deviations "
                    f"above the mean of the steps before it{f' ({windows})' * bool(windows)}.")

    def _count_skipped(self, trainer: pl.Trainer, total: int, step: int) -> None:
        new = self._skipped_before + total - self.skipped_steps
        self.skipped_steps += new
        if new and trainer.is_global_zero:
            say(f"Skipped {new} of the steps up to {step:,}: their gradient was not finite.")

    def _stop_clock(self, module: LanguageModule) -> SkipReport:
        """Stop the clock when the device has completed all steps; reading the skipped steps waits for it."""
        skipped = module.skipped.report()
        if self._started is not None:
            passed = self._clock() - self._started
            self.seconds += passed
            self._interval += passed
            self._started = None
        return skipped


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted names."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def windows_of(trainer: pl.Trainer, step: int) -> str:
    """Name the windows of an optimizer step, or return "" if they are not those of a TextDataModule."""
    data = text_data(trainer)
    return "" if data is None else data.windows_of(step)


def say(text: str) -> None:
    """Print lines, above the bar if there is one."""
    tqdm.write(text)
    sys.stdout.flush()


def metrics_of(trainer: pl.Trainer) -> StepMetrics:
    """Return the trainer's callback that measures."""
    return next(each for each in trainer.callbacks if isinstance(each, StepMetrics))  # type: ignore[attr-defined]


def newest_checkpoint(trainer: pl.Trainer) -> Path | None:
    """Return the checkpoint that the run has saved last, or from which it was resumed."""
    return next((each.newest for each in trainer.callbacks if isinstance(each, Checkpoints)), None)  # type: ignore[attr-defined]


def report(trainer: pl.Trainer, figures: dict[str, float], step: int) -> None:
    """Send figures to every logger, under the number of optimizer steps taken, and to callbacks that monitor one.

    A callback may name `train/loss` as `train_loss`, too, for example in a file name.
    """
    trainer.callback_metrics.update({each: torch.tensor(value) for name, value in figures.items()
                                     for each in (name, name.replace("/", "_"))})
    for logger in trainer.loggers:
        sent = figures
        if isinstance(logger, TensorBoardLogger):  # leave out cards that say nothing
            sent = {name: value for name, value in figures.items()
                    if name != "train/tokens_seen" and (value or name != "train/skipped_steps")}
        logger.log_metrics(sent, step=step)
