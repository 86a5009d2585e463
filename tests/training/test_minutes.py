"""A budget in minutes: the first steps tell how many steps fit, and from there on it is a run of so many steps."""

import itertools
import json
import re
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import yaml

from tests.loops.conftest import data  # noqa: F401 (a fixture)
from tests.loops.test_lightning import make_trainer
from tests.test_cli import TEXT
from tests.training.test_trainer import make
from tslm.__main__ import main
from tslm.optim import SCHEDULES
from tslm.training import minutes, trainer
from tslm.training.settings import MEASURED_STEPS, PROVISIONAL_STEPS, OptimizerSettings

STEP = 0.1  # seconds, by the clock of these tests


@pytest.fixture
def clock(monkeypatch):
    """Each look at the clock is STEP later: MinutesBudget looks once before the first step and once after each."""
    class Made(minutes.MinutesBudget):
        def __init__(self, budget, began):
            ticks = itertools.count(1)
            super().__init__(budget, 0.0, clock=lambda: STEP * next(ticks))

    monkeypatch.setattr(trainer, "MinutesBudget", Made)


def weights_of(path):
    return torch.load(path, weights_only=True)["state_dict"]


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def train(*words):
    return main(["fit", "--config", TEXT, "--trainer.log_every_n_steps=0", *words])


@pytest.mark.parametrize(("budget", "every", "batches"), [(0.25, 0, 0), (0.25, 30, 2), (0.5, 40, 5), (0.07, 0, 0)])
def test_the_steps_that_fit(tmp_path, data, clock, budget, every, batches):  # noqa: F811
    """By hand: what is left after the measured steps and the last validation, in periods with a validation each."""
    made = make_trainer(
        tmp_path, None, max_minutes=budget, val_every_n_steps=every, limit_val_batches=batches, logger=False)
    made.fit(make(), datamodule=data())
    validation = 0.4 * STEP * batches
    left = 0.97 * (60 * budget - STEP * (MEASURED_STEPS + 1)) - 3 - validation
    more = 0
    while left > 0:
        more += 1
        left -= STEP + (validation if every and more % every == 0 else 0)
    assert made.global_step == pytest.approx(MEASURED_STEPS + max(0, more - 1), abs=1)
    assert made.max_steps == made.global_step


def test_it_is_then_a_run_of_so_many_steps(project, tiny, clock, capsys):
    """The same bits if it is resumed, from before and after the number was fixed, and if its settings are repeated."""
    words = [word for word in tiny if "max_steps" not in word]
    assert train(*words, "--trainer.max_minutes=0.25", "--trainer.save_every_n_steps=10", "--checkpoint.keep=99") == 0
    said = capsys.readouterr().out
    assert "15 s; the first 33 steps tell how many steps of 128 tokens" in said
    steps = int(re.search(r"budget +1,280 tokens/s here: .* tokens, ([\d,]+) steps, in 15 s", said)[1])
    assert steps > 50
    run = Path("lightning_logs/version_0")
    settings = yaml.safe_load((run / "config.yaml").read_text())["trainer"]
    assert (settings["max_minutes"], settings["max_steps"], settings["max_tokens"]) == (0.25, steps, None)
    whole = weights_of(run / "checkpoints/last.ckpt")

    assert main(["fit", "--ckpt_path", f"{run}/checkpoints/step-00000040.ckpt"]) == 0
    assert equal(whole, weights_of("lightning_logs/version_0-continued/checkpoints/last.ckpt"))
    assert main(["fit", "--config", str(run / "config.yaml")]) == 0
    assert equal(whole, weights_of("lightning_logs/version_1/checkpoints/last.ckpt"))
    assert "tell how many" not in capsys.readouterr().out

    # Before the number was fixed there is none, so a resumed run measures again.
    assert main(["fit", "--ckpt_path", f"{run}/checkpoints/step-00000020.ckpt"]) == 0
    assert "the first 33 steps tell how many" in capsys.readouterr().out


