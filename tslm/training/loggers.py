"""The loggers of a run: TensorBoard and metrics.csv in its directory, or those that the user names."""

from __future__ import annotations

import csv
import io
import warnings
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from tslm.errors import UserError
from tslm.training.runs import RUNS
from tslm.training.writing import replace_atomically

LoggerName = Literal["TensorBoardLogger", "CSVLogger", "WandbLogger", "MLFlowLogger", "CometLogger", "LitLogger"]


def chosen_loggers(logger: Any, root: str) -> Any:
    """Replace the names of loggers by loggers, and no statement by the loggers of a run directory.

    Raises:
        UserError: the package of a logger is not installed.
    """
    if logger in (None, True):
        return run_loggers(root)
    if isinstance(logger, list):
        return [named_logger(each, root) if isinstance(each, str) else each for each in logger]
    return named_logger(logger, root) if isinstance(logger, str) else logger


def run_loggers(root: str) -> list[pl.loggers.Logger]:
    """Return the TensorBoard and CSV loggers of a run directory `lightning_logs/version_N`."""
    return [TensorBoardLogger(root, name=RUNS), MetricsFile(root, name=RUNS)]


def named_logger(name: str, root: str) -> Logger:
    """Return a logger of Lightning by its bare name, writing to the run directory or beside it.

    Raises:
        UserError: the package of the logger is not installed.
    """
    if name == "TensorBoardLogger":
        return TensorBoardLogger(root, name=RUNS, default_hp_metric=False)
    if name == "CSVLogger":
        return MetricsFile(root, name=RUNS)
    options: dict[str, Any]
    package, options = {
        "WandbLogger": ("wandb", {"save_dir": root, "project": "tslm"}),
        "MLFlowLogger": ("mlflow", {"experiment_name": "tslm", "save_dir": str(Path(root) / "mlruns")}),
        "CometLogger": ("comet-ml", {"project": "tslm"}),
        "LitLogger": ("litlogger", {"root_dir": root}),
    }[name]
    try:
        logger: Logger = getattr(pl.loggers, name)(**options)
    except (ModuleNotFoundError, AttributeError) as error:
        raise UserError(f"trainer.logger is {name}, which needs a package: run pip install {package} ({error})"
                        ) from error
    return logger


class MetricsFile(CSVLogger):
    """Writes metrics.csv into a run directory that other loggers share, without CSVLogger's warning about that.

    Each row is written at once, so that a run can be followed and a killed run keeps its rows.
    """

    def __init__(self, save_dir: str, **kwargs: Any) -> None:
        super().__init__(save_dir, flush_logs_every_n_steps=1, **kwargs)

    @property
    def experiment(self) -> Any:
        """The writer, opened at its first use."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Experiment logs directory")
            writer = super().experiment
            if type(self._experiment) is ExperimentWriter:
                writer = self._experiment = MetricsWriter(self.log_dir)
        return writer


class MetricsWriter(ExperimentWriter):
    """Adds rows to metrics.csv; a new column replaces the file in one step, so that a killed process loses no row."""

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        path = Path(self.metrics_file_path)
        with path.open(newline="", encoding="utf-8") as file, io.StringIO(newline="") as text:
            writer = csv.DictWriter(text, fieldnames)
            writer.writeheader()
            writer.writerows(csv.DictReader(file))
            replace_atomically(path, lambda new: new.write(text.getvalue().encode()))
