import json
import os

from tests.campaigns import kill_server
from tests.campaigns.kill import main

FAULTS = """
from tslm.training import checkpoint, checkpoint_callback
from tslm.training.module import LanguageModule

load = LanguageModule.on_load_checkpoint

def forget(self, state):
    load(self, state)
    for each in state["optimizer_states"][0]["state"].values():
        each["exp_avg"].zero_()

def write_in_place(path, write):
    with checkpoint._open_locked(path) as file:
        write(file)

LanguageModule.on_load_checkpoint = forget
checkpoint.replace_atomically = write_in_place
"""


def lines(capsys):
    out, err = capsys.readouterr()
    return [json.loads(line) for line in out.splitlines()], err


def test_a_short_campaign_finds_no_difference(capsys):
    names = ["anywhere", "checkpoint_write", "signals"]
    families = [word for name in names for word in ("--family", name)]
    assert main([*families, "--count", "1", "--seed", "3"]) == 0
    found, err = lines(capsys)
    assert err == ""
    assert [(line["name"], line["tried"], line["failed"]) for line in found] == [(name, 1, 0) for name in names]


def test_a_lost_optimizer_state_and_a_half_written_checkpoint_are_found(capsys, monkeypatch, tmp_path):
    """The server imports a module that plants both faults."""
    (tmp_path / "faults.py").write_text(FAULTS)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setattr(kill_server, "PLANTED", ["faults"])
    assert main(["--family", "validation", "--family", "checkpoint_write", "--count", "1", "--seed", "0"]) == 1
    found, err = lines(capsys)
    assert [line["failed"] for line in found] == [1, 1]
    assert "checkpoint differs" in err
    assert "is not complete" in err
