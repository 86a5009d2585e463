"""Flags arrive one boundary later, and a SIGTERM to one of two processes ends both."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from torch import distributed

from tests.conftest import ROOT
from tslm.loops.stop_consensus import StopConsensus

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
                          batch_size=8, micro_batch_size=2, num_workers=1)
    trainer = make_trainer(".", 50, devices=2, strategy="ddp", callbacks=[Terminate()], val_every_n_steps=9)
    trainer.fit(make_module(), datamodule=data)
"""


@pytest.fixture
def process_group():
    """A process group with this process as its only member."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_flags_arrive_one_boundary_later(process_group):
    consensus = StopConsensus(2)
    assert consensus.finish() == [False, False]
    sent = [(False, True), (False, False), (True, True), (False, False)]
    assert [consensus.exchange(*flags) for flags in sent] == [
        [False, False], [False, True], [False, False], [True, True],
    ]
    assert consensus.finish() == [False, False]


def test_a_sigterm_to_one_of_two_processes_ends_both_after_a_saved_step(project, story_file, cache_dir):
    (project / "train.py").write_text(SCRIPT)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "train.py", str(story_file), str(cache_dir)], capture_output=True, text=True, timeout=120,
        check=False, env=environment,
    )
    assert run.returncode == 128 + signal.SIGTERM, run.stderr
    assert run.stdout.count("SIGTERM: stopped after optimizer step 4, which is saved.") == 1
    kept = torch.load(next(project.rglob("last.ckpt")), weights_only=True)
    assert kept["global_step"] == 4  # received in step 3, sent after it, known after the next
