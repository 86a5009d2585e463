"""The Lightning driver: `StepLoop` inside a `lightning.Trainer`, with its strategies, precision, callbacks and loggers.

Loop customisation left Lightning's public interface in 2.0. Only this file uses its protected loop classes. A contract
test names each attribute used here, and pyproject.toml pins Lightning to the minor version that passes it. Lightning's
own epoch loop counts batches, and validates, logs and saves between any two batches. `StepEpochLoop` replaces its `run`
by a `StepLoop`, and composes each optimizer step of Lightning's `advance`, which processes one micro-batch.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.loops.fetchers import _DataFetcher
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.trainer import call
from lightning.pytorch.utilities.exceptions import SIGTERMException

from tslm.errors import PEER_ENDED
from tslm.loops.step import Budget, Cadence, StepLoop
from tslm.loops.stop_consensus import StopConsensus

TERMINATED = 128 + signal.SIGTERM  # the exit code of a process that SIGTERM ended


class StepCallback(pl.Callback):
    """A Lightning callback with hooks for the boundaries between optimizer steps."""

    def on_step_log(self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int) -> None:
        """Called when a report is due, after `step` optimizer steps."""

    def on_step_save(self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int) -> None:
        """Called when a checkpoint is due, after the report of this step and before its validation."""

    def on_budget_fixed(self, trainer: pl.Trainer, pl_module: pl.LightningModule, steps: int) -> None:
        """Called when the number of steps of a training whose budget is in minutes becomes known."""


class StepEpochLoop(_TrainingEpochLoop):
    """Drives a `StepLoop` inside Lightning's fit loop; the whole training is one endless epoch."""

    def __init__(self, trainer: pl.Trainer, cadence: Cadence) -> None:
        super().__init__(trainer)
        self.cadence = cadence
        self.loop = StepLoop(self, Budget(0), cadence)
        self._fetcher: _DataFetcher | None = None
        self._consensus: StopConsensus | None = None  # only with several processes
        self._sigterm = False  # this process received SIGTERM
        self._terminated = False  # the loop ends because this or another process received SIGTERM

    def set_budget(self, budget: Budget) -> None:
        """Set the number of optimizer steps."""
        self.max_steps = budget.max_steps
        self.loop.budget = budget

    def on_save_checkpoint(self) -> dict[str, Any]:
        """Add whether the validation of this step is due."""
        return {**super().on_save_checkpoint(), "validation_due": self.loop.validation_due}

    def on_load_checkpoint(self, state_dict: dict[str, Any]) -> None:
        """Restore whether a validation is due. Earlier versions saved a step after its validation."""
        super().on_load_checkpoint(state_dict)
        self.loop.validation_due = bool(state_dict.get("validation_due"))

    def run(self, data_fetcher: _DataFetcher) -> None:
        """Run a `StepLoop` from the restored position to the end of the budget."""
        self.reset()
        self._restore_batch_count()
        self.on_run_start(data_fetcher)
        self._fetcher = data_fetcher
        if self.trainer.world_size > 1:
            self._consensus = StopConsensus(2)
            self._replace_sigterm_handler()
        self._handle_preemption()
        loop = self.loop
        loop.load_state_dict({"step": self.global_step, "validation_due": loop.validation_due})
        loop.run()
        self._fetcher = None
        if self._consensus is not None:
            self._consensus.finish()
        if loop.stopped and self._terminated:
            if self.trainer.is_global_zero:
                print(f"\nSIGTERM: stopped after optimizer step {loop.step:,}, which is saved.", flush=True)
            raise SIGTERMException(TERMINATED)

    def train_step(self) -> None:
        """Advance Lightning's loop through the micro-batches of one optimizer step."""
        assert self._fetcher is not None
        for optimizer in self.trainer.optimizers:
            optimizer.zero_grad()  # Lightning zeroes after the forward pass; until then old gradients occupy memory
        while True:
            self.advance(self._fetcher)
            self.on_iteration_done()
            if not self._should_accumulate():
                break
        self._batches_that_stepped += 1

    def validate(self) -> bool:
        """Run Lightning's validation loop, as its own epoch loop does between two batches.

        The global random number generators are as before it, because a resumed run may validate once more.
        """
        trainer = self.trainer
        if not trainer.enable_validation:
            return True
        device = trainer.strategy.root_device
        self.val_loop.restarting = False  # or a resumed run would continue the previous validation
        trainer.validating = True  # selects the loop to which hooks and results belong
        first_iteration = trainer._logger_connector._first_loop_iter
        call._call_lightning_module_hook(trainer, "on_validation_model_zero_grad")
        try:
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                self.val_loop.run()
        except SIGTERMException:
            self._sigterm = True
            return False
        finally:
            trainer.training = True
        trainer._logger_connector._first_loop_iter = first_iteration
        return True

    def log(self, step: int) -> None:
        """Call `on_step_log` of every callback."""
        for callback in self._step_callbacks():
            callback.on_step_log(self.trainer, self.trainer.lightning_module, step)

    def save(self, step: int) -> None:
        """Call `on_step_save` of every callback."""
        for callback in self._step_callbacks():
            callback.on_step_save(self.trainer, self.trainer.lightning_module, step)

    def stop_requested(self) -> bool:
        """Whether a callback or a signal asks for the end; several processes learn it together, one boundary later."""
        trainer = self.trainer
        stop, sigterm = trainer.should_stop, trainer.received_sigterm or self._sigterm
        if stop and self.loop.step < (self.min_steps or 0) and not self._interrupted():
            stop = trainer.should_stop = False
        if self._consensus is not None:
            stop, sigterm = self._consensus.exchange(stop, sigterm)
        self._terminated = sigterm
        if stop or sigterm:
            trainer.should_stop = True  # or Lightning's fit loop would begin another epoch
        return stop or sigterm

    def _interrupted(self) -> bool:
        """Whether the user has pressed Ctrl-C."""
        return any(isinstance(each, InterruptAtBoundary) and each.interrupted for each in self.trainer.callbacks)

    def _restore_batch_count(self) -> None:
        """Set Lightning's count of micro-batches to a multiple of the accumulation.

        Lightning ends an optimizer step where the count is such a multiple. A checkpoint may come from a run with
        another accumulation, and its count would make the first step too short.
        """
        count = self.global_step * self.trainer.accumulate_grad_batches
        for stage in ("ready", "started", "processed", "completed"):
            setattr(self.batch_progress.current, stage, count)

    def _replace_sigterm_handler(self) -> None:
        """Let SIGTERM only set a flag: Lightning's handler broadcasts it, even in the middle of another exchange.

        At the end of the training Lightning restores the handler that preceded its own.
        """

        def handler(signum: int, frame: FrameType | None) -> None:
            """Ask for a stop at the next step boundary."""
            self._sigterm = True

        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)

    def _handle_preemption(self) -> None:
        """Treat the signal that SLURM sends before it ends a job like SIGTERM."""
        environment = self.trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment) and threading.current_thread() is threading.main_thread():
            signal.signal(environment.requeue_signal or signal.SIGTERM, signal.getsignal(signal.SIGTERM))

    def _step_callbacks(self) -> list[StepCallback]:
        return [callback for callback in self.trainer.callbacks if isinstance(callback, StepCallback)]

    def _should_check_val_fx(self, data_fetcher: _DataFetcher) -> bool:
        return False  # the StepLoop decides when to validate, also after a restart

    def _broadcast_sigterm_tensor(self) -> None:
        """Do nothing: Lightning would stop between two micro-batches, without saving; `stop_requested` stops."""


