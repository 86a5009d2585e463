"""A lightning.Trainer whose unit is the optimizer step: its budget, cadences, precision and the callbacks of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from tslm.fast.forms import cpu_multiplies_bfloat16
from tslm.loops.lightning import InterruptAtBoundary, install_step_loop
from tslm.loops.step import Budget, Cadence
from tslm.training.checkpoint import read_checkpoint
from tslm.training.compiling import Choice, pays
from tslm.training.loggers import run_loggers
from tslm.training.memory import keep_freed_memory
from tslm.training.metrics import StepMetrics
from tslm.training.module import LanguageModule
from tslm.training.progress import StepProgress
from tslm.training.runs import RUNS, find_checkpoint
from tslm.training.samples import StorySamples
from tslm.training.saving import AtomicCheckpointIO, Checkpoints
from tslm.training.summary import RunSummary

Precision = Literal["auto", "32-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true", "64-true"]


class StepTrainer(pl.Trainer):
    """Trains by optimizer steps; everything else is Lightning's.

    Args:
        max_steps: Budget in optimizer steps. Give this or max_tokens.
        max_tokens: Budget in tokens, rounded up to whole steps.
        val_every_n_steps: Validate every this many optimizer steps, and at the end; 0 means at the end only.
        log_every_n_steps: Report loss, learning rate, gradient norm and speed every this many optimizer steps.
        save_every_n_steps: Save a checkpoint every this many optimizer steps, behind each validation, and at the end.
        accelerator: cpu, gpu and the like, or `auto`: a GPU where there is one, but not Apple's, which lack float64.
        precision: Lightning's precision, or `auto`: bf16-mixed where the processor or GPU computes in bfloat16, else
            32-true.
        compile: Whether to compile the training step: true, false, or `auto` for where it saves more time than it
            takes, which is in long runs on a GPU. Without a C++ compiler the step runs as it is written, with a word.
        gradient_clip_val: Largest global norm of the gradient; None does not clip.
        default_root_dir: Folder that gets `lightning_logs`.
        callbacks: Further callbacks.
        logger: A logger or several; unless given, TensorBoard and metrics.csv; False for none.
        plugins: Lightning plugins.
        enable_progress_bar: Whether to show progress bars.
        kwargs: Whatever else Lightning's Trainer takes.
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
        **kwargs: Any,
    ) -> None:
        self._budget_options = (max_steps, max_tokens)
        self._compile = compile
        accelerator = _accelerator(accelerator)
        if precision == "auto":
            precision = auto_precision(str(accelerator))
        if gradient_clip_val is not None and gradient_clip_val <= 0:
            raise ValueError(
                f"trainer.gradient_clip_val is {gradient_clip_val}: give a norm above 0, or null for no clipping"
            )
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
            # What follows belongs to epochs or single batches, which the step loop does without.
            max_epochs=-1,
            num_sanity_val_steps=0,
            enable_model_summary=False,
            enable_autolog_hparams=False,
            use_distributed_sampler=False,
            **kwargs,
        )
        self.unlogged_dir = Path(TensorBoardLogger(default_root_dir, name=RUNS).log_dir)  # for a run without loggers
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
            ValueError: the budget is not given, or already spent by the checkpoint, or micro-batches are asked for
                with a loss that is scaled.
            FileNotFoundError: there is no such checkpoint.
        """
        max_steps, max_tokens = self._budget_options
        tokens = getattr(datamodule, "tokens_per_batch", 1) * self.accumulate_grad_batches * self.world_size
        budget = Budget.of(max_steps=max_steps, max_tokens=max_tokens, tokens_per_step=tokens)
        self.step_loop.set_budget(budget)
        if isinstance(model, LanguageModule):
            model.optimizer_settings.schedule(budget.max_steps)  # too long a warm-up shows before a run directory does
            if self.scaler is not None and model.micro_batch_size is not None:
                raise ValueError(
                    f"model.micro_batch_size is {model.micro_batch_size}, but precision {self.precision} scales its "
                    "loss, which goes with whole batches only: leave --model.micro_batch_size out and give "
                    "--trainer.accumulate_grad_batches, or another --trainer.precision"
                )
            flops = budget.max_steps * tokens * model.model.flops_per_token()
            if pays(self._compile, flops, self.strategy.root_device.type):
                model.compile_step()
        if ckpt_path is not None:
            ckpt_path, _ = find_checkpoint(str(ckpt_path), root=Path(self.default_root_dir))
            done = int(read_checkpoint(ckpt_path, mmap=True)["global_step"])
            if done >= budget.max_steps:
                raise ValueError(
                    f"{ckpt_path} is at step {done} and the budget is {budget.max_steps} steps, so nothing is left to "
                    "train: give a larger --trainer.max_steps or --trainer.max_tokens"
                )
        if self.strategy.root_device.type == "cpu":
            keep_freed_memory()
        super().fit(model, train_dataloaders, val_dataloaders, datamodule, ckpt_path)

    @property
    def interrupted_by_user(self) -> bool:
        """Whether Ctrl-C ended the training."""
        return any(isinstance(callback, InterruptAtBoundary) and callback.interrupted for callback in self.callbacks)  # type: ignore[attr-defined]


def with_defaults(callbacks: list[pl.Callback], progress: bool) -> list[pl.Callback]:
    """Add each callback of a run that is not given, in the order in which they must hear of a boundary."""
    bar: list[type[pl.Callback]] = [StepProgress] if progress else []
    kinds: list[type[pl.Callback]] = [StepMetrics, *bar, StorySamples, Checkpoints, RunSummary, InterruptAtBoundary]
    ours = []
    for kind in kinds:
        of_kind = [callback for callback in callbacks if isinstance(callback, kind)]
        ours += of_kind or [kind()]
    return [*ours, *(callback for callback in callbacks if callback not in ours)]


def _accelerator(asked: str | pl.accelerators.Accelerator) -> str | pl.accelerators.Accelerator:
    """Keep off Apple's GPUs, which lack the float64 that validation adds up in.

    Raises:
        ValueError: one was asked for by name.
    """
    if asked == "mps" or (asked == "gpu" and torch.backends.mps.is_available()):
        raise ValueError(f"trainer.accelerator is {asked!r}, but Apple's GPUs have no float64, in which losses are "
                         "added up: give --trainer.accelerator cpu")
    return "cpu" if asked == "auto" and torch.backends.mps.is_available() else asked


def auto_precision(accelerator: str) -> Literal["32-true", "bf16-mixed"]:
    """Choose bfloat16 where the hardware multiplies it, and say so in one line."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        device, fast = torch.cuda.get_device_name(), torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        device, fast = "this processor", cpu_multiplies_bfloat16()
    precision: Literal["32-true", "bf16-mixed"] = "bf16-mixed" if fast else "32-true"
    print(f"Precision: {precision} ({device} {'computes' if fast else 'does not compute'} in bfloat16)")
    return precision
