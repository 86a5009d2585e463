"""A lightning.Trainer that counts optimizer steps: its budget, cadences, precision, and the callbacks of a run."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch

from tslm.data.datamodule import TextDataModule
from tslm.errors import UserError
from tslm.fast.forms import cpu_multiplies_bfloat16
from tslm.loops.lightning import InterruptAtBoundary, install_step_loop
from tslm.loops.step import Budget, Cadence
from tslm.training.checkpoint import fit_part, named_full_disk, read_checkpoint
from tslm.training.checkpoint_callback import AtomicCheckpointIO, Checkpoints, reserved_run_dir, run_dir
from tslm.training.compiling import Choice, pays
from tslm.training.malloc import keep_freed_memory
from tslm.training.metrics import StepMetrics, run_loggers
from tslm.training.module import LanguageModule
from tslm.training.progress import StepProgress
from tslm.training.runs import checked_name, find_checkpoint
from tslm.training.summary import RunSummary, StorySamples, is_finished

Precision = Literal["auto", "32-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true", "64-true"]


class StepTrainer(pl.Trainer):
    """A Trainer whose budget, validation, logging and saving are counted in optimizer steps.

    Args:
        max_steps: Budget in optimizer steps. Give this or max_tokens.
        max_tokens: Budget in tokens, rounded up to whole steps.
        val_every_n_steps: Validate every this many optimizer steps, and at the end; 0 means at the end only.
        log_every_n_steps: Report loss, learning rate, gradient norm and speed every this many optimizer steps.
        save_every_n_steps: Save a checkpoint every this many optimizer steps, after each validation, and at the end.
        accelerator: cpu, gpu and the like, or `auto`: a GPU if there is one. Apple's GPUs are not used, because they
            lack float64.
        precision: Lightning's precision, or `auto`: bf16-mixed if the device computes in bfloat16, else 32-true.
        compile: Whether to compile the training step: true, false, or `auto`, which compiles if that saves more time
            than it takes, as in long runs on a GPU. Without a C++ compiler the step runs as written, with a notice.
        gradient_clip_val: Largest global norm of the gradient; None disables clipping.
        default_root_dir: Folder for `lightning_logs`.
        callbacks: Further callbacks.
        logger: A logger or several; unless given, TensorBoard and metrics.csv; False for none.
        plugins: Lightning plugins.
        enable_progress_bar: Whether to show progress bars.
        name: Name of the run directory; unless given, `version_N`, or of a resumed run its name and `-continued`.
        kwargs: Further arguments of Lightning's Trainer.

    Raises:
        UserError: a number is out of range, or an Apple GPU is asked for.
    """

    def __init__(
        self,
        *,
        max_steps: int | None = None,
        max_tokens: int | None = None,
        val_every_n_steps: int = 0,
        log_every_n_steps: int = 10,
        save_every_n_steps: int = 0,
        accelerator: str | pl.accelerators.Accelerator = "auto",
        precision: Precision = "auto",
        compile: Choice = "auto",
        gradient_clip_val: float | None = 1.0,
        default_root_dir: str = ".",
        callbacks: list[pl.Callback] | pl.Callback | None = None,
        logger: pl.loggers.Logger | list[pl.loggers.Logger] | bool | None = None,
        plugins: Any = None,
        enable_progress_bar: bool = True,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        self._budget = partial(Budget.of, max_steps=max_steps, max_tokens=max_tokens)
        self._compile = compile
        self.run_name = name if name is None else checked_name(name)
        accelerator = _accelerator(accelerator)
        if precision == "auto":
            precision = auto_precision(str(accelerator))
        if (accumulation := kwargs.get("accumulate_grad_batches", 1)) < 1:
            raise UserError(f"trainer.accumulate_grad_batches is {accumulation}: give 1 or more, or leave it out")
        if gradient_clip_val is not None and not gradient_clip_val > 0:
            raise UserError(
                f"trainer.gradient_clip_val is {gradient_clip_val}: give a norm above 0, or null for no clipping"
            )
        limit, overfit = kwargs.get("limit_train_batches"), kwargs.get("overfit_batches")
        for name, batches, ends in (("limit_train_batches", limit, limit == 0 or isinstance(limit, int)),
                                    ("overfit_batches", overfit, bool(overfit))):
            if ends:  # Lightning would end the endless epoch there, without saving
                raise UserError(f"trainer.{name} is {batches}, but a training has no epochs that could be cut: give "
                                "--trainer.max_steps or --trainer.max_tokens instead")
        given = callbacks if isinstance(callbacks, list) else [callbacks] if callbacks is not None else []
        super().__init__(
            accelerator=accelerator,
            precision=precision,
            gradient_clip_val=gradient_clip_val,
            default_root_dir=default_root_dir,
            logger=run_loggers(default_root_dir) if logger in (None, True) else logger,
            callbacks=with_defaults(given, enable_progress_bar),
            plugins=[*(plugins if isinstance(plugins, list) else [plugins] if plugins else []), AtomicCheckpointIO()],
            enable_progress_bar=enable_progress_bar,
            log_every_n_steps=log_every_n_steps,
            # The step loop has no epochs, and does nothing between two micro-batches.
            max_epochs=-1,
            num_sanity_val_steps=0,
            enable_model_summary=False,
            enable_autolog_hparams=False,
            use_distributed_sampler=False,
            **kwargs,
        )
        self._stated_accumulation = self.accumulate_grad_batches  # `fit` replaces it
        self.reserved: list[Path] = []  # run directories that `fit` has created
        self.unlogged_dir = Path(default_root_dir)  # of a run without loggers; `fit` reserves it
        self.step_loop = install_step_loop(self, Cadence(val_every_n_steps, log_every_n_steps, save_every_n_steps))

    def fit(
        self,
        model: pl.LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: pl.LightningDataModule | None = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = True,
    ) -> None:
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
        if isinstance(model, LanguageModule):
            model.optimizer_settings.schedule(budget.max_steps)  # checks the warm-up before there is a run directory
            flops = budget.max_steps * tokens * model.model.flops_per_token()
            if pays(self._compile, flops, self.strategy.root_device.type):
                model.compile_step()
        if self.strategy.root_device.type == "cpu":
            keep_freed_memory()
        # The run directory is reserved before the data is prepared, which may take long.
        with (named_full_disk(lambda: run_dir(self)),
              reserved_run_dir(self, ckpt_path and Path(ckpt_path), lambda: self.step_loop.loop.step > 0)
              if self.is_global_zero else nullcontext()):
            super().fit(model, train_dataloaders, val_dataloaders, datamodule, ckpt_path)

    def _resumed_budget(self, state: dict[str, Any], path: Path, tokens: int, *, counted: bool) -> Budget:
        """Return the budget of a resumed run, or raise a UserError if its checkpoint has spent it already."""
        done = int(state["global_step"])
        seen = done * tokens
        if counted:  # earlier steps may have had another batch size
            seen = state["callbacks"].get("StepMetrics", {}).get("tokens_seen", seen)
        budget = self._budget(tokens_per_step=tokens, steps_done=done, tokens_seen=seen)
        only_validation_left = done == budget.max_steps and validation_due(state) and not is_finished(path)
        if done >= budget.max_steps and not only_validation_left:
            raise UserError(
                f"{path} is at step {done} and the budget is {budget.max_steps} steps, so nothing is left to train: "
                "give a larger --trainer.max_steps or --trainer.max_tokens"
            )
        return budget

    def _split_batch(self, data: TextDataModule) -> int:
        """Derive the accumulation from the batch size of the data; return the tokens of one optimizer step."""
        if self._stated_accumulation > 1:
            windows = data.batch_size * self._stated_accumulation * self.world_size
            raise UserError(
                f"trainer.accumulate_grad_batches is {self._stated_accumulation}, but accumulation follows from the "
                f"windows of one optimizer step and those computed at a time: give --data.batch_size {windows} and "
                f"--data.micro_batch_size {data.batch_size} instead"
            )
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


def with_defaults(callbacks: list[pl.Callback], progress: bool) -> list[pl.Callback]:
    """Add the callbacks of a run that are not given; their order is the order in which they are called."""
    bar: list[type[pl.Callback]] = [StepProgress] if progress else []
    kinds: list[type[pl.Callback]] = [StepMetrics, *bar, Checkpoints, StorySamples, RunSummary, InterruptAtBoundary]
    ours = []
    for kind in kinds:
        of_kind = [callback for callback in callbacks if isinstance(callback, kind)]
        ours += of_kind or [kind()]
    return [*ours, *(callback for callback in callbacks if callback not in ours)]


def _accelerator(asked: str | pl.accelerators.Accelerator) -> str | pl.accelerators.Accelerator:
    """Replace `auto` by `cpu` on Apple's machines: their GPUs lack float64, in which validation losses are summed.

    Raises:
        UserError: an Apple GPU is asked for by name.
    """
    if asked == "mps" or (asked == "gpu" and torch.backends.mps.is_available()):
        raise UserError(f"trainer.accelerator is {asked!r}, but Apple's GPUs have no float64, in which losses are "
                        "summed: give --trainer.accelerator cpu")
    return "cpu" if asked == "auto" and torch.backends.mps.is_available() else asked


def auto_precision(accelerator: str) -> Literal["32-true", "bf16-mixed"]:
    """Choose bfloat16 if the hardware multiplies it, and print the choice."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        device, fast = torch.cuda.get_device_name(), torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        device, fast = "this processor", cpu_multiplies_bfloat16()
    precision: Literal["32-true", "bf16-mixed"] = "bf16-mixed" if fast else "32-true"
    print(f"Precision: {precision} ({device} {'computes' if fast else 'does not compute'} in bfloat16)")
    return precision
