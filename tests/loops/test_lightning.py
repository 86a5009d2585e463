"""The step loop inside Lightning: the attributes it uses, its boundaries, exact resumption, and the bare loop."""

import csv
import inspect
import json
import math
import os
import signal
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.trainer import call

from tslm.loops.bare import BareDriver, train
from tslm.loops.lightning import StepCallback
from tslm.loops.step import Cadence
from tslm.training.module import LanguageModule
from tslm.training.settings import GenerationSettings, OptimizerSettings
from tslm.training.trainer import StepTrainer


def make_module():
    torch.manual_seed(0)
    return LanguageModule(
        300, 32, 16, 2, 2, 32, optimizer=OptimizerSettings(lr=1e-2, weight_decay=0.1),
        generation=GenerationSettings(max_new_tokens=4),
    )


def make_trainer(folder, max_steps, **options):
    return StepTrainer(**{
        "max_steps": max_steps, "precision": "32-true", "default_root_dir": str(folder), "accelerator": "cpu",
        "devices": 1, "enable_progress_bar": False, "limit_val_batches": 2,
    } | options)


def fit(folder, data, max_steps, ckpt_path=None, *, module=None, windows=(4, None), **options):
    """Train on steps of (batch_size, micro_batch_size) windows."""
    module = module or make_module()
    trainer = make_trainer(folder, max_steps, **options)
    batch_size, micro_batch_size = windows
    trainer.fit(module, datamodule=data(batch_size=batch_size, micro_batch_size=micro_batch_size), ckpt_path=ckpt_path)
    return module, trainer


def weights(module):
    return torch.cat([weight.flatten() for weight in module.state_dict().values()])


def test_lightning_still_has_every_protected_attribute_that_the_step_loop_uses():
    loop = pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu").fit_loop
    assert isinstance(loop, _FitLoop)
    assert isinstance(loop.epoch_loop, _TrainingEpochLoop)
    for name in (
        "run", "reset", "on_run_start", "advance", "on_iteration_done", "_should_accumulate", "_should_check_val_fx",
        "global_step", "max_steps", "val_loop", "_batches_that_stepped", "batch_progress", "automatic_optimization",
    ):
        assert hasattr(loop.epoch_loop, name), name
    assert list(inspect.signature(_TrainingEpochLoop.run).parameters) == ["self", "data_fetcher"]
    assert list(inspect.signature(_TrainingEpochLoop.advance).parameters) == ["self", "data_fetcher"]
    assert hasattr(loop.trainer._logger_connector, "_first_loop_iter")
    assert {"ready", "started", "processed", "completed"} <= set(vars(loop.epoch_loop.batch_progress.current))
    assert list(inspect.signature(call._call_lightning_module_hook).parameters)[:2] == ["trainer", "hook_name"]
    source = inspect.getsource(_FitLoop.advance)
    assert "self.epoch_loop.run(self._data_fetcher)" in source


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize(("micro_batch_size", "accumulate"), [(None, 1), (2, 4)])
def test_twenty_steps_are_bit_identical_with_lightning_and_without(
    tmp_path, data, micro_batch_size, accumulate, precision
):
    module, trainer = fit(
        tmp_path, data, 20, windows=(8, micro_batch_size), val_every_n_steps=7, precision=precision
    )
    assert trainer.accumulate_grad_batches == accumulate
    bare, bare_data = make_module(), data(batch_size=8, micro_batch_size=micro_batch_size)
    bare_data.setup("fit")
    size, count = bare_data.split(1, "cpu")
    assert count == accumulate
    made = bare.make_optimizer(20)
    batches = (bare_data.windows.batch(index, size) for index in range(20 * accumulate))
    driver = BareDriver(
        bare, made["optimizer"], made["lr_scheduler"]["scheduler"], batches, accumulate=accumulate,
        autocast=lambda: torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"),
    )
    before = weights(bare)
    train(driver, 20, Cadence(log=5))
    assert torch.equal(weights(module), weights(bare))
    assert not torch.equal(before, weights(bare))


def test_steps_whose_gradient_is_not_finite_are_skipped_by_other_optimizers_too(tmp_path, data):
    for name in ("SGD", "Muon", "torch.optim.AdamW"):
        torch.manual_seed(0)
        module = LanguageModule(300, 32, 16, 2, 2, 32, optimizer=OptimizerSettings(name, lr=1e-2, max_skipped=9))
        calls = iter([False, True, False])
        before = type(module).training_loss

        def loss(inputs, targets, module=module, calls=calls, before=before):
            return before(module, inputs, targets) * (math.nan if next(calls) else 1)

        module.training_loss = loss
        fit(tmp_path / name, data, 3, module=module, limit_val_batches=0)
        assert weights(module).isfinite().all()
        assert module.skipped.report().total == 1


class Batches(StepCallback):
    """Records the inputs of every optimizer step."""

    def __init__(self):
        self.steps = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.steps.setdefault(trainer.global_step, []).append(batch[0])


