"""A sweep that starts all its runs at once in one folder."""

import json
import subprocess
import sys

import yaml

from tests.conftest import ROOT
from tests.test_cli import TEXT
from tslm.__main__ import main

NUMBER = 8
# The processes are forked after the imports, so that they start within milliseconds of each other.
SCRIPT = f"""
import os, sys
import tslm.cli
from tslm.__main__ import main
children = []
for number in range({NUMBER}):
    child = os.fork()
    if not child:
        rate, size = 0.001 * (number + 1), 280 + number % 2
        os._exit(main([*sys.argv[1:], f"--optimizer.lr={{rate}}", f"--data.vocab_size={{size}}"]))
    children.append(child)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


def test_eight_runs_started_at_once_in_one_folder_are_eight_whole_runs(tmp_path, tiny, story_file, monkeypatch, capsys):
    options = [option for option in tiny if "cache_dir" not in option and "vocab_size" not in option]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "fit", "--config", TEXT, *options], cwd=tmp_path, capture_output=True, text=True,
        check=False, env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "", "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    runs = sorted((tmp_path / "lightning_logs").iterdir())
    assert [run.name for run in runs] == [f"version_{number}" for number in range(NUMBER)]
    rates = []
    for run in runs:
        summary = json.loads((run / "summary.json").read_text())
        assert (summary["finished"], summary["steps"]) == (True, 4)
        rates.append(yaml.safe_load((run / "config.yaml").read_text())["optimizer"]["lr"])
    assert sorted(rates) == [round(0.001 * (number + 1), 3) for number in range(NUMBER)]
    monkeypatch.chdir(tmp_path)
    assert main(["runs", "--verify"]) == 0
    assert capsys.readouterr().out.count("all intact") == NUMBER
