"""Lets `StepLoop` drive a `lightning.Trainer`: strategies, precision, callbacks, loggers and flags keep working.

Loop customisation left Lightning's public interface in 2.0, so this file, and no other, touches its protected loop
classes; a contract test names each attribute used here, and pyproject.toml pins Lightning to the minor version that
passes it. Lightning's own epoch loop counts batches and validates, logs and saves between any two of them; ours
replaces its `run` by a `StepLoop` whose steps are made of Lightning's `advance`.
"""

from __future__ import annotations

import signal
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loops.fetchers import _DataFetcher
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.trainer import call
from lightning.pytorch.utilities.exceptions import SIGTERMException

from tslm.loops.agreement import Agreement
from tslm.loops.step import Budget, Cadence, StepLoop

TERMINATED = 128 + signal.SIGTERM  # the exit code of a process that SIGTERM ended


class StepCallback(pl.Callback):
    """A Lightning callback that also hears of the boundaries between optimizer steps."""

    def on_step_log(self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int) -> None:
        """Called when a report is due; `step` optimizer steps have been taken."""

    def on_step_save(self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int) -> None:
        """Called when a checkpoint is due; validation and logging of this step are over."""


class StepEpochLoop(_TrainingEpochLoop):
    """The driver of a `StepLoop` inside Lightning's fit loop, in which all of training is one endless epoch."""

    def __init__(self, trainer: pl.Trainer, cadence: Cadence) -> None:
        super().__init__(trainer)
        self.cadence = cadence
        self._fetcher: _DataFetcher | None = None
        self._arguments: list[str] = []  # of training_step
        self._agreement: Agreement | None = None  # with the other processes, where there are any
        self._sigterm = False  # received by this process
        self._terminated = False  # because of a SIGTERM of this process or any other

    def set_budget(self, budget: Budget) -> None:
        """Fix the number of optimizer steps, known once the tokens of a step are."""
        self.max_steps = budget.max_steps

    def run(self, data_fetcher: _DataFetcher) -> None:
        """Run a `StepLoop` from the restored position to the end of the budget."""
        self.reset()
        self.on_run_start(data_fetcher)
        self._fetcher, self._arguments = data_fetcher, []
        if self.trainer.world_size > 1:
            self._agreement = Agreement(2)
            self._take_over_sigterm()
        loop = StepLoop(self, Budget(self.max_steps), self.cadence)
        loop.load_state_dict({"step": self.global_step})
        with direct_hooks(self.trainer):
            loop.run()
        self._fetcher = None
        if self._agreement is not None:
            self._agreement.finish()
        if loop.stopped and self._terminated:
            if self.trainer.is_global_zero:
                print(f"\nSIGTERM: stopped behind optimizer step {loop.step:,}, which is saved.", flush=True)
            raise SIGTERMException(TERMINATED)

    def train_step(self) -> None:
        """Advance Lightning's loop through the batches of one optimizer step."""
        assert self._fetcher is not None
        for optimizer in self.trainer.optimizers:
            optimizer.zero_grad()  # Lightning does it behind the forward pass, which has no use for the old gradients
        while True:
            self.advance(self._fetcher)
            self.on_iteration_done()
            if not self._should_accumulate():
                break
        self._batches_that_stepped += 1

    def validate(self) -> None:
        """Run Lightning's validation loop, as its epoch loop would between two batches."""
        trainer = self.trainer
        if not trainer.enable_validation:
            return
        trainer.validating = True  # selects the loop that hooks and results belong to
        first_iteration = trainer._logger_connector._first_loop_iter
        call._call_lightning_module_hook(trainer, "on_validation_model_zero_grad")
        try:
            self.val_loop.run()
        except SIGTERMException:
            self._sigterm = True  # given up in the middle; the step itself is whole, and what follows saves it
        finally:
            trainer.training = True
        trainer._logger_connector._first_loop_iter = first_iteration

    def log(self, step: int) -> None:
        """Tell every callback that a report is due."""
        for callback in self._step_callbacks():
            callback.on_step_log(self.trainer, self.trainer.lightning_module, step)

    def save(self, step: int) -> None:
        """Tell every callback that a checkpoint is due."""
        for callback in self._step_callbacks():
            callback.on_step_save(self.trainer, self.trainer.lightning_module, step)

    def stop_requested(self) -> bool:
        """Whether a callback or a signal asks for the end; several processes hear of it together, one boundary late."""
        trainer = self.trainer
        stop, sigterm = trainer.should_stop, trainer.received_sigterm or self._sigterm
        if self._agreement is not None:
            stop, sigterm = self._agreement.ask(stop, sigterm)
        self._terminated = sigterm
        if stop or sigterm:
            trainer.should_stop = True  # or Lightning's fit loop would begin another epoch
        return stop or sigterm

    def _take_over_sigterm(self) -> None:
        """Only remember a SIGTERM: Lightning's handler would broadcast it in the middle of whatever others exchange.

        Lightning puts back what was there before its own handler when the training ends.
        """

        def handler(signum: int, frame: FrameType | None) -> None:
            self._sigterm = True

        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)

    def _step_callbacks(self) -> list[StepCallback]:
        return [callback for callback in self.trainer.callbacks if isinstance(callback, StepCallback)]

    def _should_check_val_fx(self, data_fetcher: _DataFetcher) -> bool:
        return False  # validation is the StepLoop's business, also behind a restart

    def _build_kwargs(self, kwargs: OrderedDict[str, Any], batch: Any, batch_idx: int) -> OrderedDict[str, Any]:
        """Choose the arguments of training_step; Lightning would read its signature again for every batch."""
        self._arguments = self._arguments or list(super()._build_kwargs(OrderedDict(), batch, batch_idx))
        values = {"batch": batch, "batch_idx": batch_idx}
        return OrderedDict((name, values[name]) for name in self._arguments)

    def _broadcast_sigterm_tensor(self) -> None:
        """Do nothing: Lightning would stop between two batches, without a save; `stop_requested` does it."""


