"""What a run shows to a person: a story after each validation, and at the end a summary of figures and stories."""

from __future__ import annotations

import json
import math
import shutil
import textwrap
import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from tslm.data.datamodule import text_data
from tslm.errors import UserError, as_called
from tslm.generation import Completion
from tslm.loops.lightning import StepCallback
from tslm.loops.step import OPEN
from tslm.training.checkpoint_callback import Checkpoints
from tslm.training.entropy_floor import FloorReport, measure_floor
from tslm.training.lightning_features import reason_of_stop
from tslm.training.metrics import metrics_of, newest_checkpoint
from tslm.training.module import LanguageModule
from tslm.training.run_dirs import run_dir
from tslm.training.runs import SUMMARY
from tslm.training.writing import replace_atomically


class StorySamples(pl.Callback):
    """Writes a story to TensorBoard after each validation.

    Args:
        prompt: The beginning of the story; the module's generation settings decide how it is drawn.
    """

    def __init__(self, prompt: str = "Once upon a time") -> None:
        self.prompt = prompt

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the story, with the same seed each time, and log it as text."""
        boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if trainer.sanity_checking or trainer.state.fn != "fit" or not boards or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, LanguageModule)
        module = whole_module(trainer, pl_module)
        for story in module.complete_prompts([self.prompt]) if module is not None and module.tokenizer else []:
            for logger in boards:
                logger.experiment.add_text("story", f"**{story.prompt}**{story.text}", trainer.global_step)


class RunSummary(StepCallback):
    """Saves the tokenizer in the run directory; at the end writes `summary.json` and prints the summary.

    Args:
        prompts: The beginnings of the sample stories.
    """

    def __init__(self, prompts: list[str] | None = None) -> None:
        self.prompts = prompts if prompts is not None else ["Once upon a time", ""]
        self.started = time.perf_counter()
        self._due = False  # whether a training has begun whose summary is not written yet

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the tokenizer at the start, so that the run directory is usable from the first checkpoint on."""
        assert isinstance(pl_module, LanguageModule)
        self._due = True
        if trainer.is_global_zero and pl_module.tokenizer is not None:
            pl_module.tokenizer.save(run_dir(trainer) / "tokenizer")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure the floor, write `summary.json` and print; a run that stopped early says how to continue."""
        assert isinstance(pl_module, LanguageModule)
        if not trainer.is_global_zero:
            return
        stopped = has_stopped(trainer)
        module = None if stopped else whole_module(trainer, pl_module)
        floor = None if module is None else floor_of(trainer, module)
        summary = self._save(trainer, floor, finished=not stopped)
        if stopped:
            print(stopped_text(summary, trainer.max_steps, reason_of_stop(trainer)), flush=True)
            return
        stories = [] if module is None or module.tokenizer is None else module.complete_prompts(
            # From nothing, no story can begin.
            [prompt for prompt in self.prompts if prompt or module.document_prefix])
        print(summary_text(summary, floor, stories), flush=True)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Write `summary.json` of a run that SIGTERM has stopped, or Ctrl-C at once, also while it was finishing."""
        if trainer.is_global_zero and self._due and isinstance(exception, SIGTERMException | KeyboardInterrupt):
            self._save(trainer, None, finished=not has_stopped(trainer))

    def _save(self, trainer: pl.Trainer, floor: FloorReport | None, *, finished: bool) -> dict[str, Any]:
        """Write `summary.json`, and return what it holds."""
        summary = self.summarize(trainer, floor) | {"finished": finished}
        text = json.dumps(summary, indent=2) + "\n"
        replace_atomically(run_dir(trainer) / SUMMARY, lambda file: file.write(text.encode()))
        self._due = False
        return summary

    def summarize(self, trainer: pl.Trainer, floor: FloorReport | None) -> dict[str, Any]:
        """Collect the run's figures; a figure that could not be measured is None.

        Losses are in nats per token. `story_loss`, `story_floor` and `story_ngram` are the losses of the model, the
        grammar and the 5-gram model on whole held-out stories. `floor_gap` and `ngram_gap` are relative to the floor.
        """
        metrics = metrics_of(trainer)
        checkpoints = next((each for each in trainer.callbacks if isinstance(each, Checkpoints)), Checkpoints())  # type: ignore[attr-defined]
        saved = checkpoints.last_path or checkpoints.newest  # a resumed run may only have validated
        latest = metrics.latest
        return {
            "steps": trainer.global_step,
            "skipped_steps": metrics.skipped_steps,
            "tokens_seen": metrics.tokens_seen,
            "tokens_per_second": round(metrics.tokens_per_second, 1),
            "train_loss": latest.get("train_loss"),
            "valid_loss": latest.get("valid_loss"),
            "perplexity": latest.get("valid_perplexity"),
            "bits_per_byte": latest.get("valid_bits_per_byte"),
            **({} if floor is None else {
                "floor_gap": floor.floor_gap,
                "ngram_gap": floor.ngram_gap,
                "story_loss": floor.model_nats / floor.tokens,
                "story_floor": floor.floor_nats / floor.tokens,
                "story_ngram": floor.ngram_nats / floor.tokens,
                "stories": floor.stories,
            }),
            "best_step": checkpoints.best_step,
            "best_valid_loss": None if checkpoints.best_step is None else checkpoints.best_loss,
            "checkpoint": None if saved is None else str(saved),
            "corpus": getattr(getattr(trainer, "datamodule", None), "train_name", None),
            "continues": getattr(trainer, "continues", None),
            "started_from": getattr(trainer.lightning_module, "run_config", {}).get("init_from"),
            "seconds": round(time.perf_counter() - self.started, 1),
        }


