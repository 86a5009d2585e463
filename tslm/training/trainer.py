"""A lightning.Trainer that counts optimizer steps: its budget, cadences, precision, and the callbacks of a run."""

from __future__ import annotations

import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.pytorch.plugins import CheckpointIO, LayerSync
from lightning.pytorch.plugins import Precision as PrecisionPlugin
from lightning.pytorch.strategies import ModelParallelStrategy

from tslm.data.datamodule import TextDataModule
from tslm.errors import UserError
from tslm.loops.lightning import InterruptAtBoundary, install_step_loop
from tslm.loops.step import Budget, Cadence, TokenCount
from tslm.training.board import Board
from tslm.training.checkpoint import fit_part, read_checkpoint
from tslm.training.checkpoint_callback import AtomicCheckpointIO, Checkpoints
from tslm.training.compiling import Choice, pays
from tslm.training.lightning_features import NOT_IN_TRIAL, REFUSED_FLAGS, check_callbacks, check_flags, check_plugins
from tslm.training.loggers import LoggerName, chosen_loggers
from tslm.training.machine import auto_precision, keep_freed_memory, usable_accelerator
from tslm.training.metrics import StepMetrics
from tslm.training.minutes import MinutesBudget
from tslm.training.module import LanguageModule
from tslm.training.progress import StepProgress
from tslm.training.run_dirs import checked_name, reserved_run_dir, run_dir
from tslm.training.runs import find_checkpoint, summary_of
from tslm.training.sharded import Sharded
from tslm.training.start_report import StartReport
from tslm.training.summary import RunSummary, StorySamples
from tslm.training.writing import named_full_disk

Plugin = PrecisionPlugin | ClusterEnvironment | CheckpointIO | LayerSync
ENDLESS = 1 << 60  # micro-batches
Precision = Literal["auto", "32-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true", "64-true"]


