"""Hooks inside the step loop: their listeners are found once, and all are called as Lightning calls them."""

import inspect

import lightning.pytorch as pl
import pytest
from lightning.pytorch.core.hooks import ModelHooks
from lightning.pytorch.profilers import SimpleProfiler
from lightning.pytorch.trainer import call

from tests.loops.test_lightning import make_module, make_trainer
from tslm.loops.lightning import NoProfiler, StepCallback, direct_hooks
from tslm.training import LanguageModule

CALLBACK_HOOKS = [name for name in vars(pl.Callback) if name.startswith("on_") or name in ("setup", "teardown")]
MODULE_HOOKS = [
    *(name for name, _ in inspect.getmembers(ModelHooks, inspect.isfunction) if name.startswith("on_")),
    "transfer_batch_to_device", "on_before_batch_transfer", "on_after_batch_transfer", "optimizer_step",
    "optimizer_zero_grad", "lr_scheduler_step", "configure_gradient_clipping", "backward", "training_step",
]
LIGHTNINGS = (call._call_callback_hooks, call._call_lightning_module_hook, call._call_strategy_hook)


def listening(base, hooks, events):
    """Make a class that writes down each of its hooks, by what name Lightning knows it, and with which arguments."""

    def listener(name):
        def hook(self, *args, **kwargs):
            module = self if isinstance(self, pl.LightningModule) else args[1]
            known_as = module._current_fx_name
            events.append((base.__name__, name, known_as, [type(each).__name__ for each in args], sorted(kwargs)))
            return getattr(super(kind, self), name)(*args, **kwargs)

        return hook

    kind = type("Listening", (base,), {name: listener(name) for name in hooks})
    return kind


def record(folder, data, **options):
    events = []
    trainer = make_trainer(
        folder, 4, accumulate_grad_batches=2, val_every_n_steps=2, logger=False,
        callbacks=[listening(pl.Callback, CALLBACK_HOOKS, events)(), pl.Callback()], **options,
    )
    plain = make_module()
    module = listening(LanguageModule, MODULE_HOOKS, events)(
        300, 32, 16, 2, 2, 32, optimizer=plain.optimizer_settings, generation=plain.generation_settings
    )
    trainer.fit(module, datamodule=data())
    return events


@pytest.mark.filterwarnings("ignore:You have overridden")  # in the module, which is listened to, beside a data module
def test_whoever_has_every_hook_hears_all_that_lightning_calls_in_its_order(tmp_path, data):
    direct = record(tmp_path / "direct", data)
    lightnings = record(tmp_path / "lightnings", data, profiler=SimpleProfiler(dirpath=tmp_path, filename="profile"))
    assert direct == lightnings
    heard = {name for _, name, *_ in direct}
    assert {"on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward", "backward",
            "on_before_optimizer_step", "on_train_batch_end", "on_validation_batch_end", "optimizer_step",
            "on_after_batch_transfer", "lr_scheduler_step", "configure_gradient_clipping"} <= heard
    assert sum(event[:2] == ("Callback", "on_train_batch_end") for event in direct) == 8


def test_a_profiler_that_is_asked_for_measures_every_call(tmp_path, data):
    profiler = SimpleProfiler(dirpath=tmp_path, filename="profile")
    make_trainer(tmp_path, 2, profiler=profiler, logger=False).fit(make_module(), datamodule=data())
    assert len(profiler.recorded_durations["[LightningModule]LanguageModule.optimizer_step"]) == 2
    assert isinstance(make_trainer(tmp_path, 2, logger=False).profiler, NoProfiler)


class Late(StepCallback):
    """Hears batches although it joins only while training runs."""

    heard = 0

    def on_train_batch_end(self, *rest):
        self.heard += 1


class Joins(StepCallback):
    def __init__(self, late):
        self.late = late

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 1:
            trainer.callbacks.append(self.late)


def test_a_callback_that_joins_during_training_is_heard_from_the_next_hook_on(tmp_path, data):
    late = Late()
    make_trainer(tmp_path, 4, callbacks=[Joins(late)], logger=False).fit(make_module(), datamodule=data())
    assert late.heard == 2


class Fails(StepCallback):
    def on_train_batch_end(self, *rest):
        assert call._call_callback_hooks is not LIGHTNINGS[0]
        raise RuntimeError("enough")


def test_lightnings_own_calls_are_back_however_training_ended(tmp_path, data):
    with pytest.raises(RuntimeError, match="enough"):
        make_trainer(tmp_path, 4, callbacks=[Fails()], logger=False).fit(make_module(), datamodule=data())
    assert (call._call_callback_hooks, call._call_lightning_module_hook, call._call_strategy_hook) == LIGHTNINGS


def test_a_second_trainer_keeps_lightnings_way(tmp_path, data):
    first = make_trainer(tmp_path, 2, callbacks=[Late()], logger=False)
    second = pl.Trainer(
        callbacks=[Late()], logger=False, accelerator="cpu", enable_checkpointing=False, enable_progress_bar=False
    )
    for trainer in (first, second):
        trainer.strategy.connect(make_module())
    with direct_hooks(first):
        call._call_callback_hooks(second, "on_train_batch_end", None, None, 0)
        assert call._call_lightning_module_hook(second, "lr_scheduler_step", Scheduler(), None) is None
        assert call._call_strategy_hook(second, "reduce", 5) == 5
    late = [callback for each in (first, second) for callback in each.callbacks if isinstance(callback, Late)]
    assert [callback.heard for callback in late] == [0, 1]


class Scheduler:
    def step(self):
        pass
