"""Run directories: each run reserves its own."""

import contextlib
import functools
import os
import resource
import shutil
import signal
import threading
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from tests.loops.conftest import data  # noqa: F401 (a fixture)
from tests.loops.test_lightning import make_module, make_trainer
from tslm.errors import MissingFileError, UserError
from tslm.files import lock
from tslm.training.loggers import run_loggers
from tslm.training.run_dirs import new_run_dir
from tslm.training.runs import checkpoint_folder, find_checkpoint, newest_intact, runs_newest_first
from tslm.training.writing import WriteError


def test_no_two_runs_reserve_the_same_directory(tmp_path):
    reserved, start = [], threading.Barrier(8)

    def reserve():
        start.wait()
        for _ in range(10):
            reserved.append(int(new_run_dir(tmp_path / "logs").name.removeprefix("version_")))

    threads = [threading.Thread(target=reserve) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(reserved) == list(range(80))
    assert len(list((tmp_path / "logs").iterdir())) == 80


@pytest.mark.filterwarnings("ignore:Experiment logs directory")
@pytest.mark.parametrize("logger", [None, False, CSVLogger])
def test_runs_that_start_together_have_their_own_directories(tmp_path, data, logger):  # noqa: F811
    """The second run starts while the first one prepares its data."""
    def start(*callbacks):
        return make_trainer(tmp_path, 1, callbacks=list(callbacks), limit_val_batches=0,
                            logger=logger(tmp_path) if callable(logger) else logger)

    first, second = start(), start()
    prepared = data()
    load = prepared.load

    def load_later():
        if not second.global_step:
            assert [path.name for path in (tmp_path / "lightning_logs").iterdir()] == ["version_0"]
            second.fit(make_module(), datamodule=data())
        load()

    prepared.load = load_later
    first.fit(make_module(), datamodule=prepared)
    for number in range(2):
        run = tmp_path / "lightning_logs" / f"version_{number}"
        assert (run / "checkpoints" / "step-00000001.ckpt").is_file()
        assert (run / "summary.json").is_file()
    assert len(list((tmp_path / "lightning_logs").iterdir())) == 2


@contextlib.contextmanager
def locked(folder):
    """Lock a folder as the process that trains in it does."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        lock(handle)
        yield
    finally:
        os.close(handle)


@pytest.mark.parametrize("logger", [TensorBoardLogger, CSVLogger])
def test_two_runs_do_not_share_the_version_that_the_user_names(tmp_path, data, logger):  # noqa: F811
    def start(max_steps, **options):
        trainer = make_trainer(tmp_path, max_steps, limit_val_batches=0,
                               logger=logger(tmp_path, name="lightning_logs", version="mine"))
        trainer.fit(make_module(), datamodule=data(), **options)
        return trainer

    trainer = start(1)
    checkpoints = tmp_path / "lightning_logs" / "mine" / "checkpoints"
    before = {path: path.stat().st_mtime_ns for path in checkpoints.parent.rglob("*")}
    with pytest.raises(UserError, match=r"the run directory .*mine exists, and another run may be in it"):
        start(1)
    assert {path: path.stat().st_mtime_ns for path in checkpoints.parent.rglob("*")} == before
    if logger is TensorBoardLogger:  # Lightning's CSVLogger removes an earlier file, with a warning
        start(2, ckpt_path=str(checkpoints / "last.ckpt"))  # its own run may be continued in place
        assert (checkpoints / "step-00000002.ckpt").exists()
        with pytest.raises(UserError, match="another process trains in"), locked(checkpoints.parent):
            start(3, ckpt_path=str(checkpoints / "last.ckpt"))
    trainer.step_loop.loop.step = 0
    trainer._budget = functools.partial(trainer._budget, max_steps=2)
    trainer.fit(make_module(), datamodule=data())  # and one trainer may train twice
    assert (checkpoints / "step-00000002.ckpt").exists()


def test_a_run_that_fails_before_its_first_step_removes_only_what_it_has_made(tmp_path, data):  # noqa: F811
    """The directory of the user's version, which is that of the resumed run, stays."""
    def logger():
        return TensorBoardLogger(tmp_path, name="lightning_logs", version="mine")

    make_trainer(tmp_path, 1, limit_val_batches=0, logger=logger()).fit(make_module(), datamodule=data())
    last = tmp_path / "lightning_logs" / "mine" / "checkpoints" / "last.ckpt"
    for mine in (logger(), None):
        trainer, other = make_trainer(tmp_path, 2, logger=mine), data(vocab_size=290)
        with pytest.raises(UserError, match="fingerprint"):
            trainer.fit(make_module(), ckpt_path=str(last), datamodule=other)
        assert last.exists()
        assert [path.name for path in (tmp_path / "lightning_logs").iterdir()] == ["mine"]


def test_a_run_that_fails_before_it_writes_leaves_no_directory(tmp_path, data):  # noqa: F811
    short = tmp_path / "short.txt"
    short.write_text("Once upon a time.")
    with pytest.raises(UserError):
        make_trainer(tmp_path, 1).fit(make_module(), datamodule=data(train_files=[str(short)]))
    assert list((tmp_path / "lightning_logs").iterdir()) == []


def test_a_file_in_place_of_the_folder_of_runs_is_named(tmp_path, data):  # noqa: F811
    (tmp_path / "lightning_logs").write_text("")
    with pytest.raises(UserError, match=r"cannot be made in .*lightning_logs \(.*--trainer.default_root_dir"):
        make_trainer(tmp_path, 1).fit(make_module(), datamodule=data())


@pytest.fixture
def saved(tmp_path):
    """A run with the checkpoints of two steps, of which the first is the best."""
    folder = tmp_path / "lightning_logs" / "version_0" / "checkpoints"
    folder.mkdir(parents=True)
    for step in (2, 4):
        torch.save({"global_step": step}, folder / f"step-0000000{step}.ckpt")
    (folder / "best.ckpt").hardlink_to(folder / "step-00000002.ckpt")
    (folder / "last.ckpt").hardlink_to(folder / "step-00000004.ckpt")
    return folder


@pytest.mark.parametrize("newest", ["best", "last", "step-00000002", "step-00000004"])
def test_the_step_decides_which_checkpoint_is_last_and_not_the_time_of_the_copy(saved, tmp_path, newest):
    copy = tmp_path / "copy"
    copy.mkdir()
    for number, path in enumerate(sorted(saved.iterdir(), key=lambda path: path.stem == newest)):
        os.utime(shutil.copyfile(path, copy / path.name), (number, number))
    assert find_checkpoint(str(copy))[0].name == "last.ckpt"
    assert find_checkpoint(str(copy), prefer="best")[0].name == "best.ckpt"


def test_a_later_step_that_is_not_linked_yet_is_last_but_not_that_of_an_earlier_run(saved):
    later = saved / "step-00000006.ckpt"
    torch.save({"global_step": 6}, later)
    assert find_checkpoint(str(saved))[0] == later
    os.utime(later, (1, 1))
    assert find_checkpoint(str(saved))[0].name == "last.ckpt"


@pytest.mark.parametrize("wanted", [None, "last", "best", "run", "folder"])
def test_damaged_checkpoints_are_listed_if_there_is_no_intact_one(saved, tmp_path, wanted):
    for path in saved.iterdir():
        path.write_bytes(path.read_bytes()[:-20])
    where = {"run": str(saved.parent), "folder": str(saved)}.get(wanted, wanted)
    with pytest.raises(MissingFileError, match=r"usable checkpoint, because these are damaged: ") as error:
        find_checkpoint(where, root=tmp_path)
    assert all(str(path) in str(error.value) for path in saved.iterdir())


def test_a_folder_without_a_checkpoint_is_named(tmp_path):
    with pytest.raises(MissingFileError, match=r"^the folder .* has no checkpoint; give another checkpoint$"):
        find_checkpoint(str(tmp_path))
    (tmp_path / "last.ckpt").write_bytes(b"cut")
    with pytest.raises(MissingFileError, match=r"has no usable checkpoint, because these are damaged: .*last\.ckpt;"):
        find_checkpoint(str(tmp_path))


def test_an_empty_file_names_no_folder_of_checkpoints(tmp_path):
    (tmp_path / "checkpoints.txt").write_bytes(b"\n")
    assert checkpoint_folder(tmp_path) == tmp_path / "checkpoints"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "checkpoints.txt").write_text(f"{tmp_path}/elsewhere\n")
    assert checkpoint_folder(tmp_path) == tmp_path / "elsewhere"


