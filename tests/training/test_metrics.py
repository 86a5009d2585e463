"""What a run reports of its speed."""

import time

from tests.loops.conftest import data  # noqa: F401 (a fixture)
from tests.loops.test_lightning import fit
from tslm.training import LanguageModule
from tslm.training.metrics import StepMetrics
from tslm.training.skipped import SkippedSteps

SECONDS = 0.2


def test_the_clock_of_training_runs_until_the_device_is_done(tmp_path, data, monkeypatch):  # noqa: F811
    """On a GPU the processor is ahead; only where it reads something does it wait for the steps that it has ordered."""
    report = SkippedSteps.report

    def waits(skipped):
        time.sleep(SECONDS)
        return report(skipped)

    plain, slow = StepMetrics(), StepMetrics()
    fit(tmp_path / "plain", data, 4, callbacks=[plain], log_every_n_steps=2, val_every_n_steps=2)
    monkeypatch.setattr(SkippedSteps, "report", waits)
    fit(tmp_path / "slow", data, 4, callbacks=[slow], log_every_n_steps=2, val_every_n_steps=2)
    assert plain.tokens_seen == slow.tokens_seen == 4 * 4 * 32
    assert slow.seconds > 2 * SECONDS  # a wait for each two steps at the least
    assert slow.tokens_per_second < 4 * 4 * 32 / (2 * SECONDS)


def test_validation_is_no_time_of_training(tmp_path, data, monkeypatch):  # noqa: F811
    metrics, step = StepMetrics(), LanguageModule.validation_step

    def slowly(module, batch, batch_idx):
        time.sleep(5 * SECONDS)
        step(module, batch, batch_idx)

    monkeypatch.setattr(LanguageModule, "validation_step", slowly)
    start = time.perf_counter()
    fit(tmp_path, data, 2, callbacks=[metrics])  # validates two batches at the end
    assert metrics.seconds < time.perf_counter() - start - 10 * SECONDS