def has_stopped(trainer: pl.Trainer) -> bool:
    """Whether steps of the budget, or the validation of the last one, are left."""
    step_loop: Any = getattr(trainer, "step_loop", None)
    return trainer.global_step < trainer.max_steps or bool(step_loop and step_loop.loop.validation_due)


def whole_module(trainer: pl.Trainer, module: LanguageModule) -> LanguageModule | None:
    """Return a module that one process can run alone.

    If each process has only a part of the weights, this is a copy of the last checkpoint; None if there is none.
    """
    if not module.is_sharded:
        return module
    newest = newest_checkpoint(trainer)
    if newest is None:
        return None
    return LanguageModule.load_from_checkpoint(newest, ffn=module.model.config.ffn,
                                               generation=module.generation_settings)


def floor_of(trainer: pl.Trainer, module: LanguageModule) -> FloorReport | None:
    """Compare the model with the exact floor; None if the corpus has none, or if it cannot be measured."""
    data = text_data(trainer)
    stories = None if data is None else data.held_out_stories()
    if not stories or module.tokenizer is None or data is None or data.train_tokens is None:
        return None
    try:
        with trainer.precision_plugin.forward_context():
            return measure_floor(module.model, module.tokenizer, stories, data.train_tokens.ids)
    except UserError as error:  # the rest of the summary is still useful
        print(f"The floor was not measured: {error}", flush=True)
        return None


def summary_text(summary: dict[str, Any], floor: FloorReport | None, stories: list[Completion]) -> str:
    """Format the summary for a person."""
    rows = [
        ("tokens seen", f"{summary['tokens_seen']:,} in {summary['steps']:,} steps"),
        ("speed", f"{summary['tokens_per_second']:,.0f} tokens/s; {summary['seconds']:.0f} s in all"),
        ("training loss", figure(summary["train_loss"], "nats per token")),
        ("validation loss", figure(summary["valid_loss"], "nats per token")),
        ("  lowest", best_figure(summary)),
        ("perplexity", figure(summary["perplexity"], "")),
        ("bits per byte", figure(summary["bits_per_byte"], "")),
    ]
    if floor is not None:
        rows += [
            ("whole held-out stories", f"{summary['story_loss']:.4f} nats per token over {floor.stories} stories"),
            ("  exact floor", f"{summary['story_floor']:.4f}; the model is {floor.floor_gap:.2%} above it"),
            *longer_run(summary),
            ("  5-gram model", f"{summary['story_ngram']:.4f}; {floor.ngram_gap:.1%} above the floor"),
        ]
    rows.append(("checkpoint", str(summary["checkpoint"])))
    lines = [""]
    for story in stories:
        title = f"a story beginning with {story.prompt!r}" if story.prompt else "a story"
        lines += [f"--- {title}", wrapped(story.prompt + story.text)]
    lines += ["", *(f"{name:<24}{value}" for name, value in rows), "", "Next:"]
    lines += [f"  {as_called(command)}" for command in NEXT_COMMANDS]
    return "\n".join(lines)


# Percent above the floor after some millions of tokens, with the settings of the quick start: means of three to six
# seeds (python -m tests.campaigns.quick_start).
TRIALS = {1: 4.7, 2: 2.9, 4: 2.1, 8: 1.6}


def longer_run(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the row that says what the next larger budget brings; none after the largest that was tried."""
    seen, speed = summary["tokens_seen"], summary["tokens_per_second"]
    for millions, percent in TRIALS.items():
        if 1e6 * millions >= 1.5 * seen and speed > 0:
            minutes = math.ceil(1e6 * millions / speed / 60 + 0.5)  # half a minute for data and stories
            trial = f"{percent}% above it after {millions} million tokens"
            return [("  a longer run", f"in trials of the quick start, {trial}: --trainer.max_minutes {minutes}")]
    return []


def wrapped(text: str) -> str:
    """Break the lines of a text at words, for the width of the terminal."""
    width = min(shutil.get_terminal_size().columns, 100)
    return "\n".join(textwrap.fill(line, width, replace_whitespace=False) for line in text.splitlines())


NEXT_COMMANDS = (
    'python -m tslm generate --prompt "Once upon a time"',
    "tensorboard --logdir lightning_logs",
    "python -m tslm fit --config configs/text.yaml --data.train_files '[\"my.txt\"]'",
)


def stopped_text(summary: dict[str, Any], max_steps: int, reason: str = "") -> str:
    """Say at which step a run stopped, why, with which loss, and how to resume it."""
    total = f" of {max_steps:,}" * (max_steps < OPEN)
    stopped = f"\nStopped at step {summary['steps']:,}{total}{f' {reason}' * bool(reason)}."
    names = {"training": "train_loss", "validation": "valid_loss"}
    losses = [f"{name} loss {summary[key]:.4f}" for name, key in names.items() if summary[key] is not None]
    stopped += f" {', '.join(losses).capitalize()}." * bool(losses)
    if summary["checkpoint"] is None:
        return f"{stopped} No checkpoint was saved."
    return as_called(f"{stopped} Resume with:\n  python -m tslm fit --ckpt_path {summary['checkpoint']}")


def best_figure(summary: dict[str, Any]) -> str:
    """Format the lowest validation loss; `generate` uses the checkpoint of that step."""
    if summary["best_step"] is None:
        return "not measured"
    return f"{summary['best_valid_loss']:.4f} at step {summary['best_step']:,}, kept as best.ckpt"


def figure(value: float | None, unit: str) -> str:
    """Format a figure that may be None."""
    return "not measured" if value is None else f"{value:.4f} {unit}".rstrip()
