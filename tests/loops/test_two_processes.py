"""Two processes: resumption with another number of them, and a validation text of fewer windows than processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from tests.loops.test_lightning import Batches, fit, valid_losses

SCRIPT = """
import sys, torch
from tests.loops.test_lightning import Batches, fit
from tslm.data.datamodule import TextDataModule

def data(**options):
    return TextDataModule(train_files=[sys.argv[1]], valid_files=["short.txt"], cache_dir=sys.argv[2], vocab_size=300,
                          context_length=32, num_workers=1, **options)

if __name__ == "__main__":
    seen = Batches()
    _, trainer = fit(".", data, 4, "last", windows=(8, 2), devices=2, strategy="ddp", callbacks=[seen])
    torch.save(seen.steps, f"steps{trainer.global_rank}.pt")
"""


def test_one_process_two_and_one_again_train_on_consecutive_windows(project, data, story_file, cache_dir):
    """Two steps of 8 windows each; the validation text has one window, so one of two processes has nothing to do."""
    Path("short.txt").write_text("Once upon a time, there was a cat.")
    Path("train.py").write_text(SCRIPT)
    short = lambda **options: data(valid_files=["short.txt"], **options)  # noqa: E731
    fit(project, short, 2, windows=(8, None))
    run = subprocess.run(
        [sys.executable, "train.py", str(story_file), str(cache_dir)], capture_output=True, text=True, timeout=120,
        check=False, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert run.returncode == 0, run.stderr
    seen = Batches()
    fit(project, short, 6, "last", windows=(8, None), callbacks=[seen])
    stream = short()
    stream.setup("fit")
    parts = [torch.load(f"steps{rank}.pt") for rank in (0, 1)]
    # Micro-batch i of process r has the windows (2i + r) · 2 and the next one.
    inputs = [micro for step in (2, 3) for pair in zip(*(part[step] for part in parts), strict=True) for micro in pair]
    inputs += [micro for step in (4, 5) for micro in seen.steps[step]]
    assert torch.equal(torch.cat(inputs), stream.windows.batch(0, 48)[0][16:])
    # A resumed run repeats the validation of its first step, with another number of processes.
    runs = [project / "lightning_logs" / f"version_0{name}" for name in ("", "-continued", "-continued-2")]
    alone, shared, again = map(valid_losses, runs)
    assert [step for run in (alone, shared, again) for step, _ in run] == [2, 2, 4, 4, 6]
    assert shared[0] == pytest.approx(alone[0], rel=1e-6)
    assert again[0] == pytest.approx(shared[1], rel=1e-6)
