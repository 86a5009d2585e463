"""What `fit` says at its start: where it writes, what it computes with, how much there is to do."""

from __future__ import annotations

import lightning.pytorch as pl
import torch

from tslm.data.datamodule import text_data
from tslm.loops.lightning import StepCallback
from tslm.loops.step import OPEN
from tslm.training.forecast import Step, amount, duration, free_bytes, step_bytes, used_bytes
from tslm.training.metrics import metrics_of, say
from tslm.training.module import LanguageModule
from tslm.training.run_dirs import run_dir

_MEASURED = 5  # seconds of training from which the speed is known well enough
_DEFAULT_CHUNK = {"cpu": 512}  # tokens; as in fast/cpu/kernels.py, and elsewhere as in fast/gpu/cross_entropy.py


class StartReport(StepCallback):
    """Prints the facts of a training before its first step, and its duration once the speed is measured."""

    def __init__(self) -> None:
        self._first_step = 0
        self._said = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the report."""
        assert isinstance(pl_module, LanguageModule)
        self._first_step, self._said = trainer.global_step, False
        if trainer.is_global_zero:
            say(start_text(trainer, pl_module))

    def on_budget_fixed(self, trainer: pl.Trainer, pl_module: pl.LightningModule, steps: int) -> None:
        """Leave the duration out, because the budget in minutes has been printed."""
        self._said = True

    def on_step_log(self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int) -> None:
        """Print the duration with the first report after a few seconds of training."""
        metrics = metrics_of(trainer)
        if self._said or trainer.max_steps >= OPEN or metrics.seconds < _MEASURED or not trainer.is_global_zero:
            return
        self._said = True
        left = (trainer.max_steps - step) * metrics.seconds / max(1, step - self._first_step)
        if left > _MEASURED:
            say(f"{'time':<11}{duration(left)} more for {trainer.max_steps - step:,} steps, at "
                f"{metrics.tokens_per_second:,.0f} tokens/s; validations come on top")


def start_text(trainer: pl.Trainer, module: LanguageModule) -> str:
    """Format the report."""
    device, config = trainer.strategy.root_device, module.model.config
    threads = torch.get_num_threads()
    name = (torch.cuda.get_device_name(device) if device.type == "cuda"
            else f"{device.type}, {threads} thread{'s' * (threads > 1)}")
    processes = f"{trainer.world_size} processes; " if trainer.world_size > 1 else ""
    rows = [("run", str(run_dir(trainer))), ("device", f"{name}; {processes}{trainer.precision}")]
    data = text_data(trainer)
    parameters = f"{amount(module.model.num_parameters())} parameters"
    if data is None or data.train_tokens is None:
        return _table([*rows, ("model", parameters), ("steps", f"{_budget_text(trainer)}")])
    tokens = data.tokens_per_step
    rows.append(("model", f"{parameters}; {amount(module.model.flops_per_token() * tokens, 'FLOP')} a step"))
    step = Step(tokens // (trainer.world_size * trainer.accumulate_grad_batches), trainer.accumulate_grad_batches,
                "16" in str(trainer.precision), module.model.recompute,
                module.loss_chunk_size or _DEFAULT_CHUNK.get(device.type, 16_384), module.optimizer_settings.class_path)
    needed, used, free = step_bytes(config, step), used_bytes(device), free_bytes(device)
    if used is not None:
        rows.append(("memory", f"about {amount(used + needed, 'B')} in a step"))
    text, left = len(data.train_tokens), trainer.max_steps - trainer.global_step
    rows.append(("data", f"{data.train_name}: {amount(text)} tokens"))
    passes = f", {left * tokens / text:.3g} passes over the text" if trainer.max_steps < OPEN else " fit"
    rows.append(("budget", f"{_budget_text(trainer)} of {tokens:,} tokens{passes}"))
    if free is not None and needed > free:
        rows.append(("warning", f"a step needs about {amount(needed, 'B')} more memory, but {amount(free, 'B')} are "
                                "free: give a smaller --data.micro_batch_size, or --model.recompute true"))
    return _table(rows)


def _budget_text(trainer: pl.Trainer) -> str:
    if trainer.max_steps < OPEN:
        return f"{trainer.max_steps - trainer.global_step:,} steps"
    minutes: float = trainer.max_minutes  # type: ignore[attr-defined]
    which = "next" if trainer.global_step else "first"
    return f"{duration(60 * minutes)}; the {which} steps tell how many steps"


def _table(rows: list[tuple[str, str]]) -> str:
    return "\n".join(f"{name:<11}{value}" for name, value in rows)
