"""Every flag of Lightning's Trainer, and every callback, logger and profiler that it ships: what each does here.

It does what its documentation says, or it is refused in one sentence that says what to use instead. The tables name all
of them, and a test finds one that a new version of Lightning adds.
"""

import csv
import inspect
import json
import pathlib
import re

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch import callbacks, loggers, profilers

from tests.conftest import ROOT
from tests.test_cli import complaint
from tslm.__main__ import main
from tslm.cli import part_of_lightning
from tslm.training.lightning_features import REFUSED_CALLBACKS, REFUSED_FLAGS

TEXT = str(ROOT / "configs" / "text.yaml")

# Flags that the trainer has under the same name with the same meaning; those with a test of their own are below it.
FLAGS = {
    "accelerator": ["--trainer.accelerator=cpu"], "strategy": ["--trainer.strategy=auto"],
    "devices": ["--trainer.devices=1"], "num_nodes": ["--trainer.num_nodes=1"],
    "precision": ["--trainer.precision=bf16-mixed"], "max_steps": ["--trainer.max_steps=3"],
    "log_every_n_steps": ["--trainer.log_every_n_steps=2"], "gradient_clip_val": ["--trainer.gradient_clip_val=0.5"],
    "gradient_clip_algorithm": ["--trainer.gradient_clip_algorithm=norm"],
    "deterministic": ["--trainer.deterministic=true"], "benchmark": ["--trainer.benchmark=true"],
    "inference_mode": ["--trainer.inference_mode=false"], "default_root_dir": ["--trainer.default_root_dir=elsewhere"],
    "detect_anomaly": ["--trainer.detect_anomaly=true"], "limit_test_batches": ["--trainer.limit_test_batches=1"],
    "limit_predict_batches": ["--trainer.limit_predict_batches=1"], "plugins": ["--trainer.plugins=null"],
}
TESTED_BELOW = {
    "logger", "callbacks", "profiler", "fast_dev_run", "min_steps", "max_time", "limit_val_batches", "overfit_batches",
    "num_sanity_val_steps", "enable_checkpointing", "enable_progress_bar", "enable_model_summary",
    "accumulate_grad_batches",
}
REFUSED_VALUES = {  # a value other than the default of each flag that is refused
    "max_epochs": 2, "min_epochs": 2, "val_check_interval": 2, "check_val_every_n_epoch": 2, "limit_train_batches": 3,
    "reload_dataloaders_every_n_epochs": 1, "sync_batchnorm": "true", "model_registry": "x", "barebones": "true",
    "use_distributed_sampler": "false", "enable_autolog_hparams": "false",
}
# Callbacks with the options that they need, and a part of what they print, or a column that they add to metrics.csv.
CALLBACKS = {
    "DeviceStatsMonitor": ([], ("column", "DeviceStatsMonitor")),
    "LearningRateMonitor": ([], ("column", "lr-AdamW")),
    "LambdaCallback": ([], None), "BasePredictionWriter": ([], None), "SpikeDetection": ([], None),
    "Callback": ([], None),
    "OnExceptionCheckpoint": (["dirpath=crashed"], None),
    "ModelSummary": ([], ("printed", "Trainable params")), "RichModelSummary": ([], ("printed", "Trainable params")),
    "RichProgressBar": ([], ("printed", "Epoch 0")), "TQDMProgressBar": ([], ("printed", "Epoch 0")),
    "WeightAveraging": ([], None), "EMAWeightAveraging": (["decay=0.5"], None),
}
CALLBACKS_TESTED_BELOW = {"EarlyStopping", "ModelCheckpoint", "Timer", "BaseFinetuning", "ThroughputMonitor"}
ABSTRACT_CALLBACKS = {"Checkpoint", "ProgressBar"}  # base classes, which do nothing


def fit(tiny, *options):
    return main(["fit", "--config", TEXT, *tiny, "--trainer.log_every_n_steps=1", "--trainer.val_every_n_steps=1",
                 "--trainer.limit_val_batches=2", *options])


def columns(project):
    with (project / "lightning_logs" / "version_0" / "metrics.csv").open() as file:
        return csv.DictReader(file).fieldnames


def summary(project):
    return json.loads((project / "lightning_logs" / "version_0" / "summary.json").read_text())


