"""Run directories: each run reserves its own."""

import threading

import pytest
from lightning.pytorch.loggers import CSVLogger

from tests.loops.conftest import data  # noqa: F401 (a fixture)
from tests.loops.test_lightning import make_module, make_trainer
from tslm.errors import UserError
from tslm.training.runs import reserve_version


def test_no_two_runs_reserve_the_same_directory(tmp_path):
    reserved, start = [], threading.Barrier(8)

    def reserve():
        start.wait()
        for _ in range(10):
            reserved.append(reserve_version(tmp_path / "logs"))

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
