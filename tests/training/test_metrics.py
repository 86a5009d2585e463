"""The speed that a run reports, by a clock that the test advances, and metrics.csv."""

import csv
import os

import pytest
from lightning.pytorch.loggers import CSVLogger

from tests.loops.conftest import data  # noqa: F401 (a fixture)
from tests.loops.test_lightning import fit
from tslm.loops.lightning import StepCallback
from tslm.training.loggers import MetricsFile
from tslm.training.metrics import StepMetrics

STEP, VALIDATION, SAVE = 1.0, 100.0, 10_000.0  # seconds
WINDOWS, CONTEXT = 4, 32


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Work(StepCallback):
    """Lets each step, validation and checkpoint take its time."""

    def __init__(self, clock):
        self.clock = clock

    def on_before_optimizer_step(self, *rest):
        self.clock.now += STEP

    def on_validation_batch_start(self, *rest):
        self.clock.now += VALIDATION

    def on_save_checkpoint(self, *rest):
        self.clock.now += SAVE


def test_speed_counts_training_without_validation_and_saving(tmp_path, data):  # noqa: F811
    clock = Clock()
    metrics = StepMetrics(clock)
    fit(tmp_path, data, 6, callbacks=[metrics, Work(clock)], log_every_n_steps=1, val_every_n_steps=2,
        save_every_n_steps=3)
    assert clock.now == 6 * STEP + 3 * 2 * VALIDATION + 4 * SAVE
    assert metrics.tokens_seen == 6 * WINDOWS * CONTEXT
    assert metrics.seconds == 6 * STEP
    assert metrics.tokens_per_second == WINDOWS * CONTEXT / STEP
    assert metrics.latest["tokens_per_second"] == WINDOWS * CONTEXT / STEP


def test_the_clock_runs_until_the_device_has_completed_its_steps(tmp_path, data, monkeypatch):  # noqa: F811
    """A GPU works through its queue after the CPU has launched the steps; reading the skipped steps waits for it."""
    clock = Clock()
    metrics = StepMetrics(clock)

    class Queue(StepCallback):
        def on_train_start(self, trainer, pl_module):
            report = pl_module.skipped.report

            def waits():
                clock.now += STEP
                return report()

            pl_module.skipped.report = waits

    fit(tmp_path, data, 4, callbacks=[metrics, Queue()], log_every_n_steps=2, limit_val_batches=0)
    assert metrics.seconds == 2 * STEP


def test_reported_losses_are_means_over_the_windows_of_their_steps(tmp_path, data):  # noqa: F811
    whole, split = StepMetrics(), StepMetrics()
    for metrics, size in ((whole, None), (split, 1)):
        fit(tmp_path / str(size), data, 3, windows=(4, size), callbacks=[metrics], log_every_n_steps=3)
    assert abs(whole.latest["train_loss"] - split.latest["train_loss"]) < 1e-4
    assert abs(whole.latest["valid_loss"] - split.latest["valid_loss"]) < 1e-4
    assert whole.tokens_seen == split.tokens_seen == 3 * WINDOWS * CONTEXT


def steps_in(folder):
    with next(folder.rglob("metrics.csv")).open() as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


def test_each_row_is_written_at_once(tmp_path, data):  # noqa: F811
    seen = []

    class Look(StepCallback):
        def on_train_batch_start(self, trainer, *rest):
            seen.append(steps_in(tmp_path) if trainer.global_step else [])

    fit(tmp_path, data, 4, callbacks=[Look()], log_every_n_steps=1)
    assert seen == [[], [1], [1, 2], [1, 2, 3]]
    assert steps_in(tmp_path) == [1, 2, 3, 4, 4]  # the last row is of the validation


@pytest.mark.filterwarnings("ignore:Experiment logs directory")
def test_a_checkpoint_saves_what_loggers_hold_back(tmp_path, data):  # noqa: F811
    seen = {}

    class Look(StepCallback):
        def on_save_checkpoint(self, trainer, pl_module, checkpoint):
            seen[trainer.global_step] = steps_in(tmp_path)

    fit(tmp_path, data, 4, callbacks=[Look()], logger=CSVLogger(tmp_path, flush_logs_every_n_steps=1000),
        log_every_n_steps=1, save_every_n_steps=2)
    assert seen == {2: [1, 2], 4: [1, 2, 3, 4]}
    assert steps_in(tmp_path) == [1, 2, 3, 4, 4]  # the last row is of the validation, which comes after saving


def test_a_new_column_replaces_metrics_csv_in_one_step(tmp_path, monkeypatch):
    """A process that is killed while the file is written again loses no row."""
    logger = MetricsFile(str(tmp_path), version=0)
    logger.log_metrics({"a": 1.0}, step=1)
    path = tmp_path / "lightning_logs" / "version_0" / "metrics.csv"
    before = path.read_text()

    def stop(*paths):
        assert path.read_text() == before
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            logger.log_metrics({"b": 2.0}, step=2)
    assert path.read_text() == before
    again = MetricsFile(str(tmp_path), version=1)
    again.log_metrics({"a": 1.0}, step=1)
    again.log_metrics({"b": 2.0}, step=2)
    assert (path.parent.parent / "version_1" / "metrics.csv").read_text().split() == ["a,b,step", "1.0,,1", ",2.0,2"]