def test_the_tables_name_everything_that_lightning_ships():
    flags = set(inspect.signature(pl.Trainer.__init__).parameters) - {"self"}
    assert set(REFUSED_FLAGS) == set(REFUSED_VALUES)
    assert flags == set(FLAGS) | TESTED_BELOW | set(REFUSED_FLAGS)
    refused = {kind.__name__ for kind in REFUSED_CALLBACKS}
    assert set(callbacks.__all__) == set(CALLBACKS) | CALLBACKS_TESTED_BELOW | ABSTRACT_CALLBACKS | refused
    assert set(loggers.__all__) == {"CSVLogger", "TensorBoardLogger", "Logger", *MISSING}
    assert set(profilers.__all__) == {"Profiler", "PassThroughProfiler", "XLAProfiler", *PROFILERS}


@pytest.mark.filterwarnings("ignore:")  # Lightning's own about single flags
@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_is_used(flag, project, tiny):
    assert fit(tiny, *FLAGS[flag]) == 0


@pytest.mark.parametrize("flag", REFUSED_FLAGS)
def test_a_flag_without_a_meaning_is_refused_with_what_to_use_instead(flag, project, tiny, capsys):
    assert fit(tiny, f"--trainer.{flag}={REFUSED_VALUES[flag]}") == 2
    sentence = complaint(capsys)
    assert sentence.startswith(f"tslm: trainer.{flag} is ")
    assert REFUSED_FLAGS[flag][1] in sentence
    assert not list(project.iterdir())


@pytest.mark.filterwarnings("ignore:")
@pytest.mark.parametrize("name", CALLBACKS)
def test_a_callback_acts(name, project, tiny, capsys, caplog):
    options, expected = CALLBACKS[name]
    assert fit(tiny, f"--trainer.callbacks={name}", *(f"--trainer.callbacks.{each}" for each in options)) == 0
    captured = capsys.readouterr()
    if expected is not None and expected[0] == "printed":
        assert expected[1] in captured.out + captured.err + caplog.text
    if expected is not None and expected[0] == "column":
        assert any(column.startswith(expected[1]) for column in columns(project))
    lines = captured.err.count("step 1 of ")
    assert (lines == 0) == name.endswith("ProgressBar")  # ours makes room for another one


@pytest.mark.parametrize("kind", REFUSED_CALLBACKS, ids=lambda kind: kind.__name__)
def test_a_callback_that_could_not_act_is_refused(kind, project, tiny, capsys):
    needs = {"GradientAccumulationScheduler": ['{"0": 2}', "scheduling"], "ModelPruning": ["l1_unstructured",
             "pruning_fn"], "StochasticWeightAveraging": ["0.1", "swa_lrs"]}.get(kind.__name__)
    options = [] if needs is None else [f"--trainer.callbacks.{needs[1]}={needs[0]}"]
    assert fit(tiny, f"--trainer.callbacks={kind.__name__}", *options) == 2
    sentence = complaint(capsys)
    if kind.__name__ != "GradientAccumulationScheduler":  # the parser refuses what it needs, keys that are numbers
        assert f"the callback {kind.__name__} cannot be used, because {REFUSED_CALLBACKS[kind]}" in sentence
    assert not (project / "lightning_logs").exists()


def test_the_refusal_of_accumulation_by_epochs():
    from tslm.errors import UserError
    from tslm.training.lightning_features import check_callbacks

    with pytest.raises(UserError, match="accumulation follows from"):
        check_callbacks([callbacks.GradientAccumulationScheduler({0: 2})], True)


@pytest.mark.parametrize("monitor", ["valid/loss", "valid_loss", "train/loss", "train_loss"])
def test_early_stopping_acts_after_a_validation_and_says_why(monitor, project, tiny, capsys):
    assert fit(tiny, "--trainer.callbacks=EarlyStopping", f"--trainer.callbacks.monitor={monitor}",
               "--trainer.callbacks.patience=1", "--trainer.callbacks.min_delta=100", "--trainer.max_steps=9") == 0
    assert summary(project)["steps"] == 2
    said = " ".join(capsys.readouterr().out.split())
    assert f"Stopped at step 2 of 9 by EarlyStopping: Monitored metric {monitor} did not improve" in said
    assert "Training loss 5." in said


def test_min_steps_outlast_early_stopping(project, tiny):
    assert fit(tiny, "--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=valid/loss",
               "--trainer.callbacks.patience=1", "--trainer.callbacks.min_delta=100", "--trainer.max_steps=9",
               "--trainer.min_steps=5") == 0
    assert summary(project)["steps"] == 5


