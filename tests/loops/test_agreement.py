"""Stopping together: answers come one boundary late, and a SIGTERM that one of two processes gets ends both."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from torch import distributed

from tests.conftest import ROOT
from tslm.loops.agreement import Agreement

SCRIPT = """
import os, signal, sys
from tests.loops.test_lightning import make_module, make_trainer
from tslm.data.datamodule import TextDataModule
from tslm.loops.lightning import StepCallback

class Terminate(StepCallback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_rank == 1 and trainer.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

if __name__ == "__main__":
    story_file, cache_dir = sys.argv[1:]
    data = TextDataModule(train_files=[story_file], cache_dir=cache_dir, vocab_size=300, context_length=32,
                          batch_size=4, num_workers=1)
    trainer = make_trainer(".", 50, devices=2, strategy="ddp", callbacks=[Terminate()], val_every_n_steps=9)
    trainer.fit(make_module(), datamodule=data)
"""


@pytest.fixture
def alone():
    """A process group with this process as its only member."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_an_answer_comes_one_boundary_late(alone):
    agreement = Agreement(2)
    assert agreement.finish() == [False, False]
    asked = [(False, True), (False, False), (True, True), (False, False)]
    assert [agreement.ask(*flags) for flags in asked] == [
        [False, False], [False, True], [False, False], [True, True],
    ]
    assert agreement.finish() == [False, False]


def test_a_sigterm_of_one_of_two_processes_ends_both_behind_a_saved_step(project, story_file, cache_dir):
    (project / "train.py").write_text(SCRIPT)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "train.py", str(story_file), str(cache_dir)], capture_output=True, text=True, timeout=120,
        check=False, env=environment,
    )
    assert run.returncode == 128 + signal.SIGTERM, run.stderr
    assert run.stdout.count("SIGTERM: stopped behind optimizer step 4, which is saved.") == 1
    kept = torch.load(next(project.rglob("last.ckpt")), weights_only=True)
    assert kept["global_step"] == 4  # raised in step 3, asked behind it, answered behind the next
