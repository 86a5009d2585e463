import json
import random

import pytest

from tests.campaigns import kill
from tests.campaigns.kill import SAVING, main
from tests.campaigns.kill_points import Point
from tests.campaigns.kill_training import Lab, Settings, Training

SETTINGS = Settings(("--trainer.precision=32-true", "--trainer.save_every_n_steps=3"))
FORGET = """
from tslm.training.module import LanguageModule
load = LanguageModule.on_load_checkpoint

def forget(self, state):
    load(self, state)
    for each in state["optimizer_states"][0]["state"].values():
        each["exp_avg"].zero_()

LanguageModule.on_load_checkpoint = forget
"""
WRITE_IN_PLACE = """
from tslm import files
from tslm.training import writing

def write_in_place(path, write):
    with files._open_locked(path) as file:
        write(file)

writing.replace_atomically = write_in_place
"""
KEEP = """
from tslm.training import checkpoint_callback
checkpoint_callback.remove_leftovers = lambda folder: None
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """One server and one folder for all tests of this file."""
    lab = Lab(tmp_path_factory.mktemp("kill"))
    yield lab
    lab.server.close()


def test_a_short_campaign_finds_no_difference(lab, capsys, monkeypatch):
    monkeypatch.setattr(kill, "lab_of", lambda case: lab)
    names = ["anywhere", "checkpoint_write"]
    assert main([*(word for name in names for word in ("--family", name)), "--count", "1", "--seed", "3"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    found = [json.loads(line) for line in out.splitlines()]
    assert [(line["name"], line["tried"], line["failed"]) for line in found] == [(name, 1, 0) for name in names]


@pytest.mark.parametrize(("fault", "point", "message"), [
    (FORGET, Point(SAVING, 3, "calls", 1), "checkpoint differs"),  # killed after step 9, resumed after step 6
    (WRITE_IN_PLACE, Point(SAVING, 2, "bytes", 1000), "is not complete"),
    (KEEP, Point(SAVING, 2, "bytes", 1000), r"\.step-00000006\.ckpt\..*\.new"),
])
def test_a_planted_fault_is_found(lab, monkeypatch, fault, point, message):
    reference = lab.reference(SETTINGS)
    monkeypatch.setattr(lab.server, "planted", fault)
    training = Training(lab, SETTINGS, random.Random(0))

    def check():
        training.complete([{"point": point}])
        training.compare(reference)

    with pytest.raises(AssertionError, match=message):
        check()