def test_a_wrong_monitor_is_a_sentence_after_the_first_validation(project, tiny, capsys):
    for callback in ("EarlyStopping", "ModelCheckpoint"):
        assert fit(tiny, f"--trainer.callbacks={callback}", "--trainer.callbacks.monitor=val_loss",
                   "--trainer.max_steps=9") == 2
        sentence = complaint(capsys)
        assert "val_loss" in sentence
        assert "valid/loss" in sentence


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_model_checkpoint_saves_by_its_monitor_and_by_steps(project, tiny):
    assert fit(tiny, "--trainer.callbacks=ModelCheckpoint", "--trainer.callbacks.monitor=valid/loss",
               "--trainer.callbacks.dirpath=best", "--trainer.callbacks.filename={step}",
               "--trainer.callbacks.save_top_k=1") == 0
    assert [path.name for path in (project / "best").iterdir()] == ["step=4.ckpt"]
    assert fit(tiny, "--trainer.callbacks=ModelCheckpoint", "--trainer.callbacks.monitor=valid/loss",
               "--trainer.callbacks.dirpath=named",
               "--trainer.callbacks.filename=x-{valid/loss:.2f}-{train_loss:.1f}") == 0
    (named,) = (project / "named").iterdir()
    assert re.fullmatch(r"x-valid_loss=5\.\d\d-train_loss=5\.\d\.ckpt", named.name)
    assert fit(tiny, "--trainer.callbacks=ModelCheckpoint", "--trainer.callbacks.every_n_train_steps=2",
               "--trainer.callbacks.dirpath=often", "--trainer.callbacks.save_top_k=-1") == 0
    assert len(list((project / "often").iterdir())) == 2
    assert main(["fit", "--ckpt_path", str(next((project / "often").iterdir())), "--trainer.max_steps=6"]) == 0


@pytest.mark.parametrize(("name", "options", "argument"), [
    ("EarlyStopping", {"monitor": "train/loss", "check_on_train_epoch_end": True}, "check_on_train_epoch_end True"),
    ("ModelCheckpoint", {"save_on_train_epoch_end": True}, "save_on_train_epoch_end True"),
    ("ModelCheckpoint", {"every_n_epochs": 2}, "every_n_epochs 2"),
    ("LearningRateMonitor", {"logging_interval": "epoch"}, "logging_interval epoch"),
    ("Timer", {"duration": "00:00:00:01", "interval": "epoch"}, "interval epoch"),
    ("EMAWeightAveraging", {"update_starting_at_epoch": 1}, "update_starting_at_epoch 1"),
])
def test_an_argument_that_counts_epochs_is_refused(name, options, argument, project, tiny, capsys):
    given = json.dumps([{"class_path": name, "init_args": options}])
    assert fit(tiny, f"--trainer.callbacks={given}") == 2
    assert f"the callback {name} has {argument}, which counts epochs, and a training has none" in complaint(capsys)
    assert not (project / "lightning_logs").exists()


class Keeps(pl.Callback):
    """A user's callback with a state."""

    def __init__(self, kind: str):
        self.state = {"plain": {"n": [1, torch.ones(2)]}, "path": {"n": {"best": pathlib.Path("x")}},
                      "function": {"n": lambda: 3}, "list": [1]}[kind]

    def state_dict(self):
        return self.state


@pytest.mark.parametrize(("kind", "part"), [
    ("plain", None), ("path", "callbacks.Keeps.n.best is a pathlib"),
    ("function", "callbacks.Keeps.n is a builtins.func"),
    ("list", "callbacks.Keeps has a state_dict() that returns a list"),
])
def test_a_state_that_no_checkpoint_can_hold_is_refused_at_the_first_report(kind, part, project, tiny, capsys):
    assert fit(tiny, f"--trainer.callbacks={__name__}.Keeps", f"--trainer.callbacks.kind={kind}",
               "--trainer.max_steps=6") == (0 if part is None else 2)
    assert part is None or part in complaint(capsys)
    assert (project / "lightning_logs" / "version_0" / "checkpoints").exists() == (part is None)


class Fails(pl.Callback):
    """A user's callback with a mistake."""

    def on_train_batch_end(self, *arguments):
        raise ValueError("my mistake")


def test_a_mistake_in_a_callback_of_ones_own_is_a_sentence_that_names_its_line(project, tiny, capsys):
    assert fit(tiny, f"--trainer.callbacks={__name__}.Fails") == 2
    sentence = complaint(capsys)
    assert f"{__file__}, line " in sentence
    assert "in on_train_batch_end: ValueError: my mistake; TSLM_TRACEBACK=1 shows all" in sentence


