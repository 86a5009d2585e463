"""Where the figures of a run go: TensorBoard's events and metrics.csv, in the run directory."""

from __future__ import annotations

import sys
import time
import warnings
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from tslm.training.runs import RUNS

ROWS_WAIT = 1.0  # seconds, at most, until a row of metrics.csv is written behind another one


def run_loggers(root: str) -> list[pl.loggers.Logger]:
    """Return the TensorBoard and CSV loggers of a new run directory `lightning_logs/version_N`."""
    board = TensorBoardLogger(root, name=RUNS)
    return [board, MetricsFile(root, name=RUNS, version=board.version)]


class MetricsFile(CSVLogger):
    """metrics.csv in a run directory that others write to as well, which CSVLogger by itself warns of.

    Rows are written at once, or together with the next ones where the last writing is less than a second ago: opening a
    file at every report costs a short step more than the report. `Checkpoints` writes what waits before it saves.
    """

    def __init__(self, save_dir: str, **kwargs: Any) -> None:
        super().__init__(save_dir, flush_logs_every_n_steps=sys.maxsize, **kwargs)
        self._next_writing = 0.0

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Take a row, and write those that wait if it is time."""
        super().log_metrics(metrics, step)
        if time.monotonic() >= self._next_writing:
            self.save()
            self._next_writing = time.monotonic() + ROWS_WAIT

    @property
    def experiment(self) -> Any:
        """The writer, opened at its first use."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Experiment logs directory")
            return super().experiment
