"""The signal of a SLURM pre-emption is handled like SIGTERM: the step is finished and saved, the exit code is 143."""

import os
import signal
from pathlib import Path

import pytest
import torch

from tests.loops.test_lightning import fit, weights
from tslm.loops.lightning import StepCallback
from tslm.training.run_table import run_figures

JOB = {"NTASKS": "1", "NTASKS_PER_NODE": "1", "JOB_NAME": "train", "JOB_ID": "1234", "PROCID": "0", "LOCALID": "0",
       "NODEID": "0"}


@pytest.mark.parametrize("sent", [signal.SIGUSR1, signal.SIGTERM])
@pytest.mark.parametrize("during", ["on_train_batch_start", "on_validation_batch_start"])
def test_a_pre_emption_ends_after_a_saved_step_and_the_resumed_run_is_exact(
    project, data, monkeypatch, capsys, sent, during
):
    whole, _ = fit(project / "whole", data, 5, val_every_n_steps=2)
    for name, value in JOB.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    before = signal.getsignal(sent)
    pre_empt = StepCallback()
    setattr(pre_empt, during, lambda trainer, *rest: trainer.global_step == 2 and os.kill(os.getpid(), sent))
    with pytest.raises(SystemExit) as ended:
        fit(project, data, 5, val_every_n_steps=2, callbacks=[pre_empt])
    assert ended.value.code == 143
    assert signal.getsignal(sent) is before
    step = 3 if during == "on_train_batch_start" else 2
    assert f"SIGTERM: stopped after optimizer step {step}, which is saved" in capsys.readouterr().out
    assert torch.load("lightning_logs/version_0/checkpoints/last.ckpt")["global_step"] == step
    figures = run_figures(Path("lightning_logs/version_0"))
    assert (figures.state, figures.steps) == ("stopped", step)
    assert not list(project.glob("hpc_ckpt*"))  # Lightning's own
    resumed, _ = fit(project, data, 5, "last", val_every_n_steps=2)
    assert torch.equal(weights(whole), weights(resumed))
