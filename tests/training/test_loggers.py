"""metrics.csv, whose rows may wait a moment, but never behind a checkpoint."""

import csv

from tests.loops.conftest import data  # noqa: F401 (a fixture)
from tests.loops.test_lightning import fit
from tslm.loops.lightning import StepCallback
from tslm.training import loggers
from tslm.training.loggers import MetricsFile


def steps_in(folder):
    with next(folder.rglob("metrics.csv")).open() as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


def test_rows_that_follow_within_the_second_are_written_together(tmp_path, monkeypatch):
    now = 100.0
    monkeypatch.setattr(loggers.time, "monotonic", lambda: now)
    file = MetricsFile(str(tmp_path), name="runs", version=0)
    written = []
    for step, now in enumerate([100.0, 100.5, 100.9, 101.0, 101.5]):  # noqa: B007 (the clock reads it)
        file.log_metrics({"loss": 1.0}, step)
        written.append(steps_in(tmp_path))
    assert written == [[0], [0], [0], [0, 1, 2, 3], [0, 1, 2, 3]]
    file.finalize("success")
    assert steps_in(tmp_path) == [0, 1, 2, 3, 4]


def test_a_checkpoint_leaves_no_row_of_its_past_unwritten(tmp_path, data, monkeypatch):  # noqa: F811
    monkeypatch.setattr(loggers, "ROWS_WAIT", 3600.0)
    seen = {}

    class Look(StepCallback):
        def on_save_checkpoint(self, trainer, pl_module, checkpoint):
            seen[trainer.global_step] = steps_in(tmp_path)

    fit(tmp_path, data, 4, callbacks=[Look()], log_every_n_steps=1, save_every_n_steps=2)
    assert seen == {2: [1, 2], 4: [1, 2, 3, 4, 4]}  # the last one is of the validation
