"""What many tests share: a small text, a small model, and a cache of prepared data for the whole session."""

import gc
import os
import shutil
import signal
from pathlib import Path

import hypothesis
import pytest

gc.disable()  # until the tests are collected: it would walk through all that torch and Lightning load, again and again
# Before torch is imported, and for the processes that tests start. Threads that spin while they wait would take the
# core from another test.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

hypothesis.settings.register_profile("tests", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("tests")

ROOT = Path(__file__).parent.parent
needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CC") or "cc") is None, reason="the C kernels need a C compiler")
needs_open_door = pytest.mark.skipif(os.environ.get("TSLM_FAST") == "0", reason="TSLM_FAST=0 shuts the door")


def pytest_collection_finish():
    """Leave what is loaded out of all garbage collections, also out of the long ones at the end of the process."""
    gc.freeze()
    gc.enable()


def hear_ctrl_c():
    """For a process about to start: whoever started the tests, `nohup` for one, may have had Ctrl-C ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture(scope="session")
def story_file(tmp_path_factory):
    """Three hundred stories of the embedded corpus in one text file."""
    from tslm.data.toy import write_corpus

    path = tmp_path_factory.mktemp("text") / "stories.txt"
    write_corpus(path, 300, seed=7)
    return path


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory):
    """Prepared data is made once per session."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty working folder, where the run directories of the test go."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def tiny(story_file, cache_dir):
    """Options that train a tiny model on the small text for a few steps."""
    return [
        "--data.corpus=files", f'--data.train_files=["{story_file}"]', f"--data.cache_dir={cache_dir}",
        "--data.vocab_size=300", "--data.context_length=32", "--data.batch_size=4", "--data.num_workers=1",
        "--model.d_model=16", "--model.num_layers=1", "--model.num_heads=2", "--model.d_ff=32",
        "--trainer.max_steps=4", "--trainer.precision=32-true", "--trainer.accelerator=cpu",
        "--generation.max_new_tokens=4",
    ]