@pytest.mark.parametrize("option", ["--trainer.max_time=00:00:00:01", "--trainer.callbacks=Timer"])
def test_a_time_limit_ends_a_training_and_says_so(option, project, tiny, capsys):
    duration = ["--trainer.callbacks.duration=00:00:00:01"] if "Timer" in option else []
    assert fit(tiny, option, *duration, "--trainer.max_steps=100000", "--trainer.val_every_n_steps=0") == 0
    assert 0 < summary(project)["steps"] < 100000
    assert "because its time is over (1 s)" in capsys.readouterr().out


def test_what_a_callback_raises_is_a_sentence_that_names_it(project, tiny, capsys):
    assert fit(tiny, "--trainer.callbacks=BaseFinetuning") == 2
    assert "the callback finetuning cannot be used: NotImplementedError" in complaint(capsys)
    assert fit(tiny, "--trainer.callbacks=ThroughputMonitor") == 2
    assert "give --trainer.callbacks.batch_size_fn" in complaint(capsys)


@pytest.mark.parametrize(("place", "part"), [
    ("lib/lightning/pytorch/callbacks/timer.py", "the callback timer"), ("lib/torch/nn/modules/module.py", None),
])
def test_a_project_in_a_folder_of_the_package_s_name_hides_no_part_of_lightning(place, part):
    with pytest.raises(ValueError, match="x") as caught:
        exec(compile("raise ValueError('x')", f"/home/me/tslm/venv/{place}", "exec"))
    assert part_of_lightning(caught.value) == part


@pytest.mark.parametrize("steps", [True, 2])
def test_a_trial_takes_its_steps_and_leaves_nothing(steps, project, tiny, capsys):
    assert fit(tiny, f"--trainer.fast_dev_run={str(steps).lower()}") == 0
    assert f"{int(steps)} optimizer steps and a validation of as many batches have run" in capsys.readouterr().out
    assert not list(project.iterdir())


def test_a_trial_of_a_resumed_run_takes_its_steps_after_the_checkpoint(project, tiny, capsys):
    assert fit(tiny) == 0
    before = {path: path.stat().st_mtime_ns for path in project.rglob("*")}
    cache = next(each for each in tiny if "cache_dir" in each)
    assert main(["fit", "--ckpt_path=last", "--trainer.fast_dev_run=2", cache]) == 0
    out, err = capsys.readouterr()
    assert "step 6 of 6" in err
    assert "2 optimizer steps and a validation of as many batches have run. Nothing was saved." in out
    assert {path: path.stat().st_mtime_ns for path in project.rglob("*")} == before


def test_a_trial_leaves_out_callbacks_that_save_or_log(project, tiny):
    names = ["ModelCheckpoint", "LearningRateMonitor", "DeviceStatsMonitor",
             {"class_path": "EarlyStopping", "init_args": {"monitor": "valid/loss"}}]
    given = [each if isinstance(each, dict) else {"class_path": each} for each in names]
    assert fit(tiny, "--trainer.fast_dev_run=true", f"--trainer.callbacks={json.dumps(given)}") == 0
    assert not list(project.iterdir())


@pytest.mark.parametrize("flag", ["limit_val_batches", "val_every_n_steps"])
def test_early_stopping_without_a_validation_is_refused(flag, project, tiny, capsys):
    assert fit(tiny, "--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=train/loss",
               f"--trainer.{flag}=0") == 2
    sentence = complaint(capsys)
    assert f"EarlyStopping acts after each validation before the end, but trainer.{flag} is 0" in sentence


def test_overfitting_repeats_the_first_windows(tmp_path, data):
    from tests.loops.test_lightning import fit as fit_module
    from tests.training.test_stock_trainer import Seen

    seen = Seen()
    _, trainer = fit_module(tmp_path, data, 6, callbacks=[seen], overfit_batches=2, limit_val_batches=None)
    kept = [batch.numpy().tobytes() for batch in seen.batches]
    assert kept == kept[:2] * 3
    assert len(set(kept)) == 2
    assert trainer.num_val_batches == [2]


@pytest.mark.parametrize(("option", "sentence"), [
    ("--trainer.overfit_batches=0.5", "give --trainer.overfit_batches a number of batches"),
    ("--trainer.fast_dev_run=-1", "trainer.fast_dev_run is -1: give a number of optimizer steps"),
    ("--trainer.profiler={class_path: SimpleProfiler, init_args: {nope: 1}}", "with its right init_args"),
    ("--trainer.gradient_clip_algorithm=value", "only 'norm' is implemented"),
    ("--trainer.accumulate_grad_batches=2", "give --data.batch_size 8 and --data.micro_batch_size 4 instead"),
    ("--trainer.plugins=lightning.pytorch.plugins.io.TorchCheckpointIO", "tslm's own plugin: leave it out"),
])
def test_a_value_without_a_meaning_is_refused(option, sentence, project, tiny, capsys):
    assert fit(tiny, option) == 2
    assert sentence in complaint(capsys)