@pytest.mark.parametrize("micro_batch_size", [None, 4, 2, 1])
def test_the_windows_of_a_step_do_not_depend_on_their_split(tmp_path, data, micro_batch_size):
    seen = Batches()
    fit(tmp_path, data, 3, windows=(8, micro_batch_size), callbacks=[seen], limit_val_batches=0)
    whole = data()
    whole.setup("fit")
    for step, parts in seen.steps.items():
        assert [len(part) for part in parts] == [micro_batch_size or 8] * (8 // (micro_batch_size or 8))
        assert torch.equal(torch.cat(parts), whole.windows.batch(step, 8)[0])
    assert list(seen.steps) == [0, 1, 2]


class Boundaries(StepCallback):
    def __init__(self):
        self.events = []

    def on_validation_end(self, trainer, pl_module):
        self.events.append(("validate", trainer.global_step))

    def on_step_log(self, trainer, pl_module, step):
        self.events.append(("log", step))

    def on_step_save(self, trainer, pl_module, step):
        self.events.append(("save", step))


def test_boundaries_count_optimizer_steps_and_not_micro_batches(tmp_path, data):
    seen = Boundaries()
    fit(tmp_path, data, 6, windows=(6, 2), val_every_n_steps=4, log_every_n_steps=3, callbacks=[seen])
    assert seen.events == [
        ("log", 3), ("log", 4), ("save", 4), ("validate", 4), ("log", 6), ("save", 6), ("validate", 6),
    ]


@pytest.mark.parametrize("stop", [2, 3, 5])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, data, stop):
    options = {"windows": (4, 2), "val_every_n_steps": 3, "save_every_n_steps": 1, "log_every_n_steps": 2}
    whole, _ = fit(tmp_path / "whole", data, 8, **options)

    class StopAt(StepCallback):
        def on_step_log(self, trainer, pl_module, step):
            trainer.should_stop = step >= stop

    _, first = fit(tmp_path / "part", data, 8, callbacks=[StopAt()], **(options | {"log_every_n_steps": 1}))
    assert first.global_step == stop
    last = next((tmp_path / "part").rglob("last.ckpt"))
    resumed, trainer = fit(tmp_path / "part", data, 8, ckpt_path=str(last), **options)
    assert trainer.global_step == 8
    assert torch.equal(weights(whole), weights(resumed))


@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 1), (2, None)])
def test_a_resumed_run_may_split_its_steps_differently(tmp_path, data, before, after):
    """Lightning counts micro-batches; a step that began in the middle of its count would lack some of its windows."""
    seen = Batches()
    fit(tmp_path, data, 3, windows=(4, before))
    last = next(tmp_path.rglob("last.ckpt"))
    fit(tmp_path, data, 6, ckpt_path=str(last), windows=(4, after), callbacks=[seen])
    assert {step: sum(map(len, parts)) for step, parts in seen.steps.items()} == {3: 4, 4: 4, 5: 4}
    stream = data()
    stream.setup("fit")
    assert torch.equal(torch.cat(seen.steps[3]), stream.windows.batch(3, 4)[0])


@pytest.mark.parametrize("sizes", [(4, 6, 2), (6, 4, 4)])
def test_a_run_resumed_with_another_batch_size_skips_and_repeats_no_window(tmp_path, data, sizes):
    """Two steps of each size; a run is resumed twice, also with another accumulation."""
    seen = Batches()
    for part, size in enumerate(sizes):
        last = sorted(tmp_path.rglob("last.ckpt"))[-1:]
        _, trainer = fit(tmp_path, data, 2 * part + 2, ckpt_path=str(last[0]) if last else None,
                         windows=(size, part % 2 + 1), callbacks=[seen], limit_val_batches=0)
    stream = data()
    stream.setup("fit")
    inputs = torch.cat([micro_batch for step in range(6) for micro_batch in seen.steps[step]])
    number = 2 * sum(sizes)
    assert torch.equal(inputs, stream.windows.batch(0, number)[0])
    assert trainer.datamodule.windows_of(6) == f"windows {number - sizes[2]} to {number - 1} of data.seed 0"


def test_a_budget_in_tokens_counts_those_of_another_batch_size(tmp_path, data):
    fit(tmp_path, data, None, max_tokens=2 * 4 * 32, windows=(4, None))
    last = next(tmp_path.rglob("last.ckpt"))
    _, trainer = fit(tmp_path, data, None, ckpt_path=str(last), max_tokens=2 * 4 * 32 + 8 * 32 + 1, windows=(8, None))
    assert trainer.global_step == 2 + 2


def test_an_extended_run_continues_with_the_longer_schedule(tmp_path, data):
    fit(tmp_path, data, 4)
    last = next(tmp_path.rglob("last.ckpt"))
    _, trainer = fit(tmp_path, data, 10, ckpt_path=str(last))
    assert trainer.global_step == 10
    rate = OptimizerSettings(lr=1e-2).rate(10)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(rate(10), abs=1e-12)