class StepTrainer(pl.Trainer):
    """A Trainer whose budget, validation, logging and saving are counted in optimizer steps.

    Args:
        max_steps: Budget in optimizer steps. Give this, max_tokens or max_minutes.
        max_tokens: Budget in tokens, such as 2000000, 2e6 or 2M, rounded up to whole steps.
        max_minutes: Budget in minutes, from the start of the command, or of `fit` in a script, to its end. The first
            steps are measured; then the number of steps is fixed. A resumed run keeps that number.
        val_every_n_steps: Validate every this many optimizer steps, and at the end; 0 means at the end only.
        log_every_n_steps: Report loss, learning rate, gradient norm and speed every this many optimizer steps.
        save_every_n_steps: Save a checkpoint every this many optimizer steps, after each validation, and at the end.
        accelerator: cpu, gpu and the like, or `auto`: a GPU if there is one. Apple's lack float64 and are not used.
        precision: Lightning's precision, or `auto`: bf16-mixed if the device computes in bfloat16, else 32-true.
        compile: Whether to compile the training step: true, false, or `auto`, which compiles if that saves more time
            than it takes, as in long runs on a GPU. Without a C++ compiler the step runs as written, with a notice.
        gradient_clip_val: Largest global norm of the gradient; None disables clipping.
        gradient_clip_algorithm: `norm`, the only one.
        min_steps: Callbacks cannot end the training before this many optimizer steps.
        max_epochs: Refused, because a training has no epochs.
        val_check_interval: Refused in favour of val_every_n_steps.
        check_val_every_n_epoch: Refused in favour of val_every_n_steps.
        fast_dev_run: A trial of this many optimizer steps and of a validation of as many batches, which saves nothing;
            true is one.
        overfit_batches: Train on the windows of the first so many optimizer steps again and again, and validate on as
            many batches; 0 for the whole text.
        num_sanity_val_steps: Batches that are validated before the first step.
        limit_val_batches: Batches of a validation, or the share of all that are used.
        default_root_dir: Folder for `lightning_logs`.
        callbacks: Further callbacks.
        logger: A logger or several, also by the bare name of one of Lightning's; unless given, TensorBoard and
            metrics.csv; False for none.
        plugins: Lightning plugins.
        enable_progress_bar: Whether to show progress bars; if not, or if no terminal reads them, each report is a line.
        enable_checkpointing: Whether to save checkpoints.
        enable_model_summary: Whether to print a table of the model's layers.
        name: Name of the run directory; unless given, `version_N`, or of a resumed run its name and `-continued`.
        kwargs: Further arguments of Lightning's Trainer.

    Raises:
        UserError: a number is out of range, an Apple GPU is asked for, or a flag or a callback has no meaning in a
            training without epochs (see `lightning_features`).
    """

    def __init__(
        self,
        *,
        max_steps: int | None = None,
        max_tokens: TokenCount | None = None,
        max_minutes: float | None = None,
        val_every_n_steps: int = 0,
        log_every_n_steps: int = 10,
        save_every_n_steps: int = 0,
        accelerator: str | pl.accelerators.Accelerator = "auto",
        precision: Precision = "auto",
        compile: Choice = "auto",
        gradient_clip_val: float | None = 1.0,
        gradient_clip_algorithm: str | None = None,
        min_steps: int | None = None,
        max_epochs: int | None = None,
        val_check_interval: int | float | None = None,
        check_val_every_n_epoch: int | None = 1,
        fast_dev_run: int | bool = False,
        overfit_batches: int | float = 0,
        num_sanity_val_steps: int = 0,
        limit_val_batches: int | float | None = None,
        default_root_dir: str = ".",
        callbacks: list[pl.Callback] | pl.Callback | None = None,
        logger: LoggerName | pl.loggers.Logger | list[LoggerName | pl.loggers.Logger] | bool | None = None,
        plugins: Plugin | list[Plugin] | None = None,
        enable_progress_bar: bool = True,
        enable_checkpointing: bool | None = None,
        enable_model_summary: bool = False,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        check_flags(kwargs | {
            "max_epochs": max_epochs, "gradient_clip_algorithm": gradient_clip_algorithm,
            "overfit_batches": overfit_batches, "fast_dev_run": fast_dev_run, "val_check_interval": val_check_interval,
            "check_val_every_n_epoch": check_val_every_n_epoch,
        })
        for flag in REFUSED_FLAGS:
            kwargs.pop(flag, None)
        self.trial = int(fast_dev_run)  # steps of a trial that saves nothing, or 0
        self.overfit_steps = int(overfit_batches)
        if self.trial:
            max_steps, max_tokens, max_minutes = self.trial, None, None
            logger, enable_checkpointing = False, False
            kwargs |= {"limit_test_batches": self.trial, "limit_predict_batches": self.trial}
        limit_val_batches = self.trial or self.overfit_steps or limit_val_batches
        max_tokens = max_tokens if max_tokens is None else TokenCount(max_tokens)
        self._budget = partial(Budget.of, max_steps=max_steps, max_tokens=max_tokens, max_minutes=max_minutes)
        self.max_minutes = max_minutes
        self.began: float | None = None  # when the command began, by time.perf_counter; unless set, when `fit` begins
        self._compile = compile
        self.run_name = name if name is None else checked_name(name)
        self.numbered = False  # whether a run whose name exists gets a number, as in NAME-2
        accelerator = usable_accelerator(accelerator)
        if precision == "auto":
            precision = auto_precision(str(accelerator))
        if (accumulation := kwargs.get("accumulate_grad_batches", 1)) < 1:
            raise UserError(f"trainer.accumulate_grad_batches is {accumulation}: give 1 or more, or leave it out")
        if gradient_clip_val is not None and not gradient_clip_val > 0:
            raise UserError(f"trainer.gradient_clip_val is {gradient_clip_val}: give a norm above 0, or null for no "
                            "clipping")
        if kwargs.get("strategy") == "fsdp2":
            kwargs["strategy"] = Sharded()
        given = callbacks if isinstance(callbacks, list) else [callbacks] if callbacks is not None else []
        if enable_checkpointing is False:
            given = [each for each in given if not isinstance(each, Checkpoints)]
        plugins = plugins if isinstance(plugins, list) else [plugins] if plugins is not None else []
        if self.trial:
            given = [each for each in given if not isinstance(each, NOT_IN_TRIAL)]
        rare = {"limit_val_batches": limit_val_batches, "val_every_n_steps": val_every_n_steps}
        check_callbacks(given, enable_checkpointing is not False,
                        next((f"trainer.{name} is 0" for name, value in rare.items() if value == 0), ""))
        check_plugins(plugins)
        super().__init__(
            accelerator=accelerator,
            precision=precision,
            gradient_clip_val=gradient_clip_val,
            default_root_dir=default_root_dir,
            logger=chosen_loggers(logger, default_root_dir),
            callbacks=with_defaults(given, enable_progress_bar, enable_checkpointing is not False, bool(self.trial)),
            plugins=[*plugins, AtomicCheckpointIO()],
            # StepProgress writes lines where there are no bars.
            enable_progress_bar=enable_progress_bar or not has_bar(given),
            enable_checkpointing=enable_checkpointing,
            enable_model_summary=enable_model_summary,
            log_every_n_steps=log_every_n_steps,
            limit_val_batches=limit_val_batches,
            num_sanity_val_steps=num_sanity_val_steps,
            gradient_clip_algorithm=gradient_clip_algorithm,
            # The step loop has no epochs, and does nothing between two micro-batches. By the next two values, callbacks
            # of Lightning act after a validation, and not at the end of the epoch that never ends.
            max_epochs=-1,
            val_check_interval=ENDLESS,
            check_val_every_n_epoch=None,
            enable_autolog_hparams=False,
            use_distributed_sampler=False,
            **kwargs,
        )
        if isinstance(self.strategy, ModelParallelStrategy):  # each process computes whole layers
            self.strategy._data_parallel_size = self.num_devices * self.num_nodes
            self.strategy._tensor_parallel_size = 1
        self._stated_accumulation = self.accumulate_grad_batches  # `fit` replaces it
        self.reserved: list[Path] = []  # run directories that `fit` has created
        self.unlogged_dir = Path(default_root_dir)  # of a run without loggers; `fit` reserves it
        self.step_loop = install_step_loop(self, Cadence(val_every_n_steps, log_every_n_steps, save_every_n_steps))
        self.step_loop.min_steps = min_steps

    def fit(self, model: pl.LightningModule, train_dataloaders: Any = None, val_dataloaders: Any = None,
            datamodule: pl.LightningDataModule | None = None, ckpt_path: str | Path | None = None,
            weights_only: bool | None = True) -> None:
        """Train a model until the budget is spent.

        Args:
            model: The module to train.
            train_dataloaders: Batches, unless a datamodule provides them.
            val_dataloaders: Validation batches, unless a datamodule provides them.
            datamodule: Provides the batches.
            ckpt_path: Checkpoint to resume from: a file, a run directory, or 'last' or 'best' for the newest run's.
            weights_only: No effect; loading a checkpoint never runs code.

        Raises:
            UserError: the budget is missing, or the checkpoint has already spent it; the batch size cannot be split; or
                the accumulation is stated where it follows from the batch size.
            MissingFileError: there is no such checkpoint.
        """
        data = next((each for each in (datamodule, train_dataloaders) if isinstance(each, TextDataModule)), None)
        tokens = self.accumulate_grad_batches * self.world_size if data is None else self._split_batch(data)
        if ckpt_path is None:
            budget = self._budget(tokens_per_step=tokens)
        else:
            ckpt_path, notices = find_checkpoint(str(ckpt_path), root=Path(self.default_root_dir))
            print(*notices[:-1], sep="\n", end="\n" * bool(notices[:-1]))  # about skipped files
            state = read_checkpoint(ckpt_path, mmap=True)
            if isinstance(model, LanguageModule):
                fit_part(state, ckpt_path, resume=True)
            budget = self._resumed_budget(state, ckpt_path, tokens, counted=data is not None)
        self.step_loop.set_budget(budget)
        began, self.began = time.perf_counter() if self.began is None else self.began, None
        callbacks: list[pl.Callback] = self.callbacks  # type: ignore[attr-defined]
        callbacks[:] = [each for each in callbacks if not isinstance(each, MinutesBudget)]  # of an earlier call
        if budget.is_open:
            assert self.max_minutes is not None
            callbacks.insert(0, MinutesBudget(self.max_minutes, began))
        if isinstance(model, LanguageModule):
            # These check precision and warm-up before there is a run directory.
            model.optimizer_settings.check_precision(str(self.precision))
            model.optimizer_settings.rate(budget.max_steps, in_minutes=budget.is_open)
            flops = budget.max_steps * tokens * model.model.flops_per_token()
            if pays(self._compile, flops, self.strategy.root_device.type, self.max_minutes if budget.is_open else None):
                model.compile_step()
        if self.strategy.root_device.type == "cpu":
            keep_freed_memory()
        # The run directory is reserved before the data is prepared, which may take long.
        with (named_full_disk(lambda: run_dir(self)),
              reserved_run_dir(self, ckpt_path and Path(ckpt_path), lambda: self.step_loop.loop.step > 0)
              if self.is_global_zero and not self.trial else nullcontext()):
            super().fit(model, train_dataloaders, val_dataloaders, datamodule, ckpt_path, weights_only=True)

    def _resumed_budget(self, state: dict[str, Any], path: Path, tokens: int, *, counted: bool) -> Budget:
        """Return the budget of a resumed run, or raise a UserError if its checkpoint has spent it already."""
        done = int(state["global_step"])
        if self.trial:  # of further steps
            return Budget(done + self.trial)
        metrics = state["callbacks"].get("StepMetrics", {}) if counted else {}
        seen = metrics.get("tokens_seen", done * tokens)  # earlier steps may have had another batch size
        budget = self._budget(tokens_per_step=tokens, steps_done=done, tokens_seen=seen)
        is_left = done == budget.max_steps and validation_due(state) and summary_of(path).get("finished") is not True
        if done >= budget.max_steps and not is_left:  # the validation
            raise UserError(f"{path} is at step {done} and the budget is {budget.max_steps} steps, so nothing is left "
                            "to train: give a larger --trainer.max_steps or --trainer.max_tokens, or "
                            "--trainer.max_minutes")
        return budget

    def _split_batch(self, data: TextDataModule) -> int:
        """Derive the accumulation from the batch size of the data; return the tokens of one optimizer step."""
        if self._stated_accumulation > 1:
            windows = data.batch_size * self._stated_accumulation * self.world_size
            raise UserError(f"trainer.accumulate_grad_batches is {self._stated_accumulation}, but accumulation follows "
                            "from the windows of one optimizer step and those computed at a time: give "
                            f"--data.batch_size {windows} and --data.micro_batch_size {data.batch_size} instead")
        _, self.accumulate_grad_batches = data.split(self.world_size, self.strategy.root_device.type)
        return data.tokens_per_step

    @property
    def interrupted_by_user(self) -> bool:
        """Whether Ctrl-C ended the training."""
        return any(isinstance(callback, InterruptAtBoundary) and callback.interrupted for callback in self.callbacks)  # type: ignore[attr-defined]


def validation_due(state: dict[str, Any]) -> bool:
    """Whether the step of a checkpoint is still to be validated; a step is saved before its validation."""
    position = state["loops"]["fit_loop"].get("epoch_loop.state_dict")
    return isinstance(position, dict) and position.get("validation_due") is True


def with_defaults(callbacks: list[pl.Callback], progress: bool, checkpoints: bool = True,
                  trial: bool = False) -> list[pl.Callback]:
    """Add the callbacks of a run that are not given; their order is the order in which they are called.

    A trial saves nothing. Without `progress`, each report is a line.
    """
    kinds: list[type[pl.Callback]] = [
        StepMetrics, *([] if has_bar(callbacks) else [StepProgress]), *([Checkpoints] if checkpoints else []),
        *([] if trial else [StartReport, Board, StorySamples, RunSummary]), InterruptAtBoundary,
    ]
    ours: list[pl.Callback] = []
    for kind in kinds:
        of_kind = [callback for callback in callbacks if isinstance(callback, kind)]
        ours += of_kind or [StepProgress(bars=progress) if kind is StepProgress else kind()]
    return [*ours, *(callback for callback in callbacks if callback not in ours)]


def has_bar(callbacks: list[pl.Callback]) -> bool:
    """Whether the user has given a progress bar."""
    return any(isinstance(callback, pl.callbacks.ProgressBar) for callback in callbacks)