def test_validation_before_the_first_step(project, tiny, capsys):
    assert fit(tiny, "--trainer.num_sanity_val_steps=1") == 0
    assert summary(project)["steps"] == 4


@pytest.mark.parametrize("limit", ["1", "0.5"])
def test_a_part_of_the_validation_text(limit, project, tiny):
    assert main(["fit", "--config", TEXT, *tiny, f"--trainer.limit_val_batches={limit}"]) == 0


def test_without_checkpoints_a_run_keeps_its_figures(project, tiny, capsys):
    assert fit(tiny, "--trainer.enable_checkpointing=false") == 0
    assert not (project / "lightning_logs" / "version_0" / "checkpoints").exists()
    assert summary(project)["checkpoint"] is None
    assert fit(tiny, "--trainer.enable_checkpointing=false", "--trainer.callbacks=ModelCheckpoint") == 2
    assert "the callback ModelCheckpoint saves checkpoints: leave one of them out" in complaint(capsys)


def test_the_table_of_layers_is_printed_if_it_is_asked_for(project, tiny, capsys):
    assert fit(tiny, "--trainer.enable_model_summary=true") == 0
    captured = capsys.readouterr()
    assert "Trainable params" in captured.out + captured.err


MISSING = {"WandbLogger": "wandb", "MLFlowLogger": "mlflow", "CometLogger": "comet-ml", "LitLogger": "litlogger"}


@pytest.mark.parametrize("name", ["CSVLogger", "TensorBoardLogger"])
def test_a_logger_by_its_bare_name_writes_to_the_run_directory(name, project, tiny):
    assert fit(tiny, f"--trainer.logger={name}") == 0
    run = project / "lightning_logs" / "version_0"
    assert (run / "metrics.csv").exists() == (name == "CSVLogger")
    assert any(run.glob("events*")) == (name == "TensorBoardLogger")
    assert (run / "checkpoints" / "best.ckpt").exists()
    assert not list(project.glob("lightning_logs/*/version_*"))


@pytest.mark.parametrize("name", MISSING)
def test_a_logger_whose_package_is_missing_names_it(name, project, tiny, capsys, monkeypatch):
    def lacks(*arguments, **options):
        raise ModuleNotFoundError(f"No module named {MISSING[name]!r}")

    monkeypatch.setattr(loggers, name, lacks)
    monkeypatch.setattr(pl.loggers, name, lacks)
    assert fit(tiny, f"--trainer.logger={name}") == 2
    assert f"which needs a package: run pip install {MISSING[name]}" in complaint(capsys)
    assert not (project / "lightning_logs").exists()


def test_any_logger_gets_the_settings_and_the_figures(project, tiny, monkeypatch):
    """wandb and mlflow are not installed here; this logger has their interface, which is Lightning's."""
    received = {"settings": {}, "figures": []}

    class Remote(loggers.Logger):
        name, version = "remote", 1

        def log_hyperparams(self, params, *rest, **options):
            received["settings"] |= dict(params)

        def log_metrics(self, metrics, step=None):
            received["figures"].append((step, dict(metrics)))

    monkeypatch.setattr(pl.loggers, "WandbLogger", lambda **options: Remote())
    assert fit(tiny, "--trainer.logger=WandbLogger") == 0
    assert received["settings"]["model.d_model"] == 16
    assert received["settings"]["optimizer.lr"] == 2e-3
    names = {name for _, figures in received["figures"] for name in figures}
    assert {"train/loss", "valid/loss", "train/learning_rate"} <= names
    assert (project / "lightning_logs" / "version_0" / "checkpoints" / "best.ckpt").exists()


PROFILERS = {"SimpleProfiler": "simple", "AdvancedProfiler": "advanced", "PyTorchProfiler": "pytorch"}


@pytest.mark.filterwarnings("ignore:")
@pytest.mark.parametrize("name", PROFILERS.values())
def test_a_profiler_prints_its_report(name, project, tiny, caplog):
    assert fit(tiny, f"--trainer.profiler={name}") == 0
    assert "FIT Profiler Report" in caplog.text  # pytest takes the records from Lightning's handler


@pytest.mark.parametrize("name", ["fast", "xla"])
def test_a_profiler_that_cannot_be_had_is_a_sentence(name, project, tiny, capsys):
    assert fit(tiny, f"--trainer.profiler={name}") == 2
    assert f"trainer.profiler is {name}, but it must be one of simple, advanced, pytorch, or a" in complaint(capsys)