def test_a_spent_budget_is_an_error(tmp_path, data):
    fit(tmp_path, data, 3)
    last = next(tmp_path.rglob("last.ckpt"))
    with pytest.raises(ValueError, match="is at step 3 and the budget is 3 steps"):
        fit(tmp_path, data, 3, ckpt_path=str(last))


class Press(StepCallback):
    """Presses Ctrl-C while a step is running."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 2:
            os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_ends_after_a_complete_step_that_is_saved(tmp_path, data, capsys):
    before = signal.getsignal(signal.SIGINT)
    _, trainer = fit(tmp_path, data, 50, callbacks=[Press()])
    assert trainer.global_step == 3
    assert trainer.interrupted_by_user
    assert signal.getsignal(signal.SIGINT) is before
    out = capsys.readouterr().out
    assert "finishing this step and saving" in out
    assert "Stopped at step 3 of 50" in out
    assert [path.name for path in sorted(tmp_path.rglob("*.ckpt"))] == ["last.ckpt", "step-00000003.ckpt"]


@pytest.mark.parametrize("during", ["on_train_batch_start", "on_validation_batch_start"])
def test_sigterm_ends_after_a_complete_step_that_is_saved(tmp_path, data, during, capsys):
    terminate = StepCallback()

    def hook(trainer, *rest):
        if trainer.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    setattr(terminate, during, hook)
    with pytest.raises(SystemExit) as exit_:
        fit(tmp_path, data, 50, callbacks=[terminate], val_every_n_steps=2)
    assert exit_.value.code == 128 + signal.SIGTERM
    kept = torch.load(next(tmp_path.rglob("last.ckpt")), weights_only=True)
    assert kept["global_step"] == (3 if during == "on_train_batch_start" else 2)
    assert "SIGTERM: stopped after optimizer step" in capsys.readouterr().out


class Fail(StepCallback):
    """Raises an error in one hook after a number of optimizer steps."""

    def __init__(self, hook, step):
        def fail(trainer, *rest):
            if trainer.global_step == step:
                raise RuntimeError("as if the disk were full")

        setattr(self, hook, fail)


def valid_losses(run):
    """Step and validation loss of each row of a run directory's metrics.csv."""
    with (run / "metrics.csv").open() as file:
        return [(int(row["step"]), float(row["valid/loss"])) for row in csv.DictReader(file) if row.get("valid/loss")]


@pytest.mark.parametrize("at", [2, 6])
@pytest.mark.parametrize("hook", ["on_validation_batch_start", "on_validation_end"])
def test_an_error_in_a_validation_costs_no_step_and_the_resumed_run_validates_it(tmp_path, data, at, hook):
    """Six steps, validated after 2, 4 and 6; the run fails in one of these validations."""
    whole, _ = fit(tmp_path / "whole", data, 6, val_every_n_steps=2)
    with pytest.raises(RuntimeError, match="as if"):
        fit(tmp_path / "part", data, 6, val_every_n_steps=2, callbacks=[Fail(hook, at)])
    first, second = (tmp_path / "part" / "lightning_logs" / name for name in ("version_0", "version_0-continued"))
    last = torch.load(first / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == at
    resumed, trainer = fit(tmp_path / "part", data, 6, val_every_n_steps=2, ckpt_path=str(first))
    assert trainer.global_step == 6
    assert torch.equal(weights(whole), weights(resumed))
    expected = valid_losses(tmp_path / "whole" / "lightning_logs" / "version_0")
    assert [row for row in valid_losses(first) if row[0] < at] + valid_losses(second) == expected
    summary = json.loads((second / "summary.json").read_text())
    assert summary["finished"]
    assert summary["best_step"] == min(expected, key=lambda row: row[1])[0]
    assert summary["train_loss"] > 0
    assert Path(summary["checkpoint"]).is_file()
    with pytest.raises(ValueError, match="nothing is left to train"):
        fit(tmp_path / "part", data, 6, ckpt_path=str(second))


def test_a_sigterm_where_validation_is_due_leaves_it_to_the_resumed_run(tmp_path, data):
    whole, _ = fit(tmp_path / "whole", data, 4, val_every_n_steps=2)
    terminate = StepCallback()
    terminate.on_step_save = lambda trainer, module, step: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(SystemExit):
        fit(tmp_path / "part", data, 4, val_every_n_steps=2, callbacks=[terminate])
    first, second = (tmp_path / "part" / "lightning_logs" / name for name in ("version_0", "version_0-continued"))
    assert valid_losses(first) == []
    resumed, _ = fit(tmp_path / "part", data, 4, val_every_n_steps=2, ckpt_path=str(first))
    assert valid_losses(second) == valid_losses(tmp_path / "whole" / "lightning_logs" / "version_0")
    assert torch.equal(weights(whole), weights(resumed))
