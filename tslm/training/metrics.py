"""What a run reports: losses, learning rate, gradient norm, speed. One callback measures; loggers and the bar show."""

from __future__ import annotations

import math
import time
from typing import Any

import lightning.pytorch as pl
import torch

from tslm.data.datamodule import TextDataModule
from tslm.loops.lightning import StepCallback
from tslm.objective import bits_per_byte, perplexity
from tslm.training.module import LanguageModule
from tslm.training.skipped import SkipReport


class StepMetrics(StepCallback):
    """Collects the loss of every step and reports means at the logging cadence, in optimizer steps and tokens.

    Between two reports nothing is read from the device: the loss is summed there, and asking for it would make the
    processor wait for every step.
    """

    def __init__(self) -> None:
        self.tokens_seen = 0  # by all processes, since the first step of the run, resumed parts included
        self.skipped_steps = 0  # for a gradient that was not finite; resumed parts included
        self.seconds = 0.0  # of training, validation and saving apart
        self.latest: dict[str, float] = {}
        self._tokens_here = 0  # by this process's run alone: a resumed run's speed is its own
        self._learning_rate = 0.0
        self._loss_sum, self._finite = torch.zeros(2).unbind()  # over batches, and how many had a finite loss
        self._skipped_before = 0  # in the parts of the run before this one
        self._steps_at_log = 0
        self._tokens_at_log = 0
        self._interval = 0.0  # seconds of training since the last report
        self._clock: float | None = None

    @property
    def tokens_per_second(self) -> float:
        """Training speed over the whole run."""
        return self._tokens_here / self.seconds if self.seconds else 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin a run or a part of one."""
        self._tokens_at_log = self.tokens_seen
        self._loss_sum, self._finite = torch.zeros(2, device=pl_module.device).unbind()
        self._skipped_before = self.skipped_steps
        self._steps_at_log = trainer.global_step

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the step's learning rate before the schedule moves on; start the clock, also behind a validation."""
        self._learning_rate = float(trainer.optimizers[0].param_groups[0]["lr"])
        if self._clock is None:
            self._clock = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add a batch; its loss arrives already divided by their number."""
        finite = outputs["loss"].isfinite()
        self._loss_sum += outputs["loss"].masked_fill(~finite, 0.0)
        self._finite += finite
        tokens = batch[0].numel() * trainer.world_size
        self.tokens_seen += tokens
        self._tokens_here += tokens

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock of training, and start the sums of validation."""
        assert isinstance(pl_module, LanguageModule)
        pl_module.reset_validation()
        self._stop_clock(pl_module)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the sums of testing."""
        assert isinstance(pl_module, LanguageModule)
        pl_module.reset_validation()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the validation loss over all tokens of all processes."""
        assert isinstance(pl_module, LanguageModule)
        figures = validation_figures(trainer, pl_module)
        pl_module.log_dict({f"valid_{name}": value for name, value in figures.items()}, logger=False)
        self.latest |= {f"valid_{name}": value for name, value in figures.items()}
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            report(trainer, {f"valid/{name}": value for name, value in figures.items()}, trainer.global_step)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the test loss over all tokens of all processes."""
        assert isinstance(pl_module, LanguageModule)
        figures = validation_figures(trainer, pl_module)
        pl_module.log_dict({f"test_{name}": value for name, value in figures.items()}, logger=False)

    def on_step_log(self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int) -> None:
        """Report the means since the last report."""
        assert isinstance(pl_module, LanguageModule)
        skipped = self._stop_clock(pl_module)
        steps = step - self._steps_at_log
        if not steps:
            return
        if trainer.scaler is None:  # a loss scaler tries its scales out by steps that overflow
            pl_module.check_skipped(skipped)
        self._count_skipped(trainer, skipped.total, step)
        sums = trainer.strategy.reduce(torch.stack([self._loss_sum, self._finite]), reduce_op="mean")  # over processes
        loss_sum, finite = sums.tolist()
        loss = loss_sum / (finite / trainer.accumulate_grad_batches) if finite else math.nan
        figures = {
            "train/loss": loss,
            "train/perplexity": perplexity(loss),
            "train/learning_rate": self._learning_rate,
            "train/gradient_norm": float(pl_module.gradient_norm),
            "train/skipped_steps": float(self.skipped_steps),
            "train/tokens_per_second": (self.tokens_seen - self._tokens_at_log) / max(self._interval, 1e-9),
            "train/tokens_seen": float(self.tokens_seen),
        }
        self.latest |= {"train_loss": loss} if finite else {}
        self.latest["tokens_per_second"] = figures["train/tokens_per_second"]
        report(trainer, figures, step)
        self._loss_sum.zero_()
        self._finite.zero_()
        self._steps_at_log, self._tokens_at_log, self._interval = step, self.tokens_seen, 0.0

    def on_step_save(self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int) -> None:
        """Leave the time of saving out; this callback stands before the one that saves."""
        assert isinstance(pl_module, LanguageModule)
        self._stop_clock(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Return what is counted."""
        return {"tokens_seen": self.tokens_seen, "skipped_steps": self.skipped_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting from there."""
        self.tokens_seen = state_dict["tokens_seen"]
        self.skipped_steps = state_dict.get("skipped_steps", 0)  # earlier versions stopped instead of skipping

    def _count_skipped(self, trainer: pl.Trainer, total: int, step: int) -> None:
        new = self._skipped_before + total - self.skipped_steps
        self.skipped_steps += new
        if new and trainer.is_global_zero:
            print(f"\nSkipped {new} of the steps up to {step:,}: their gradient was not finite.", flush=True)

    def _stop_clock(self, module: LanguageModule) -> SkipReport:
        """Stop the clock once the device has done all steps given to it; the report of skipped ones waits for that."""
        skipped = module.skipped.report()
        if self._clock is not None:
            passed = time.perf_counter() - self._clock
            self.seconds += passed
            self._interval += passed
            self._clock = None
        return skipped


def validation_figures(trainer: pl.Trainer, module: LanguageModule) -> dict[str, float]:
    """Return loss, perplexity and, where the text's size is known, bits per byte, over all processes' tokens."""
    totals = torch.stack([module.valid_nats, torch.tensor(float(module.valid_tokens), dtype=torch.float64)])
    if trainer.world_size > 1:
        totals = trainer.strategy.reduce(totals.to(trainer.strategy.root_device), reduce_op="sum").cpu()
    nats, tokens = totals.tolist()
    if not tokens:
        return {}
    figures = {"loss": nats / tokens, "perplexity": perplexity(nats / tokens)}
    data = getattr(trainer, "datamodule", None)
    if isinstance(data, TextDataModule):
        figures["bits_per_byte"] = bits_per_byte(nats, round(tokens * data.valid_bytes_per_token))
    return figures


def report(trainer: pl.Trainer, figures: dict[str, float], step: int) -> None:
    """Hand figures to every logger, under the number of optimizer steps taken."""
    for logger in trainer.loggers:
        logger.log_metrics(figures, step=step)
