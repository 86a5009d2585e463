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
from tslm.training import minutes, start_report, trainer
from tslm.training.settings import PROVISIONAL_STEPS, OptimizerSettings

STEP = 0.1  # seconds, by the clock of these tests


@pytest.fixture
def clock(monkeypatch):
    """Each look at the clock is STEP later: before the first step, after each, and around each validation."""
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


class Time(pl.Callback):
    """A clock that runs while something is computed."""

    def __init__(self, step, batch):
        self.now, self.step, self.batch, self.ends = 0.0, step, batch, []

    def on_train_batch_start(self, *others):
        self.now += self.step + 2 * (not self.ends)  # the first one compiles
        self.ends.append(self.now)

    def on_validation_batch_start(self, *others):
        self.now += self.batch


def trained(monkeypatch, tmp_path, corpus, time, budget, every, batches):
    class Made(minutes.MinutesBudget):
        def __init__(self, budget, began):
            super().__init__(budget, 0.0, clock=lambda: time.now)

    monkeypatch.setattr(trainer, "MinutesBudget", Made)
    made = make_trainer(tmp_path, None, max_minutes=budget, val_every_n_steps=every, limit_val_batches=batches,
                        logger=False, callbacks=[time])
    made.fit(make(), datamodule=corpus)
    return made


@pytest.mark.parametrize(("budget", "step", "every", "batches", "batch"), [
    (0.25, 0.1, 0, 0, 0), (0.25, 0.1, 30, 2, 0.04), (0.5, 0.1, 40, 5, 0.04), (0.5, 0.1, 0, 5, 0.04),
    (0.5, 0.1, 1, 1, 0.1),  # what a validation takes is no part of a step
    (0.5, 0.1, 10, 4, 0.5), (0.5, 0.1, 20, 1, 5.0), (1.0, 0.1, 33, 5, 0.04),  # a period is mostly validation
    (2.0, 5.0, 0, 5, 2.0), (2.0, 3.0, 10, 1, 10.0), (1.0, 1.0, 4, 3, 1.0),  # fewer steps than are measured otherwise
])
def test_everything_ends_in_time(tmp_path, data, monkeypatch, budget, step, every, batches, batch):  # noqa: F811
    time = Time(step, batch)
    made = trained(monkeypatch, tmp_path, data(), time, budget, every, batches)
    end = time.now + minutes.AT_THE_END
    assert end <= 60 * budget
    more = step + batches * batch * (every > 0)  # a further step may have needed a further validation
    assert end + more >= minutes.STEADY * 60 * budget
    assert made.max_steps == made.global_step == len(time.ends)


@pytest.mark.parametrize(("step", "batch", "steps"), [(0.1, 100.0, 6), (15.0, 6.0, 4), (70.0, 0.1, 1)])
def test_what_does_not_fit_is_announced(tmp_path, data, monkeypatch, capsys, step, batch, steps):  # noqa: F811
    time = Time(step, batch)
    made = trained(monkeypatch, tmp_path, data(), time, 1.0, 5, 1)
    assert made.global_step == steps
    said = capsys.readouterr().out
    if steps == 1:
        assert "1 min 0 s, which are over at step 1" in said
        return
    assert re.search(rf"{steps} steps, in about \d+ min \d+ s\nwarning +this is more than 1 min 0 s: a step", said)
    assert re.search(r"a validation [\d.,]+ s, and what came before the first step took 0 s; give more minutes", said)
    planned = re.search(r"in about (\d+) min (\d+) s", said)
    assert 60 * int(planned[1]) + int(planned[2]) == pytest.approx(time.now + minutes.AT_THE_END, abs=1)


