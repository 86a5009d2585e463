"""What TensorBoard shows beside the plain figures, and the picture of the curves that a finished run leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger

from tslm.data.datamodule import text_data
from tslm.loops.lightning import StepCallback
from tslm.tokenizer import END_OF_TEXT
from tslm.training.metrics import flat, metrics_of
from tslm.training.module import LanguageModule
from tslm.training.run_dirs import run_dir
from tslm.training.writing import replace_atomically

CURVES = "curves.png"
FLOOR = "valid/floor"
# The page "Custom scalars": charts with several curves.
LAYOUT = {
    "Loss in nats per token": {
        "over steps": ["Multiline", ["train/loss", "valid/loss", FLOOR]],
        "over tokens": ["Multiline", ["over_tokens/train_loss", "over_tokens/valid_loss"]],
    },
    "Training": {
        "learning rate": ["Multiline", ["train/learning_rate"]],
        "gradient norm": ["Multiline", ["train/gradient_norm"]],
        "tokens per second": ["Multiline", ["train/tokens_per_second"]],
        "share of the speed of a plain matmul": ["Multiline", ["train/flops_utilisation"]],
    },
}


# The settings in the table of TensorBoard's page "HParams".
SETTINGS = (
    "model.", "optimizer.", "seed_everything", "data.batch_size", "data.corpus", "data.train_files", "data.seed",
    "trainer.max_steps", "trainer.max_tokens", "trainer.precision", "trainer.gradient_clip_val",
)


class Board(StepCallback):
    """Arranges the curves in TensorBoard, adds the floor as a line, and at the end the settings with their results."""

    def __init__(self) -> None:
        self._points: dict[str, list[tuple[int, float]]] = {"train": [], "valid": []}
        self._floor: float | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the layout."""
        assert isinstance(pl_module, LanguageModule)
        self._points, self._floor = {"train": [], "valid": []}, floor_per_token(trainer, pl_module)
        for writer in _writers(trainer):
            writer.add_custom_scalars(LAYOUT)
        self._draw_floor(trainer)

    def on_step_log(self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int) -> None:
        """Add a point to the curve of the training loss."""
        self._add(trainer, "train", step)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add a point to the curve of the validation loss."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._add(trainer, "valid", trainer.global_step)
            self._draw_floor(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the settings with the final figures, and draw the curves."""
        assert isinstance(pl_module, LanguageModule)
        if not trainer.is_global_zero:
            return
        latest = metrics_of(trainer).latest
        # Under names of their own, because Lightning writes them as points at step 0.
        results = {f"result/{name}": latest[name] for name in ("train_loss", "valid_loss") if name in latest}
        settings = {name: value if isinstance(value, bool | int | float | str) else str(value)
                    for name, value in flat(pl_module.run_config).items()
                    if name.startswith(SETTINGS) and value is not None}
        for logger in _boards(trainer):
            logger.log_hyperparams(settings, results)
        if self._points["train"]:
            draw(self._points, self._floor, run_dir(trainer) / CURVES)

    def _add(self, trainer: pl.Trainer, kind: str, step: int) -> None:
        metrics = metrics_of(trainer)
        loss = metrics.latest.get(f"{kind}_loss")
        if loss is None:
            return
        self._points[kind].append((step, loss))
        for writer in _writers(trainer):
            writer.add_scalar(f"over_tokens/{kind}_loss", loss, metrics.tokens_seen)

    def _draw_floor(self, trainer: pl.Trainer) -> None:
        if self._floor is not None:
            for writer in _writers(trainer):
                writer.add_scalar(FLOOR, self._floor, trainer.global_step)


def floor_per_token(trainer: pl.Trainer, module: LanguageModule) -> float | None:
    """Return the exact floor of the embedded corpus for whole stories, in nats per token; None for other texts.

    The loss on windows is another number: with aligned windows it comes near, since most of them hold whole stories.
    """
    data = text_data(trainer)
    stories = data.held_out_stories() if data is not None and trainer.is_global_zero else None
    if not stories or module.tokenizer is None:
        return None
    tokens = sum(len(module.tokenizer.encode(f"{story.text}\n{END_OF_TEXT}\n")) for story in stories)
    return -sum(story.log_prob for story in stories) / tokens


def draw(points: dict[str, list[tuple[int, float]]], floor: float | None, path: Path) -> bool:
    """Draw the losses over the steps as a PNG, and return True; False if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure  # not pyplot, which would look for a screen
    except ImportError:
        return False
    figure = Figure((8, 4.5), layout="constrained")
    axes = figure.subplots()
    for kind, style, label in (("train", "-", "training"), ("valid", "o-", "validation")):
        if points[kind]:
            axes.plot(*zip(*points[kind], strict=True), style, label=f"{label} loss", markersize=4)
    if floor is not None:
        axes.axhline(floor, linestyle="--", color="gray", label="exact floor of whole stories")
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel("nats per token")
    axes.set_title(path.parent.name)
    axes.grid(alpha=0.3)
    axes.legend()
    replace_atomically(path, lambda file: figure.savefig(file, format="png", dpi=120))
    return True


def _boards(trainer: pl.Trainer) -> list[TensorBoardLogger]:
    return [each for each in trainer.loggers if isinstance(each, TensorBoardLogger)] if trainer.is_global_zero else []


def _writers(trainer: pl.Trainer) -> list[Any]:
    return [logger.experiment for logger in _boards(trainer)]