def test_a_stated_budget_replaces_the_minutes_and_what_was_found_for_them(project, tiny, clock):
    words = [word for word in tiny if "max_steps" not in word]
    assert train(*words, "--trainer.max_minutes=0.15") == 0
    config = "lightning_logs/version_0/config.yaml"

    for more, expected in (
        (["--trainer.max_steps=40"], (40, None, None)),
        (["--trainer.max_tokens=5120"], (None, 5120, None)),
        (["--trainer.max_minutes=0.2"], ("found", None, 0.2)),
    ):
        assert main(["fit", "--config", config, *more]) == 0
        newest = max(Path("lightning_logs").glob("version_?"))
        found = yaml.safe_load((newest / "config.yaml").read_text())["trainer"]
        steps = "found" if (found["max_minutes"] or 0) and found["max_steps"] > MEASURED_STEPS else found["max_steps"]
        assert (steps, found["max_tokens"], found["max_minutes"]) == expected


def test_a_second_fit_of_the_same_trainer_has_its_own_minutes(tmp_path, data, clock):  # noqa: F811
    """The time of the first one is over when the second begins."""
    both = make_trainer(tmp_path, None, max_minutes=0.02, limit_val_batches=0, logger=False)
    kept = []
    for _ in range(2):
        both.fit(make(), datamodule=data())
        kept.append([each for each in both.callbacks if isinstance(each, minutes.MinutesBudget)])
    assert [len(each) for each in kept] == [1, 1]
    assert kept[0] != kept[1]


def test_the_rates_of_the_measured_steps_are_those_of_a_provisional_length():
    settings = OptimizerSettings()
    rate = settings.rate(400, in_minutes=True)
    cosine = partial(SCHEDULES["cosine"], lr_max=settings.lr, lr_min=0.0)
    for step in range(400):
        length = PROVISIONAL_STEPS if step < MEASURED_STEPS else 400
        assert rate(step) == cosine(step, warmup_steps=length // 20, cosine_steps=length)


def test_the_next_step_has_the_rate_of_the_new_length(tmp_path, data, clock):  # noqa: F811
    rates = []

    class Rates(trainer.StepMetrics):
        def on_train_batch_start(self, trainer, *others):
            super().on_train_batch_start(trainer, *others)
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    made = make_trainer(tmp_path, None, max_minutes=0.2, limit_val_batches=0, logger=False, callbacks=[Rates()])
    module = make()
    made.fit(module, datamodule=data())
    rate = module.optimizer_settings.rate(made.max_steps, in_minutes=True)
    assert rates == pytest.approx([rate(step) for step in range(made.global_step)])


def test_the_time_is_over_before_or_while_the_steps_are_measured(project, tiny, clock, capsys):
    words = [word for word in tiny if "max_steps" not in word]
    assert train(*words, "--trainer.max_minutes=0.001") == 2
    assert "trainer.max_minutes is 0.001, but 0 s have passed before the first step" in capsys.readouterr().err
    assert not list(Path("lightning_logs").glob("*"))
    assert train(*words, "--trainer.max_minutes=0.02") == 0
    assert "The 1 s are over after 11 steps" in capsys.readouterr().out
    assert json.loads(Path("lightning_logs/version_0/summary.json").read_text())["finished"]


@pytest.mark.parametrize(("words", "sentence"), [
    (["--trainer.max_minutes=0"], "max_minutes is 0: give a --trainer.max_minutes above 0"),
    (["--trainer.max_minutes=-1"], "max_minutes is -1"),
    (["--trainer.max_minutes=.nan"], "max_minutes is nan"),
    (["--trainer.max_minutes=.inf"], "max_minutes is inf"),
    (["--trainer.max_minutes=soon"], "trainer.max_minutes"),
    (["--trainer.max_minutes=1", "--trainer.max_tokens=100"], "max_tokens is 100 and max_minutes is 1"),
])
def test_what_is_no_budget(project, tiny, capsys, words, sentence):
    assert train(*[word for word in tiny if "max_steps" not in word], *words) == 2
    assert sentence in capsys.readouterr().err
    assert not Path("lightning_logs").exists()


def test_a_stop_before_the_number_is_fixed_names_no_number(tmp_path, data, clock, capsys):  # noqa: F811
    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer, *others):
            trainer.should_stop = trainer.global_step == 5

    make_trainer(tmp_path, None, max_minutes=0.2, callbacks=[Stop()]).fit(make(), datamodule=data())
    assert re.search(r"Stopped at step 5[^0-9]*\. Training loss", capsys.readouterr().out)
