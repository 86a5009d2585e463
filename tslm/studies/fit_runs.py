"""Runs of `fit` inside a study: their options, the runs themselves, and their figures."""

from __future__ import annotations

import contextlib
import io
import math
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from tslm.cli import HARMLESS, CommandLine
from tslm.cli import main as cli
from tslm.commands.options import flag_keys
from tslm.errors import DivergedError, UserError
from tslm.model import TransformerConfig
from tslm.studies.layout import new_figure, save_plot
from tslm.training.lightning_features import quieten_lightning
from tslm.training.run_table import read_metrics, read_summary
from tslm.training.runs import RUNS


class FitRun(NamedTuple):
    """One run of `fit`.

    Attributes:
        path: the run directory.
        loss: the validation loss at the end in nats per token; infinite if the training diverged.
        tokens_per_second: mean speed of the training, without validations and the start.
        seconds: duration of the whole run.
        steps: the steps of the reports.
        losses: the training loss of each report.
        note: why there is no loss; "" if there is one.
    """

    path: Path
    loss: float
    tokens_per_second: float
    seconds: float
    steps: list[float]
    losses: list[float]
    note: str = ""


def parse_fit(words: Sequence[str]) -> Any:  # noqa: ANN401 - jsonargparse's Namespace
    """Return the options that `fit` would have with these words, as a namespace; nothing is run.

    Raises:
        UserError: an option or a configuration file is wrong.
    """
    quieten_lightning()
    parsed: list[Any] = []

    class OnlyParse(CommandLine):
        """A command line that keeps its options, and ends before anything is made of them."""

        def before_instantiate_classes(self) -> NoReturn:
            """Keep the options, and end."""
            parsed.append(self.config["fit"])
            raise _ParsedError

    with contextlib.suppress(_ParsedError), warnings.catch_warnings():
        for message in HARMLESS:
            warnings.filterwarnings("ignore", message=message)
        OnlyParse(["fit", *words])
    return parsed[0]


def model_of(options: Any) -> TransformerConfig:  # noqa: ANN401 - jsonargparse's Namespace
    """Return the sizes and parts of the model that options of `fit` describe."""
    names = set(TransformerConfig.__dataclass_fields__) - {"vocab_size", "context_length"}
    return TransformerConfig(options.data.vocab_size, options.data.context_length,
                             **{name: options.model[name] for name in names})


class _ParsedError(Exception):
    """Ends LightningCLI once it has parsed its options."""


def free_prefix(name: str, root: str) -> str:
    """Return a prefix for the names of a study's runs that no run has: the name, or the name with a number."""
    number, prefix = 1, name
    while any((Path(root) / RUNS).glob(f"{prefix}-*")):
        number += 1
        prefix = f"{name}{number}"
    return prefix


def run_fit(name: str, words: Sequence[str], root: str, title: str) -> FitRun:
    """Train once with `fit`, under a name, and return the figures of the run.

    The progress bars of the run are shown on stderr, and its own summary is not printed.

    Raises:
        UserError: `fit` refuses an option, or has no validation loss. A training that diverges is no error here.
        SystemExit: Ctrl-C ended the training.
    """
    print(f"{title} ({name})", file=sys.stderr, flush=True)
    path, note = Path(root) / RUNS / name, ""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            cli(["fit", *words, "--name", name])
    except DivergedError:
        note = "diverged"
    rows = read_metrics(path / "metrics.csv") if (path / "metrics.csv").is_file() else []
    points = [(float(row["step"]), float(row["train/loss"])) for row in rows if row.get("train/loss")]
    steps, losses = [step for step, _ in points], [loss for _, loss in points]
    if note:
        return FitRun(path, math.inf, 0.0, 0.0, steps, losses, note)
    summary = read_summary(path / "summary.json") if (path / "summary.json").is_file() else {}
    if summary.get("valid_loss") is None:
        raise UserError(f"the run {name} has no validation loss, which the study compares: leave out options such as "
                        "--trainer.fast_dev_run and --trainer.limit_val_batches 0")
    return FitRun(path, summary["valid_loss"], summary["tokens_per_second"], summary["seconds"], steps, losses)


def check_counts(fit: Sequence[str], decided: Sequence[str], **counts: int) -> None:
    """Check that each option is 1 or more, and that the words of `fit` state nothing that the study decides.

    Raises:
        UserError: an option is less than 1, or a word states one of `decided`.
    """
    if stated := flag_keys([*fit]) & {"trainer.max_steps", "trainer.max_tokens", "trainer.max_minutes", *decided}:
        raise UserError(f"--{min(stated)} is decided by the study: give the study's own options, such as --steps")
    for name, value in counts.items():
        if value < 1:
            raise UserError(f"{name} is {value}, but it must be 1 or more: change --{name}")


def plot_losses(path: Path, unit: str, values: Sequence[float], losses: Sequence[float],
                runs: Sequence[FitRun]) -> None:
    """Draw losses over the values of a sweep, and the training curves, into a PNG; what diverged is a cross.

    Raises:
        UserError: matplotlib is not installed.
    """
    figure = new_figure(figsize=(12, 5))
    left, right = figure.subplots(1, 2)
    finite = [(value, loss) for value, loss in zip(values, losses, strict=True) if math.isfinite(loss)]
    left.plot(*zip(*finite, strict=True) if finite else ([], []), "o-", color="C0")
    top = max((loss for _, loss in finite), default=1.0)
    lost = [value for value, loss in zip(values, losses, strict=True) if not math.isfinite(loss)]
    if lost:
        left.plot(lost, [top] * len(lost), "x", color="C3", markersize=10, label="diverged")
        left.legend()
    left.set(xscale="log", xlabel=unit, ylabel="validation loss at the end, nats per token")
    for value, run in zip(values, runs, strict=True):
        label = f"{value:g}, {run.note}" if run.note else f"{value:g}"
        right.plot(run.steps, run.losses, ":" if run.note else "-", label=label)
    right.set(xlabel="step", ylabel="training loss, nats per token")
    right.legend(title=unit)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    save_plot(figure, path)