class NoProfiler(PassThroughProfiler):
    """What Lightning takes where no profiler is asked for, but without a generator around each action of a step."""

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]
        """Measure nothing."""
        return _NOTHING


_NOTHING = nullcontext()


@contextmanager
def direct_hooks(trainer: pl.Trainer) -> Iterator[None]:
    """Inside, a trainer's hooks are called where somebody implements them, with nothing around each call.

    In every step Lightning offers six hooks to each callback, most of which have none of them, and calls seventeen of
    the module and the strategy, each behind a debug message, in a profiler's context, between two assignments to an
    attribute of an nn.Module, which are slow. Here each hook's listeners are found once; order, arguments, results and
    the name by which `self.log` knows where it stands are Lightning's. A trainer with a profiler keeps Lightning's way.
    """
    if not isinstance(trainer.profiler, NoProfiler):  # type: ignore[attr-defined]
        yield
        return
    known: list[pl.Callback] = []
    listeners: dict[str, list[pl.Callback]] = {}
    module, attributes = trainer.lightning_module, trainer.lightning_module.__dict__

    def call_callbacks(of: pl.Trainer, hook: str, *arguments: Any, **named: Any) -> None:
        if of is not trainer:
            lightnings["_call_callback_hooks"](of, hook, *arguments, **named)
            return
        if known != of.callbacks:  # type: ignore[attr-defined]
            known[:] = of.callbacks  # type: ignore[attr-defined]
            listeners.clear()
        if hook not in listeners:
            listeners[hook] = [callback for callback in known if _implements(callback, hook)]
        before, attributes["_current_fx_name"] = attributes["_current_fx_name"], hook
        for callback in listeners[hook]:
            getattr(callback, hook)(of, module, *arguments, **named)
        attributes["_current_fx_name"] = before

    def calls_of(owner: object, name: str) -> Callable[..., Any]:
        def call_hook(of: pl.Trainer, hook: str, *arguments: Any, **named: Any) -> Any:
            if of is not trainer:
                return lightnings[name](of, hook, *arguments, **named)
            before, attributes["_current_fx_name"] = attributes["_current_fx_name"], hook
            result = getattr(owner, hook)(*arguments, **named)
            attributes["_current_fx_name"] = before
            return result

        return call_hook

    ours: dict[str, Callable[..., Any]] = {"_call_callback_hooks": call_callbacks}
    for owner, name in ((module, "_call_lightning_module_hook"), (trainer.strategy, "_call_strategy_hook")):
        ours[name] = calls_of(owner, name)
    lightnings = {name: getattr(call, name) for name in ours}
    vars(call).update(ours)
    try:
        yield
    finally:
        vars(call).update(lightnings)


def _implements(callback: pl.Callback, hook: str) -> bool:
    """Whether a callback's hook, in its class or set on the object, is another than the empty one of the base class."""
    function = getattr(callback, hook)
    return callable(function) and getattr(function, "__func__", function) is not getattr(pl.Callback, hook, None)


class InterruptAtBoundary(pl.Callback):
    """Turns the first Ctrl-C into a stop at the next step boundary, where a checkpoint is written; a second one kills.

    Lightning itself would stop in the middle of whatever runs, perhaps with half of the parameters updated.
    """

    def __init__(self) -> None:
        self.interrupted = False
        self._previous: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over SIGINT while training."""

        def handler(signum: int, frame: FrameType | None) -> None:
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = trainer.should_stop = True
            print("\nInterrupted: finishing this step and saving. Press Ctrl-C again to stop at once.", flush=True)

        try:
            self._previous = signal.signal(signal.SIGINT, handler)
        except ValueError:  # not in the main thread, where no Ctrl-C arrives either
            self._previous = None

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give SIGINT back, however training ended."""
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None


def install_step_loop(trainer: pl.Trainer, cadence: Cadence) -> StepEpochLoop:
    """Replace a trainer's epoch loop by the step loop; call once, before `fit`."""
    loop = StepEpochLoop(trainer, cadence)
    trainer.fit_loop.epoch_loop = loop
    trainer.fit_loop.max_epochs = -1
    if type(trainer.profiler) is PassThroughProfiler:  # type: ignore[attr-defined]
        trainer.profiler = NoProfiler()  # type: ignore[attr-defined]
    return loop