def test_a_named_pipe_in_place_of_a_checkpoint_is_skipped_at_once(saved):
    (saved / "last.ckpt").unlink()
    os.mkfifo(saved / "last.ckpt")
    path, notices = find_checkpoint(str(saved))
    assert path.name == "step-00000004.ckpt"
    assert notices[0] == f"{saved / 'last.ckpt'} is damaged or cannot be read, and is skipped."


def test_a_link_to_nothing_in_another_run_stops_no_command(saved, tmp_path):
    other = saved.parent.with_name("version_1")
    (other / "checkpoints").mkdir(parents=True)
    for path in (other / "metrics.csv", other / "checkpoints" / "last.ckpt"):
        path.symlink_to("nothing")
        os.utime(path, (2**32, 2**32), follow_symlinks=False)  # of the newest run
    path, notices = find_checkpoint("best", root=tmp_path)
    assert path == saved / "best.ckpt"
    assert f"{other} has no intact checkpoint and is skipped." in notices


@pytest.mark.parametrize("content", [
    b"/nowhere", b"/nowhere\xff", b"/no\0where", b"/no" + b"x" * 300, b"/no" + b"/x" * 600])
def test_a_run_that_names_a_folder_of_checkpoints_that_does_not_exist_is_named(saved, tmp_path, content):
    path = saved.parent / "checkpoints.txt"
    path.write_bytes(content)
    with pytest.raises(MissingFileError, match=f"/no.*, where {path.parent} keeps its own, is not a folder"):
        find_checkpoint(None, root=tmp_path)
    path.write_bytes(b"\n")  # names none
    assert find_checkpoint(None, root=tmp_path)[0] == saved / "last.ckpt"


def test_a_full_disk_in_a_logger_is_one_sentence_with_the_run_directory(tmp_path, data, capfd):  # noqa: F811
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    loggers = run_loggers(str(tmp_path))
    training = make_trainer(tmp_path, 3, logger=loggers, log_every_n_steps=1), make_module(), data()
    training[2].load()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, old[1]))  # less than the first row of metrics.csv
        with pytest.raises(WriteError, match=r"lightning_logs/version_0 could not be written \(File too large\)"):
            training[0].fit(training[1], datamodule=training[2])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert "Traceback" not in capfd.readouterr().err


def test_files_that_vanish_while_runs_are_listed_are_passed_over(tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "checkpoints" / "last.ckpt").touch()
    (tmp_path / "one" / "checkpoints" / "step-00000002.ckpt").symlink_to("gone")  # as if it was removed since
    glob = Path.glob

    def fails(path, pattern):
        if path.name == "two":
            raise PermissionError(13, "Permission denied", str(path))
        return glob(path, pattern)

    monkeypatch.setattr(Path, "glob", fails)
    assert [run.name for run in runs_newest_first(tmp_path)] == ["one", "two"]
    assert newest_intact(tmp_path / "one" / "checkpoints", "last")[0] is None