def test_it_is_then_a_run_of_so_many_steps(project, tiny, clock, capsys):
    """The same bits if it is resumed, from before and after the number was fixed, and if its settings are repeated."""
    words = [word for word in tiny if "max_steps" not in word]
    assert train(*words, "--trainer.max_minutes=0.25", "--trainer.save_every_n_steps=10", "--checkpoint.keep=99") == 0
    said = capsys.readouterr().out
    assert "15 s; the first steps tell how many steps of 128 tokens fit" in said
    steps = int(re.search(r"budget +1,280 tokens/s here: .* tokens, ([\d,]+) steps, in 15 s", said)[1])
    assert steps > 90
    run = Path("lightning_logs/version_0")
    settings = yaml.safe_load((run / "config.yaml").read_text())["trainer"]
    assert (settings["max_minutes"], settings["max_steps"], settings["max_tokens"]) == (0.25, steps, None)
    whole = weights_of(run / "checkpoints/last.ckpt")

    assert main(["fit", "--ckpt_path", f"{run}/checkpoints/step-00000090.ckpt"]) == 0
    assert equal(whole, weights_of("lightning_logs/version_0-continued/checkpoints/last.ckpt"))
    again = ["--trainer.max_minutes=0.25", "--name=again", "--ckpt_path"]  # as a queue does that repeats a command
    assert train(*words, *again, f"{run}/checkpoints/step-00000090.ckpt") == 0
    assert equal(whole, weights_of("lightning_logs/again/checkpoints/last.ckpt"))
    assert main(["fit", "--config", str(run / "config.yaml")]) == 0
    assert equal(whole, weights_of("lightning_logs/version_1/checkpoints/last.ckpt"))
    assert "tell how many" not in capsys.readouterr().out

    Path("same.yaml").write_text("trainer: {max_minutes: 0.25}")
    assert main(["fit", "--ckpt_path", f"{run}/checkpoints/step-00000090.ckpt", "--config", "same.yaml",
                 "--trainer.max_steps=95", "--name=flag"]) == 0
    assert yaml.safe_load(Path("lightning_logs/flag/config.yaml").read_text())["trainer"]["max_steps"] == 95

    # After the last step the same minutes are further minutes.
    assert main(["fit", "--ckpt_path", str(run), "--trainer.max_minutes=0.25", "--name=more"]) == 0
    assert "the next steps tell how many" in capsys.readouterr().out
    assert yaml.safe_load(Path("lightning_logs/more/config.yaml").read_text())["trainer"]["max_steps"] > steps

    # Before the number was fixed there is none, so a resumed run measures again.
    assert main(["fit", "--ckpt_path", f"{run}/checkpoints/step-00000010.ckpt", "--name=killed"]) == 0
    said = capsys.readouterr().out
    assert "the next steps tell how many" in said
    more = int(re.search(r", ([\d,]+) steps, in 15 s", said)[1])
    found = yaml.safe_load(Path("lightning_logs/killed/config.yaml").read_text())
    assert (found["trainer"]["max_steps"], found["optimizer"]["measured_steps"]) == (10 + more, 23)
    Path("uninterrupted.yaml").write_text(yaml.safe_dump(found | {"ckpt_path": None}))
    assert main(["fit", "--config", "uninterrupted.yaml", "--name=whole"]) == 0
    killed, whole = (weights_of(f"lightning_logs/{name}/checkpoints/last.ckpt") for name in ("killed", "whole"))
    assert equal(killed, whole)


