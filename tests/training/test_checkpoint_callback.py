"""Checkpoints of a run: `best` is the lowest validation loss of the whole training, however often it was resumed."""

import json
import shutil

import pytest
import torch

from tests.loops.conftest import data  # noqa: F401 (a fixture)
from tests.loops.test_lightning import Fail, fit, make_module
from tslm.errors import UserError
from tslm.loops.lightning import StepCallback
from tslm.training.checkpoint_callback import Checkpoints
from tslm.training.runs import find_checkpoint
from tslm.training.settings import OptimizerSettings

WORSE = OptimizerSettings(lr=100.0)


def steps(folder):
    """The optimizer step that each checkpoint of a folder holds."""
    return {path.name: torch.load(path, weights_only=True)["global_step"] for path in folder.glob("*.ckpt")}


@pytest.fixture
def runs(tmp_path, data):  # noqa: F811
    """Four steps that improve, with two validations."""
    fit(tmp_path, data, 4, val_every_n_steps=2)
    return tmp_path / "lightning_logs"


def worsen(runs, data, max_steps, **options):  # noqa: F811
    """Resume the newest run with a learning rate that spoils the model."""
    module = make_module()
    module.optimizer_settings = WORSE
    return fit(runs.parent, data, max_steps, module=module, val_every_n_steps=2,
               **{"ckpt_path": "last"} | options)


@pytest.mark.parametrize("change", ["nothing", "moved", "interrupted", "twice"])
def test_the_best_checkpoint_outlives_resumption(runs, data, change):  # noqa: F811
    best = json.loads((runs / "version_0" / "summary.json").read_text())
    assert best["best_step"] == 4
    options = {}
    if change == "moved":
        shutil.move(runs / "version_0", runs.parent / "elsewhere")
        (runs.parent / "elsewhere" / "checkpoints" / ".step-00000008.ckpt.1.new").touch()  # of a killed write
        options = {"ckpt_path": str(runs.parent / "elsewhere")}
    if change == "interrupted":  # before its first checkpoint
        with pytest.raises(RuntimeError):
            worsen(runs, data, 8, callbacks=[Fail("on_train_batch_start", 5)])
    worsen(runs, data, 8, **options)
    if change == "twice":
        worsen(runs, data, 10)
    assert not list(runs.parent.rglob(".*.new"))
    path, _ = find_checkpoint(None, prefer="best", root=runs.parent)
    newest = path.parent.parent
    assert newest.name == {"nothing": "version_0-continued", "moved": "version_0"}.get(
        change, "version_0-continued-2")
    assert steps(path.parent) == ({"best.ckpt": 4, "last.ckpt": 10, "step-00000010.ckpt": 10}
                                  if change == "twice" else
                                  {"best.ckpt": 4, "last.ckpt": 8, "step-00000006.ckpt": 6, "step-00000008.ckpt": 8})
    summary = json.loads((newest / "summary.json").read_text())
    assert summary["valid_loss"] > best["best_valid_loss"]
    assert [summary[name] for name in ("best_step", "best_valid_loss")] == [4, best["best_valid_loss"]]


def test_a_better_step_replaces_the_best_one_of_the_earlier_run(runs, data):  # noqa: F811
    fit(runs.parent, data, 6, ckpt_path="last")
    found = steps(runs / "version_0-continued" / "checkpoints")
    assert found == {"best.ckpt": 6, "last.ckpt": 6, "step-00000006.ckpt": 6}
    assert steps(runs / "version_0" / "checkpoints")["best.ckpt"] == 4


def test_a_branch_from_an_earlier_step_does_not_know_the_later_best_one(runs, data):  # noqa: F811
    worsen(runs, data, 4, ckpt_path=str(runs / "version_0" / "checkpoints" / "step-00000002.ckpt"))
    summary = json.loads((runs / "version_0-continued" / "summary.json").read_text())
    assert summary["best_step"] == 2
    assert steps(runs / "version_0-continued" / "checkpoints")["best.ckpt"] == 2


def test_a_run_removes_the_leftovers_of_killed_runs(runs, data):  # noqa: F811
    run = runs / "version_0"
    leftovers = [run / "checkpoints" / ".step-00000004.ckpt.99.new", run / ".summary.json.99.new"]
    elsewhere = runs.parent / "elsewhere" / ".step-00000004.ckpt.99.new"  # not this program's, whatever a run says
    elsewhere.parent.mkdir()
    for path in [*leftovers, elsewhere]:
        path.write_bytes(b"half")
    (runs / "version_7").mkdir()
    (runs / "version_7" / "checkpoints.txt").write_text(str(elsewhere.parent))
    (runs / "version_8").symlink_to(elsewhere.parent)
    fit(runs.parent, data, 1)
    assert not any(path.exists() for path in leftovers)
    assert elsewhere.exists()


def test_a_resumed_run_removes_the_leftovers_in_a_moved_run_directory(runs, data):  # noqa: F811
    moved = (runs / "version_0").rename(runs.parent / "moved")
    leftovers = [moved / "checkpoints" / ".step-00000004.ckpt.99.new", moved / ".metrics.csv.99.new"]
    for path in leftovers:
        path.write_bytes(b"half")
    fit(runs.parent, data, 5, ckpt_path=str(moved / "checkpoints" / "last.ckpt"))
    assert not any(path.exists() for path in leftovers)


def test_two_runs_do_not_share_a_folder_of_checkpoints(tmp_path, data):  # noqa: F811
    class Second(StepCallback):
        def on_step_log(self, trainer, pl_module, step):
            with pytest.raises(UserError, match="where another run writes its checkpoints"):
                fit(tmp_path / "second", data, 1, callbacks=[Checkpoints(str(tmp_path / "mine"))])
            refused.append(step)

    refused = []
    fit(tmp_path / "first", data, 1, callbacks=[Checkpoints(str(tmp_path / "mine")), Second()])
    assert refused
    assert not list(tmp_path.glob("second/lightning_logs/*"))
    fit(tmp_path / "third", data, 1, callbacks=[Checkpoints(str(tmp_path / "mine"))])  # the first one has ended


def test_a_folder_of_checkpoints_that_cannot_be_written_is_refused_before_the_training(tmp_path, data):  # noqa: F811
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"checkpoint.dirpath is .*file, where nothing can be written \(File exists\)"):
        fit(tmp_path, data, 1, callbacks=[Checkpoints(str(tmp_path / "file"))])
    assert not list(tmp_path.glob("lightning_logs/*"))
