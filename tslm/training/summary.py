"""The end of a run: what was reached, in figures and in stories, printed and left in the run directory."""

from __future__ import annotations

import json
import time
from typing import Any, TypeVar

import lightning.pytorch as pl

from tslm.data.datamodule import TextDataModule
from tslm.generation import Completion
from tslm.loops.lightning import StepCallback
from tslm.tokenizer import END_OF_TEXT, Tokenizer
from tslm.training.checkpoint import replace_atomically
from tslm.training.floor import FloorReport, measure_floor
from tslm.training.metrics import StepMetrics
from tslm.training.module import LanguageModule
from tslm.training.saving import Checkpoints, run_dir

SUMMARY = "summary.json"

Found = TypeVar("Found", bound=pl.Callback)


class RunSummary(StepCallback):
    """Keeps the tokenizer with the run, and at the end writes `summary.json` and prints what a person wants to know.

    Args:
        prompts: Where the sample stories begin.
    """

    def __init__(self, prompts: list[str] | None = None) -> None:
        self.prompts = prompts if prompts is not None else ["Once upon a time", ""]
        self.started = time.perf_counter()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the tokenizer, so that the run directory is complete from the beginning."""
        assert isinstance(pl_module, LanguageModule)
        if trainer.is_global_zero and pl_module.tokenizer is not None:
            pl_module.tokenizer.save(run_dir(trainer) / "tokenizer")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure, write and print."""
        assert isinstance(pl_module, LanguageModule)
        if not trainer.is_global_zero:
            return
        stopped = trainer.global_step < trainer.max_steps
        floor = None if stopped else floor_of(trainer, pl_module)
        summary = self.summarize(trainer, floor)
        text = json.dumps(summary, indent=2) + "\n"
        replace_atomically(run_dir(trainer) / SUMMARY, lambda file: file.write(text.encode()))
        if stopped:
            print(stopped_text(summary, trainer.max_steps), flush=True)
            return
        stories = [] if pl_module.tokenizer is None else pl_module.tell(self.prompts_for(pl_module.tokenizer))
        print(summary_text(summary, floor, stories), flush=True)

    def prompts_for(self, tokenizer: Tokenizer) -> list[str]:
        """Leave the empty prompt out where there is no `<|endoftext|>` for a story to begin behind."""
        return [prompt for prompt in self.prompts if prompt or END_OF_TEXT in tokenizer.special_ids]

    def summarize(self, trainer: pl.Trainer, floor: FloorReport | None) -> dict[str, Any]:
        """Gather the run's figures; None where one could not be measured.

        Losses are in nats per token. `story_loss`, `story_floor` and `story_ngram` are those of the model, the grammar
        and the 5-gram model on whole held-out stories; `floor_gap` and `ngram_gap` compare the sums behind them.
        """
        metrics = find(trainer, StepMetrics)
        checkpoints = find(trainer, Checkpoints)
        saved = checkpoints.last_path
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
            "seconds": round(time.perf_counter() - self.started, 1),
        }


def find(trainer: pl.Trainer, kind: type[Found]) -> Found:
    """Return the trainer's callback of a kind."""
    callbacks: list[pl.Callback] = getattr(trainer, "callbacks")  # noqa: B009 (set at run time, unknown to type checkers)
    return next(callback for callback in callbacks if isinstance(callback, kind))


def floor_of(trainer: pl.Trainer, module: LanguageModule) -> FloorReport | None:
    """Compare with the exact floor, where the corpus has one."""
    data = getattr(trainer, "datamodule", None)
    stories = data.held_out_stories() if isinstance(data, TextDataModule) else None
    if not stories or module.tokenizer is None or data is None or data.train_tokens is None:
        return None
    try:
        with trainer.precision_plugin.forward_context():
            return measure_floor(module.model, module.tokenizer, stories, data.train_tokens.ids)
    except ValueError as error:  # no reason to lose the rest of the summary
        print(f"The floor was not measured: {error}", flush=True)
        return None


def summary_text(summary: dict[str, Any], floor: FloorReport | None, stories: list[Completion]) -> str:
    """Write the summary for a person."""
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
            ("  5-gram model", f"{summary['story_ngram']:.4f}; {floor.ngram_gap:.1%} above the floor"),
        ]
    rows.append(("checkpoint", str(summary["checkpoint"])))
    lines = [""]
    for story in stories:
        title = f"a story beginning with {story.prompt!r}" if story.prompt else "a story"
        lines += [f"--- {title}", story.prompt + story.text]
    lines += ["", *(f"{name:<24}{value}" for name, value in rows), "", "Next:"]
    lines += [f"  {command}" for command in NEXT_COMMANDS]
    return "\n".join(lines)


NEXT_COMMANDS = (
    'python -m tslm generate --prompt "Once upon a time"',
    "tensorboard --logdir lightning_logs",
    "python -m tslm fit --config configs/text.yaml --data.train_files '[\"my.txt\"]'",
)


def stopped_text(summary: dict[str, Any], max_steps: int) -> str:
    """Say where a run that ended early stands, and how to go on."""
    return (
        f"\nStopped at step {summary['steps']:,} of {max_steps:,}. Go on with:\n"
        f"  python -m tslm fit --ckpt_path {summary['checkpoint']}"
    )


def best_figure(summary: dict[str, Any]) -> str:
    """Say which validation was the best, whose checkpoint `generate` takes."""
    if summary["best_step"] is None:
        return "not measured"
    return f"{summary['best_valid_loss']:.4f} at step {summary['best_step']:,}, kept as best.ckpt"


def figure(value: float | None, unit: str) -> str:
    """Write a figure, or that there is none."""
    return "not measured" if value is None else f"{value:.4f} {unit}".rstrip()