def test_a_stated_budget_replaces_the_minutes_and_what_was_found_for_them(project, tiny, clock):
    words = [word for word in tiny if "max_steps" not in word]
    assert train(*words, "--trainer.max_minutes=0.25") == 0
    config = "lightning_logs/version_0/config.yaml"

    for more, expected in (
        (["--trainer.max_steps=40"], (40, None, None)),
        (["--trainer.max_tokens=5120"], (None, 5120, None)),
        (["--trainer.max_minutes=0.3"], ("found", None, 0.3)),
    ):
        assert main(["fit", "--config", config, *more]) == 0
        newest = max(Path("lightning_logs").glob("version_?"))
        found = yaml.safe_load((newest / "config.yaml").read_text())["trainer"]
        steps = "found" if (found["max_minutes"] or 0) and found["max_steps"] > 80 else found["max_steps"]
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
    settings = OptimizerSettings(measured_steps=40)
    rate = settings.rate(400, in_minutes=True)
    cosine = partial(SCHEDULES["cosine"], lr_max=settings.lr, lr_min=0.0)
    for step in range(400):
        length = PROVISIONAL_STEPS if step < 40 else 400
        assert rate(step) == cosine(step, warmup_steps=length // 20, cosine_steps=length)


def test_time_for_the_comparison_with_the_exact_floor_is_left(tmp_path, data, monkeypatch):  # noqa: F811
    """Stories of the embedded corpus are scored at the end; a large model needs many seconds for it."""
    found = []
    for tokens in (0, 1280):  # as many as are in ten steps
        monkeypatch.setattr(minutes, "_floor_tokens", lambda trainer, tokens=tokens: tokens)
        made = trained(monkeypatch, tmp_path / str(tokens), data(), Time(1.0, 0.0), 1.0, 0, 0)
        found.append(made.global_step)
    assert found[0] - found[1] == 4  # ten steps' tokens take 0.4 of their time


@pytest.mark.parametrize(("budget", "measured"), [(0.1, 13), (1.0, 53), (4.0, 160)])
def test_a_tenth_of_the_steps_is_measured(tmp_path, data, monkeypatch, budget, measured):  # noqa: F811
    fixed = []

    def stop(self, trainer, module, steps):
        fixed.append((trainer.global_step, steps))
        trainer.should_stop = True

    monkeypatch.setattr(minutes.MinutesBudget, "on_budget_fixed", stop)
    trained(monkeypatch, tmp_path, data(), Time(0.1 if budget > 0.1 else 0.05, 0.0), budget, 0, 0)
    ((step, steps),) = fixed
    assert step == measured
    assert step == min(160, max(13, steps // 10))


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
    assert re.search("4 steps, in about [45] s\nwarning +this is more than 1 s", capsys.readouterr().out)
    assert json.loads(Path("lightning_logs/version_0/summary.json").read_text())["finished"]


@pytest.mark.parametrize(("words", "sentence"), [
    (["--trainer.max_minutes=0"], "max_minutes is 0: give a --trainer.max_minutes above 0"),
    (["--trainer.max_minutes=-1"], "max_minutes is -1"),
    (["--trainer.max_minutes=.nan"], "max_minutes is nan"),
    (["--trainer.max_minutes=.inf"], "max_minutes is inf"),
    (["--trainer.max_minutes=soon"], "trainer.max_minutes"),
    (["--trainer.max_minutes=1", "--trainer.max_tokens=100"], "max_tokens is 100 and max_minutes is 1"),
    (["--trainer.max_minutes=1", "--trainer.max_steps=5"], "are two budgets: give one of them"),
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


def test_a_warm_up_that_is_longer_than_what_fits(project, tiny, clock, capsys):
    words = [word for word in tiny if "max_steps" not in word]
    assert train(*words, "--trainer.max_minutes=0.25", "--optimizer.warmup_steps=500") == 2
    assert re.search(r"optimizer\.warmup_steps is 500, but only \d+ steps fit into 15 s", capsys.readouterr().err)


def test_the_time_is_printed_once(tmp_path, data, clock, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setattr(start_report, "_MEASURED", 0)
    for budget, expected in (({"max_minutes": 0.2}, 0), ({"max_steps": 50}, 1)):
        options = {"max_steps": None, "logger": False, "log_every_n_steps": 5} | budget
        make_trainer(tmp_path, **options).fit(make(), datamodule=data())
        assert capsys.readouterr().out.count("validations come on top") == expected


def budget_of(name):
    settings = yaml.safe_load(Path(f"lightning_logs/{name}/config.yaml").read_text())["trainer"]
    return settings["max_steps"], settings["max_tokens"], settings["max_minutes"]


@pytest.mark.parametrize(("words", "expected"), [
    (["--config=a.yaml", "--trainer.max_minutes=null", "--trainer.max_steps=3"], (3, None, None)),
    (["--config=a.yaml", "--config=b.yaml"], (None, 512, None)),  # a later file wins
    (["--config=b.yaml", "--config=a.yaml", "--trainer.max_steps", "3"], (3, None, None)),
    (["--config=a.yaml", "--config=nulls.yaml"], (3, None, None)),
    (["--config=a.yaml", "--trainer={max_tokens: 512}"], (None, 512, None)),
    (["--config=a.yaml", "--trainer=group.yaml"], (None, 512, None)),
    (["--config=a.yaml", "--config=named.yaml"], (None, 512, None)),
    (["--config=b.yaml", "--ckpt_path=null", "--init_from=~"], (None, 512, None)),
])
def test_a_null_is_no_budget_and_the_last_source_with_a_budget_decides(project, tiny, capsys, words, expected):
    for name, text in (("a", "trainer: {max_minutes: 9, max_steps: null}"), ("b", "trainer.max_tokens: 512"),
                       ("nulls", "trainer: {max_minutes: null, max_tokens: null, max_steps: 3}"),
                       ("group", "max_tokens: 512"), ("named", "trainer: group.yaml")):
        Path(f"{name}.yaml").write_text(text)
    tiny = [word for word in tiny if "max_steps" not in word]
    assert main(["fit", "--config", TEXT, *tiny, *words, "--print_config"]) == 0  # which can be used as a file
    Path("printed.yaml").write_text(capsys.readouterr().out)
    assert main(["fit", "--config", TEXT, *tiny, *words, "--name=direct"]) == 0
    assert main(["fit", "--config", "printed.yaml", "--name=printed"]) == 0
    assert budget_of("direct") == budget_of("printed") == expected


@pytest.mark.parametrize(("text", "words"), [
    ("trainer: {max_minutes: 1, max_tokens: 512}", []), ("trainer: {max_steps: 3, max_tokens: 512}", []),
    ("trainer: {max_steps: 3}", ["--trainer.max_minutes=1", "--trainer.max_tokens=512"]),
    ("trainer: {max_steps: 3}", ["--trainer.max_minutes=null", "--trainer.max_steps=null"]),
])
def test_two_budgets_of_one_source_or_none_at_all(project, tiny, capsys, text, words):
    Path("a.yaml").write_text(text)
    assert main(["fit", "--config", "a.yaml", *[word for word in tiny if "max_steps" not in word], *words]) == 2
    assert "the budget is exactly one of them" in capsys.readouterr().err


def test_a_null_on_resuming_leaves_the_other_part_of_the_saved_budget(project, tiny, clock, capsys):
    words = [word for word in tiny if "max_steps" not in word]
    assert train(*words, "--trainer.max_minutes=0.25", "--trainer.save_every_n_steps=10", "--checkpoint.keep=99") == 0
    steps, *_ = budget_of("version_0")
    resume = ["fit", "--ckpt_path", "lightning_logs/version_0/checkpoints/step-00000090.ckpt"]
    assert main([*resume, "--trainer.max_minutes=null", "--name=steps"]) == 0
    assert budget_of("steps") == (steps, None, None)
    config = "--config=lightning_logs/version_0/config.yaml"
    assert main([*resume, config, "--trainer.max_steps=null", "--name=again"]) == 0
    assert budget_of("again")[0] > steps
    capsys.readouterr()
    assert main([*resume, "--trainer={max_steps: 95}", "--name=mapping"]) == 0
    assert budget_of("mapping") == (95, None, None)
    assert re.findall("Changed: (.*);", capsys.readouterr().out) == ["trainer.max_steps is 95"]
