"""What a stopped run leaves, and what `runs` says of it."""

import json
import os
import signal

import pytest

from tests.loops.conftest import data  # noqa: F401 (a fixture)
from tests.loops.test_lightning import fit, make_module, make_trainer
from tslm.__main__ import main
from tslm.files import lock
from tslm.loops.lightning import StepCallback
from tslm.training import summary
from tslm.training.checkpoint_callback import Checkpoints


def listed(folder, capsys):
    """The runs that `runs` lists, with their states."""
    capsys.readouterr()
    assert main(["runs", "--json", f"--dir={folder}"]) == 0
    return {run["name"]: run["state"] for run in map(json.loads, capsys.readouterr().out.splitlines())}


@pytest.fixture
def python_interrupts():
    """Ctrl-C raises KeyboardInterrupt, also after a test in which Lightning has switched it off."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_sigterm_while_the_data_is_prepared_leaves_no_run(tmp_path, data, monkeypatch):  # noqa: F811
    seen = []

    def kill(pid, number):
        """Record the signal that ends the process, and end the training only."""
        seen.append((pid, number, signal.getsignal(number), runs()))
        raise SystemExit

    def runs():
        return [path.name for path in (tmp_path / "lightning_logs").iterdir()]

    prepared = data()
    prepared.prepare_data = lambda: (seen.append(runs()), signal.raise_signal(signal.SIGTERM))
    monkeypatch.setattr(os, "kill", kill)
    with pytest.raises(SystemExit):
        make_trainer(tmp_path, 1).fit(make_module(), datamodule=prepared)
    assert seen == [["version_0"], (os.getpid(), signal.SIGTERM, signal.SIG_DFL, [])]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_an_empty_run_directory_is_a_run_only_while_it_is_locked(tmp_path, capsys):
    folder = tmp_path / "lightning_logs" / "version_0"
    folder.mkdir(parents=True)  # as a killed preparation leaves it
    assert main(["runs", f"--dir={tmp_path}"]) == 2
    assert "there is no run in" in capsys.readouterr().err
    handle = os.open(folder, os.O_RDONLY)
    try:
        assert lock(handle)
        assert listed(tmp_path, capsys) == {"version_0": "running"}
    finally:
        os.close(handle)


class Press(StepCallback):
    """Presses Ctrl-C in a step."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 2:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("python_interrupts")
def test_a_second_ctrl_c_stops_a_run_at_once(tmp_path, data, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr(Checkpoints, "_name_best", lambda self: signal.raise_signal(signal.SIGINT))  # the step is saved
    with pytest.raises(SystemExit):
        fit(tmp_path, data, 50, callbacks=[Press()])
    monkeypatch.undo()
    kept = json.loads((tmp_path / "lightning_logs" / "version_0" / "summary.json").read_text())
    assert (kept["steps"], kept["finished"]) == (3, False)
    assert kept["checkpoint"].endswith("last.ckpt")
    assert listed(tmp_path, capsys) == {"version_0": "stopped"}
    assert fit(tmp_path, data, 4, ckpt_path="last")[1].global_step == 4


@pytest.mark.usefixtures("python_interrupts")
@pytest.mark.parametrize("during", ["floor_of", "summary_text"])
def test_ctrl_c_after_the_last_step_leaves_a_finished_run(tmp_path, data, monkeypatch, during, capsys):  # noqa: F811
    def press(*rest):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(summary, during, press)
    with pytest.raises(SystemExit):
        fit(tmp_path, data, 2)
    assert listed(tmp_path, capsys) == {"version_0": "finished"}
