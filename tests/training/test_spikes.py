"""Spikes of the training loss are reported once, with their step and their windows."""

import random

import pytest
import torch

from tests.loops.conftest import data  # noqa: F401 (a fixture)
from tests.loops.test_lightning import fit, make_module
from tslm.training.metrics import LossSpikes


def reported(losses, **options):
    """The steps, counted from 0, at which a spike is reported."""
    spikes = LossSpikes(**options)
    return [step for step, loss in enumerate(losses) if spikes.add(loss) is not None]


def noise(number, seed=0):
    rng = random.Random(seed)
    return [2 + rng.gauss(0, 0.1) for _ in range(number)]


def test_a_spike_is_a_loss_five_standard_deviations_above_the_mean_of_the_last_thousand_steps():
    losses = noise(3000)
    rng = torch.tensor(losses[500:1500], dtype=torch.float64)
    mean, deviation = float(rng.mean()), float(rng.std(correction=0))
    assert reported(losses) == []
    for distance, expected in ((4.99, []), (5.01, [1500])):
        assert reported([*losses[:1500], mean + distance * deviation, *losses[1501:]]) == expected
    spikes = LossSpikes()
    assert [spikes.add(loss) for loss in losses[:1500]] == [None] * 1500
    assert spikes.add(mean + 7 * deviation) == pytest.approx(7, abs=1e-6)


def test_a_loss_that_stays_high_is_reported_once_and_the_next_spike_again():
    losses = noise(2000) + [loss + 3 for loss in noise(2000, 1)] + [9.0] + noise(5, 2)
    assert reported(losses) == [2000, 4000]


def test_a_spike_needs_a_hundred_steps_before_it():
    assert reported([*noise(99), 50.0]) == []
    assert reported([*noise(100), 50.0]) == [100]


def test_falling_equal_and_infinite_losses_are_no_spikes():
    assert reported([10 / (1 + step / 50) for step in range(2000)]) == []
    assert reported([2.0] * 500 + [2.00001] * 500) == []
    assert reported([*noise(200), float("nan"), float("inf"), *noise(50, 1)]) == []
    assert reported([*noise(200), float("nan"), 9.0]) == [201]


@pytest.mark.parametrize("micro_batch_size", [None, 2])
def test_a_run_reports_a_spike_in_one_line_with_its_windows(tmp_path, data, capsys, micro_batch_size):  # noqa: F811
    module, accumulate = make_module(), 4 // (micro_batch_size or 4)
    mean_loss, calls = module.mean_loss, []

    def spoilt(inputs, targets):
        if torch.is_grad_enabled():
            calls.append(1)
        return mean_loss(inputs, targets) + (50 if (len(calls) - 1) // accumulate in (109, 110) else 0)

    module.mean_loss = spoilt
    fit(tmp_path, data, 125, module=module, windows=(4, micro_batch_size), limit_val_batches=0, log_every_n_steps=50)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Loss spike")]
    assert line.startswith("Loss spike at step 110: 5")
    assert line.endswith("above the mean of the steps before it (windows 436 to 439 of data.seed 0).")


def test_losses_are_read_after_a_thousand_steps_without_a_report(tmp_path, data, monkeypatch):  # noqa: F811
    monkeypatch.setattr("tslm.training.metrics.MOST_UNREAD", 3)
    once = fit(tmp_path / "a", data, 7, limit_val_batches=0, log_every_n_steps=0)[1].callbacks[0]
    monkeypatch.setattr("tslm.training.metrics.MOST_UNREAD", 1000)
    assert once.latest["train_loss"] == fit(tmp_path / "b", data, 7, limit_val_batches=0,
                                            log_every_n_steps=0)[1].callbacks[0].latest["train_loss"]
