"""Steps with a gradient that is not finite are skipped, counted and reported; too many in a row end the run."""

import contextlib
import copy
import csv
import json
import math
from pathlib import Path

import pytest
import torch

from tests.loops.conftest import data  # noqa: F401 (a fixture)
from tests.loops.test_lightning import fit, make_module, make_trainer, weights
from tslm import SGD, AdamW, TransformerConfig, TransformerLM, clip_gradients, cross_entropy, get_batch
from tslm.errors import UserError
from tslm.loops.lightning import StepCallback
from tslm.training.nonfinite import SkippedSteps, SkipReport, check_diverged, propagate_nonfinite
from tslm.training.settings import OptimizerSettings

CPU = torch.device("cpu")


def test_skipped_steps_are_counted():
    skipped = SkippedSteps(CPU)
    flag = skipped.skip
    assert skipped.report() == SkipReport(0, 0, 0, 0.0)
    seen = []
    for step, norm in enumerate([1.0, math.nan, math.inf, 2.0, math.inf, 3.0], start=1):
        skipped.update(torch.tensor(norm), step)
        seen.append(bool(flag))
    assert seen == [False, True, True, False, True, False]
    assert skipped.report() == SkipReport(total=3, longest=2, step=3, norm=math.inf)


@pytest.mark.parametrize("value", [2.5, math.inf, -math.inf, math.nan])
def test_a_loss_that_is_not_finite_has_a_gradient_that_is_not_finite(value):
    weight = torch.ones((), requires_grad=True)
    loss = propagate_nonfinite(weight + value)
    loss.backward()
    if math.isfinite(value):
        assert loss == 3.5
        assert weight.grad == 1
    else:
        assert not loss.isfinite()
        assert not weight.grad.isfinite()


class Spoil(StepCallback):
    """Puts NaN into one gradient of each of the given steps, counted from 1."""

    def __init__(self, *steps):
        self.steps = steps

    def on_after_backward(self, trainer, pl_module):
        if trainer.global_step + 1 in self.steps:
            pl_module.model.ln_final.weight.grad[3] = math.nan


def test_a_skipped_step_keeps_the_weights_and_is_reported(tmp_path, data, capsys):  # noqa: F811
    before = {}

    class Look(StepCallback):
        def on_train_batch_end(self, trainer, pl_module, *rest):
            before[trainer.global_step] = weights(pl_module)

    _, trainer = fit(tmp_path, data, 6, callbacks=[Spoil(2, 3, 5), Look()], log_every_n_steps=2)
    assert [torch.equal(before[step], before[step - 1]) for step in range(2, 7)] == [True, True, False, True, False]
    out = capsys.readouterr().out
    assert "Skipped 1 of the steps up to 2: their gradient was not finite." in out
    assert "Skipped 1 of the steps up to 4" in out
    assert trainer.optimizers[0].state_dict()["state"][0]["step"] == 3
    with next(tmp_path.rglob("metrics.csv")).open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    assert [float(row["train/skipped_steps"]) for row in rows] == [1, 2, 3]
    assert all(math.isfinite(float(row["train/loss"])) for row in rows)
    assert json.loads(next(tmp_path.rglob("summary.json")).read_text())["skipped_steps"] == 3


def test_three_skipped_steps_in_a_row_end_the_run(tmp_path, data):  # noqa: F811
    diverged = r"norm is nan at optimizer step 4, and 3 steps in a row .* a lower --opt.*; that " \
               r"step has the windows 12 to 15 of data\.seed 0; the last checkpoint is .*step-00000003\.ckpt$"
    with pytest.raises(UserError, match=diverged):
        fit(tmp_path, data, 9, callbacks=[Spoil(2, 3, 4, 5)], save_every_n_steps=1)
    kept = torch.load(next(tmp_path.rglob("last.ckpt")), weights_only=True)
    assert kept["global_step"] == 3
    assert all(torch.isfinite(weight).all() for weight in kept["state_dict"].values())


def test_the_message_names_the_resumed_checkpoint_or_says_that_there_is_none(tmp_path, data):  # noqa: F811
    with pytest.raises(UserError, match="no checkpoint has been saved yet"):
        fit(tmp_path / "new", data, 9, callbacks=[Spoil(2, 3, 4)], log_every_n_steps=1)
    fit(tmp_path, data, 2)
    last = next((tmp_path / "lightning_logs").rglob("last.ckpt"))
    with pytest.raises(UserError, match=f"the last checkpoint is {last}"):
        fit(tmp_path, data, 9, callbacks=[Spoil(3, 4, 5)], log_every_n_steps=1, ckpt_path=str(last))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_have_no_loss(tmp_path, data, value):  # noqa: F811
    module = make_module()
    module.model.ln_final.weight.data[3] = value
    with pytest.raises(UserError, match=r"because the weights in model\.ln_final\.weight are not finite"):
        make_trainer(tmp_path, 1).validate(module, datamodule=data(), verbose=False)


def test_finite_weights_may_be_too_large_for_a_precision(tmp_path, data):  # noqa: F811
    module = make_module()
    module.model.ln_final.weight.data[:] = 1e38
    module.model.lm_head.weight.data[:] = 1e30
    with pytest.raises(UserError, match=r"although all weights are finite: .* too large for the precision 32"):
        make_trainer(tmp_path, 1).validate(module, datamodule=data(), verbose=False)