class StepFitLoop(_FitLoop):
    """Lightning's fit loop, which also runs if only the validation of the last step is left to do."""

    epoch_loop: StepEpochLoop

    @property
    def done(self) -> bool:
        """Whether the training is over."""
        return super().done and (self.trainer.should_stop or not self.epoch_loop.loop.validation_due)


class InterruptAtBoundary(pl.Callback):
    """Turns the first Ctrl-C into a stop at the next step boundary, with a checkpoint; a second one stops at once.

    Lightning itself would stop in the middle of a step, possibly with half of the parameters updated.
    """

    def __init__(self) -> None:
        self.interrupted = False
        self._previous: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Handle SIGINT while training."""

        def handler(signum: int, frame: FrameType | None) -> None:
            """Ask for a stop at the next step boundary; the second time, interrupt."""
            if self.interrupted:
                before = self._previous
                (before if callable(before) else signal.default_int_handler)(signum, frame)  # KeyboardInterrupt
            self.interrupted = trainer.should_stop = True
            with contextlib.suppress(RuntimeError):  # the signal may have come while something else was printed
                print("\nInterrupted: finishing this step and saving. Press Ctrl-C again to stop at once.", flush=True)

        try:
            self._previous = signal.signal(signal.SIGINT, handler)
        except ValueError:  # not the main thread, which is the only one that Ctrl-C reaches
            self._previous = None

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Restore the previous SIGINT handler, however the training ended."""
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None


def install_step_loop(trainer: pl.Trainer, cadence: Cadence) -> StepEpochLoop:
    """Replace a trainer's fit loop and epoch loop by the step loop; call it once, before `fit`."""
    trainer.fit_loop = StepFitLoop(trainer, trainer.fit_loop.min_epochs, max_epochs=-1)
    trainer.fit_loop.epoch_loop = loop = StepEpochLoop(trainer, cadence)
    environment = trainer._accelerator_connector.cluster_environment
    if isinstance(environment, SLURMEnvironment):
        environment.auto_requeue = False  # Lightning would save in the middle of a step and requeue the same command
    return loop


def report_ended_processes() -> None:
    """Print a sentence before Lightning kills the first process because another one has ended."""
    observer = logging.getLogger("lightning.fabric.strategies.launchers.subprocess_script")

    def replace(record: logging.LogRecord) -> bool:
        """Print the sentence in place of Lightning's message."""
        if "terminated with code" in record.getMessage():
            print(f"tslm: {PEER_ENDED}", file=sys.stderr, flush=True)
        return False

    observer.setLevel(logging.INFO)
    observer.addFilter(replace)


def fit_loop_state(trainer: pl.Trainer) -> dict[str, Any]:
    """Return the state of a trainer's loops in the form in which a checkpoint holds it."""
    return trainer.fit_loop.state_dict()
