"""FSDP2 with two processes: the same training as one process, and checkpoints that both can continue."""

import json
import os
import subprocess
import sys

import pytest
import torch

from tests.conftest import ROOT
from tests.test_cli import TEXT
from tslm.__main__ import main
from tslm.optim import clip_gradients


def states(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def shared(*options):
    """Train with two processes; in a subprocess, because the second process starts from the first one's command."""
    command = [sys.executable, "-m", "tslm", "fit", *options, "--trainer.devices=2", "--trainer.strategy=fsdp2"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False,
                         env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


def test_two_processes_with_parts_of_the_weights_train_like_one_and_continue_its_runs(project, tiny):
    options = ["--config", TEXT, *tiny, "--trainer.log_every_n_steps=1", "--optimizer.eps=1e-3",
               "--trainer.gradient_clip_val=0.1", "--trainer.max_steps=2", "--optimizer.cosine_steps=4"]
    longer = ["--trainer.max_steps=4"]
    assert main(["fit", *options, "--name=one"]) == 0
    said = shared(*options, "--name=two")
    assert "2 processes; 32-true" in said
    assert "a story beginning with 'Once upon a time'" in said
    assert main(["fit", *options, *longer, "--name=whole"]) == 0
    logs = project / "lightning_logs"
    shared("--ckpt_path", str(logs / "one"), *longer, "--name=one-then-two")
    assert main(["fit", "--ckpt_path", str(logs / "two"), *longer, "--name=two-then-one",
                 "--trainer.devices=1", "--trainer.strategy=auto"]) == 0
    for names in (("one", "two"), ("whole", "one-then-two"), ("whole", "two-then-one")):
        expected, found = (states(logs / name) for name in names)
        assert expected["state_dict"].keys() == found["state_dict"].keys()
        for name, weight in expected["state_dict"].items():
            torch.testing.assert_close(found["state_dict"][name], weight, rtol=1e-5, atol=1e-6)
        moments, others = (each["optimizer_states"][0]["state"] for each in (expected, found))
        for index, state in moments.items():
            torch.testing.assert_close(others[index]["exp_avg"], state["exp_avg"], rtol=1e-4, atol=1e-7)
        losses = [json.loads((logs / name / "summary.json").read_text())["valid_loss"] for name in names]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert main(["generate", "--ckpt_path", str(logs / "two"), "--max_new_tokens=3"]) == 0


def test_the_groups_of_muon_are_those_of_one_process(project, tiny):
    """Lightning numbers parameters in the order of the model, an optimizer in the order of its groups."""
    options = ["--config", TEXT, *tiny, "--optimizer.class_path=Muon", "--trainer.max_steps=2",
               "--optimizer.cosine_steps=3", "--optimizer.warmup_steps=0"]
    longer, logs = ["--trainer.max_steps=3"], project / "lightning_logs"
    assert main(["fit", *options, "--name=one"]) == 0
    assert main(["fit", "--ckpt_path", str(logs / "one"), *longer, "--name=whole"]) == 0
    shared(*options, "--name=two")
    assert main(["fit", "--ckpt_path", str(logs / "two"), *longer, "--name=two-then-one",
                 "--trainer.devices=1", "--trainer.strategy=auto"]) == 0
    shared("--ckpt_path", str(logs / "one"), *longer, "--name=one-then-two")
    whole, start = states(logs / "whole"), states(logs / "one")["state_dict"]
    for name in ("two-then-one", "one-then-two"):
        found = states(logs / name)
        for key, weight in whole["state_dict"].items():  # products in bfloat16 differ by a few hundredths
            assert (found["state_dict"][key] - weight).norm() < 0.2 * (weight - start[key]).norm()
        of_groups = [[index for group in each["optimizer_states"][0]["param_groups"] for index in group["params"]]
                     for each in (whole, found)]
        for index, other in zip(*of_groups, strict=True):
            expected, state = whole["optimizer_states"][0]["state"][index], found["optimizer_states"][0]["state"][other]
            assert expected.keys() == state.keys()
            for each in expected.keys() - {"step"}:
                assert (state[each] - expected[each]).norm() <= 0.05 * expected[each].norm()


def test_the_norm_of_ordinary_gradients_is_as_before():
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    assert clip_gradients([parameter], 1.0) == 5
    torch.testing.assert_close(parameter.grad, torch.tensor([0.6, 0.8]))