@pytest.mark.parametrize("name", ["lr", "eps", "weight_decay"])
@pytest.mark.parametrize("value", [1e39, math.inf, math.nan])
def test_a_setting_that_overflows_is_refused(name, value):
    with pytest.raises(UserError, match=rf"optimizer\.{name} is .*between (0|1e-37) and 1e\+18"):
        OptimizerSettings(**{name: value}).check()


@pytest.mark.parametrize("options", [{"lr": 1e18}, {"eps": 1e18}, {"lr": 1e18, "weight_decay": 1e18}])
def test_the_largest_settings_end_in_a_sentence_or_train(tmp_path, data, options):  # noqa: F811
    module = make_module()
    module.optimizer_settings = OptimizerSettings(**options, warmup_steps=0)
    with contextlib.suppress(UserError):  # every other exception is a failure
        fit(tmp_path, data, 6, module=module)


def test_the_run_also_ends_if_the_report_comes_later(tmp_path, data):  # noqa: F811
    with pytest.raises(ValueError, match="at optimizer step 4, and 3 steps"):
        fit(tmp_path, data, 9, callbacks=[Spoil(2, 3, 4)], log_every_n_steps=6)


def test_the_mean_loss_excludes_losses_that_are_not_finite(tmp_path, data):  # noqa: F811
    whole = {}

    class Losses(StepCallback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            whole[batch_idx] = float(outputs["loss"]) * trainer.accumulate_grad_batches

    module = make_module()
    plain = module.mean_loss
    calls = []

    def mean_loss(inputs, targets):
        calls.append(1)
        return plain(inputs, targets) + (math.inf if len(calls) == 3 else 0)

    module.mean_loss = mean_loss
    _, trainer = fit(tmp_path, data, 3, module=module, windows=(4, 2), callbacks=[Losses()], log_every_n_steps=3,
                     limit_val_batches=0)
    assert module.skipped.report() == SkipReport(1, 1, 2, pytest.approx(math.nan, nan_ok=True))
    finite = [loss for loss in whole.values() if math.isfinite(loss)]
    assert len(finite) == 5
    assert float(trainer.callbacks[0].latest["train_loss"]) == pytest.approx(sum(finite) / 5)


def test_a_resumed_run_continues_the_count_and_old_checkpoints_have_none(tmp_path, data):  # noqa: F811
    fit(tmp_path, data, 4, callbacks=[Spoil(2)])
    last = next(tmp_path.rglob("last.ckpt"))
    _, trainer = fit(tmp_path, data, 6, callbacks=[Spoil(5)], ckpt_path=str(last))
    assert trainer.callbacks[0].skipped_steps == 2
    state = torch.load(last, weights_only=True)
    del state["callbacks"]["StepMetrics"]["skipped_steps"]
    torch.save(state, tmp_path / "old.ckpt")
    _, trainer = fit(tmp_path, data, 6, callbacks=[Spoil(6)], ckpt_path=str(tmp_path / "old.ckpt"))
    assert trainer.callbacks[0].skipped_steps == 1


def test_at_least_one_skipped_step_ends_a_run():
    with pytest.raises(ValueError, match=r"optimizer\.max_skipped is 0"):
        OptimizerSettings(max_skipped=0).check()


def test_the_library_s_pieces_protect_a_loop_of_one_s_own():
    """As the docstrings of `clip_gradients` and `SkippedSteps` show."""
    torch.manual_seed(0)
    model = TransformerLM(TransformerConfig(50, 16, 16, 1, 2, 32))
    plain = copy.deepcopy(model)
    ids = torch.arange(400).numpy() * 7 % 50

    def train(model, spoilt, leave_out=()):
        """Train for eight steps; return the weights after each."""
        optimizer, generator = AdamW(model.parameters(), 1e-2), torch.Generator().manual_seed(0)
        skipped = SkippedSteps(CPU)
        optimizer.skip = skipped.skip
        after = []
        for step in range(1, 9):
            inputs, targets = get_batch(ids, 4, 16, CPU, generator)
            if step in leave_out:
                continue
            loss = cross_entropy(model(inputs), targets) * (math.nan if step in spoilt else 1)
            optimizer.zero_grad()
            loss.backward()
            norm = clip_gradients(model.parameters(), 1.0)
            skipped.update(norm + loss.detach(), step)
            optimizer.step()
            check_diverged(skipped.report(), OptimizerSettings(max_skipped=2), Path("own.pt"), f"windows of {step}")
            after.append(torch.cat([weight.flatten() for weight in model.state_dict().values()]))
        return after

    found, expected = train(model, {3, 6}), train(plain, set(), {3, 6})
    assert torch.equal(found[2], found[1])
    assert torch.equal(found[-1], expected[-1])
    with pytest.raises(UserError, match=r"step 5, and 2 steps.* the windows of 5; the last checkpoint is own\.pt"):
        train(model, {4, 5, 6})
    assert all(weight.isfinite().all() for weight in model.state_dict().values())


@pytest.mark.parametrize("optimizer", [AdamW, SGD])
def test_a_loop_without_them_may_look_at_the_norm(optimizer):
    weight = torch.ones(3, requires_grad=True)
    weight.grad = torch.tensor([1.0, math.inf, 2.0])
    norm = clip_gradients([weight], 1.0)
    assert not norm.isfinite()
    own = optimizer([weight], 0.1)
    if norm.isfinite():
        own.step()
    assert torch.equal(weight, torch.ones(3))
