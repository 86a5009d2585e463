"""What Lightning's flags, callbacks and loggers mean here: what is refused, each with what to use instead.

A training is one endless epoch that is counted in optimizer steps. A flag or a callback that acts at the end of an
epoch would never act. So it is refused in a sentence.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch import callbacks as stock
from lightning.pytorch.plugins.io import CheckpointIO

from tslm.errors import UserError

_IN_STEPS = "a training is counted in optimizer steps and has no epochs"
# Flags of Lightning's Trainer that are refused, unless they have their default: why, and what to use instead.
REFUSED_FLAGS: dict[str, tuple[object, str]] = {
    "max_epochs": (None, f"{_IN_STEPS}: give --trainer.max_tokens, the number of passes times the tokens of the text"),
    "min_epochs": (None, f"{_IN_STEPS}: give --trainer.min_steps"),
    "val_check_interval": (None, f"{_IN_STEPS}: give --trainer.val_every_n_steps"),
    "check_val_every_n_epoch": (1, f"{_IN_STEPS}: give --trainer.val_every_n_steps"),
    "limit_train_batches": (None, f"{_IN_STEPS} that could be cut: give --trainer.max_steps or --trainer.max_tokens"),
    "reload_dataloaders_every_n_epochs": (0, f"{_IN_STEPS}: leave it out"),
    "use_distributed_sampler": (True, "processes divide the windows among them by number: leave it out"),
    "enable_autolog_hparams": (True, "the settings are always given to the loggers: leave it out"),
    "sync_batchnorm": (False, "the model has no batch normalisation: leave it out"),
    "model_registry": (None, "checkpoints stay on this machine: leave it out"),
    "barebones": (False, "it is a set of other flags: give --trainer.logger false --trainer.enable_checkpointing false "
                         "--trainer.enable_progress_bar false"),
}
_EPOCHS = "it acts when an epoch ends, and a training has no epochs"
# Callbacks of Lightning that are refused.
REFUSED_CALLBACKS: dict[type[pl.Callback], str] = {
    stock.LearningRateFinder: "it trains the model and then starts again: use `python -m tslm study lr-range`",
    stock.BatchSizeFinder: "it changes what a step means: give --data.micro_batch_size, or use `python -m tslm study "
                           "batch-size`",
    stock.GradientAccumulationScheduler: "accumulation follows from --data.batch_size and --data.micro_batch_size",
    stock.StochasticWeightAveraging: f"{_EPOCHS}: use WeightAveraging or EMAWeightAveraging, which act after steps",
    stock.BackboneFinetuning: f"{_EPOCHS}, and the model has no backbone: freeze weights in a callback of your own",
    stock.ModelPruning: f"{_EPOCHS}: prune the weights of a finished run in a script of your own",
}


# Callbacks that a trial leaves out, as Lightning does or by a logger that takes no figures: it saves and logs nothing.
NOT_IN_TRIAL = (stock.Checkpoint, stock.EarlyStopping, stock.LearningRateMonitor, stock.DeviceStatsMonitor)
# Arguments of callbacks that are refused with these values: the attribute, the value from which on, what to do instead.
EPOCH_ARGUMENTS: list[tuple[type[pl.Callback], str, str, Any, str]] = [
    (stock.EarlyStopping, "check_on_train_epoch_end", "_check_on_train_epoch_end", True, "leave it out"),
    (stock.ModelCheckpoint, "save_on_train_epoch_end", "_save_on_train_epoch_end", True, "leave it out"),
    (stock.ModelCheckpoint, "every_n_epochs", "_every_n_epochs", 2, "give every_n_train_steps"),
    (stock.LearningRateMonitor, "logging_interval", "logging_interval", "epoch", "give step, or leave it out"),
    (stock.Timer, "interval", "_interval", "epoch", "leave it out"),
    (stock.EMAWeightAveraging, "update_starting_at_epoch", "update_starting_at_epoch", 1,
     "give update_starting_at_step"),
]


def check_flags(flags: Mapping[str, Any]) -> None:
    """Refuse flags of Lightning's Trainer that have no meaning here.

    Raises:
        UserError: such a flag has another value than its default.
    """
    for name, (default, reason) in REFUSED_FLAGS.items():
        value = flags.get(name, default)
        if value is not None and value != default:
            raise UserError(f"trainer.{name} is {value}, but {reason}")
    check_clip_algorithm(flags.get("gradient_clip_algorithm"))
    profiler = flags.get("profiler")
    # Without its package, XLAProfiler is left half made, and Python reports an error of Lightning's at its deletion.
    names = ["simple", "advanced", "pytorch"] + ["xla"] * (find_spec("torch_xla") is not None)
    if isinstance(profiler, str | dict) and profiler not in names:
        raise UserError(f"trainer.profiler is {str(profiler)[:200]}, but it must be one of {', '.join(names)}, or a "
                        "class of lightning.pytorch.profilers with its right init_args")
    trial = flags.get("fast_dev_run")
    if isinstance(trial, int) and trial < 0:
        raise UserError(f"trainer.fast_dev_run is {trial}: give a number of optimizer steps, or true for one")
    overfit = flags.get("overfit_batches") or 0
    if (isinstance(overfit, float) and not overfit.is_integer()) or not overfit >= 0:
        raise UserError(f"trainer.overfit_batches is {overfit}, but a part of a text without an end is no number: give "
                        "--trainer.overfit_batches a number of batches")


def check_clip_algorithm(algorithm: Any) -> None:
    """Raise a UserError for another way of clipping gradients than by their global norm."""
    name = getattr(algorithm, "value", algorithm)
    if name not in (None, "norm"):
        raise UserError(f"trainer.gradient_clip_algorithm is {name!r}, but only 'norm' is implemented: leave "
                        "--trainer.gradient_clip_algorithm out")


def check_callbacks(callbacks: Iterable[pl.Callback], enable_checkpointing: bool, validations: str = "") -> None:
    """Refuse callbacks of Lightning that would never act, or would act against the step loop.

    `{valid/loss:.2f}` in the file name of a ModelCheckpoint becomes `{valid_loss:.2f}`; the slash would make a folder.

    `validations` says why early stopping would never act, such as "trainer.limit_val_batches is 0"; "" if it would.

    Raises:
        UserError: there is such a callback, or one that saves checkpoints although that is switched off.
    """
    for callback in callbacks:
        for kind, reason in REFUSED_CALLBACKS.items():
            if isinstance(callback, kind):
                raise UserError(f"the callback {type(callback).__name__} cannot be used, because {reason}")
        for kind, argument, attribute, least, cure in EPOCH_ARGUMENTS:
            value = getattr(callback, attribute, None) if isinstance(callback, kind) else None
            if value is not None and (value == least if isinstance(least, str) else value >= least):
                raise UserError(f"the callback {type(callback).__name__} has {argument} {value}, which counts epochs, "
                                f"and a training has none: {cure}")
        if isinstance(callback, stock.EarlyStopping) and validations:
            raise UserError(f"the callback {type(callback).__name__} acts after each validation before the end, but "
                            f"{validations}, so there is none: give another value")
        if isinstance(callback, stock.Checkpoint) and not enable_checkpointing:
            raise UserError(f"trainer.enable_checkpointing is false, but the callback {type(callback).__name__} saves "
                            "checkpoints: leave one of them out")
        if isinstance(callback, stock.ModelCheckpoint) and callback.filename and callback.auto_insert_metric_name:
            callback.filename = re.sub(r"\{[^{}]*\}", lambda part: part[0].replace("/", "_"), callback.filename)


def check_plugins(plugins: Iterable[Any]) -> None:
    """Refuse another way of writing checkpoints.

    Raises:
        UserError: a plugin writes checkpoints.
    """
    for plugin in plugins:
        if isinstance(plugin, CheckpointIO):
            raise UserError(f"trainer.plugins has {type(plugin).__name__}, but checkpoints are written atomically by "
                            "tslm's own plugin: leave it out")


def quieten_lightning() -> None:
    """Keep from Lightning's log only warnings, and the reports that a profiler or ModelSummary was asked for."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)

    def is_wanted(record: logging.LogRecord) -> bool:
        """Whether a message is a warning or such a report."""
        text = record.getMessage()
        return record.levelno >= logging.WARNING or "Profiler Report" in text or "Trainable params" in text

    for name in ("profilers.profiler", "callbacks.model_summary"):
        logger = logging.getLogger(f"lightning.pytorch.{name}")
        logger.setLevel(logging.INFO)
        logger.filters[:] = [each for each in logger.filters if getattr(each, "__name__", "") != "is_wanted"]
        logger.addFilter(is_wanted)


def reason_of_stop(trainer: pl.Trainer) -> str:
    """Say which callback or signal ended a training early; "" if none is known."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if getattr(callback, "interrupted", False):
            return "by Ctrl-C"
        if isinstance(callback, stock.Timer) and (left := callback.time_remaining()) is not None and left <= 0:
            return f"because its time is over ({callback._duration:.0f} s)"
        if isinstance(callback, stock.EarlyStopping) and callback.stopping_reason_message:
            return f"by EarlyStopping: {callback.stopping_reason_message.rstrip('.')}"
    return "by SIGTERM" if trainer.received_sigterm else ""
