"""`python -m tests.campaigns.attack` in a short form, and planted faults that it finds."""

import contextlib
import json
import pickle
import zipfile

import pytest
import torch

from tests.campaigns import attack, attack_libraries
from tests.campaigns.attack_inputs import PLACES, planted_checkpoint, shapes, with_value
from tests.campaigns.attack_place import Place
from tests.campaigns.campaign import Case, count_of
from tests.campaigns.project import private_environment
from tests.conftest import needs_compiler
from tslm.training import checkpoint


def lines(capsys):
    out, err = capsys.readouterr()
    return [json.loads(line) for line in out.splitlines()], err


def test_a_short_campaign_finds_nothing(capsys):
    families = [option for name in ("pickles", "settings", "paths") for option in ("--family", name)]
    assert attack.main(["--seed", "1", "--count", "2", *families]) == 0
    found, err = lines(capsys)
    assert err == ""
    assert [(line["tried"], line["failed"]) for line in found] == [(2, 0)] * 3


def test_a_full_campaign_has_enough_attacks_of_enough_shapes(tmp_path):
    families = [attack.pickles, attack.planted_files, attack.settings, attack.paths, attack.libraries, attack.bombs]
    assert sum(map(count_of, families)) >= 400
    assert len(shapes(tmp_path)) >= 30
    assert len(attack.PATHS) + len(attack.LIBRARIES) + len(attack.BOMBS) >= 40


def test_a_loader_that_runs_code_is_found(capsys, monkeypatch):
    """The planted fault: torch loads whatever pickle can."""
    right = torch.load
    monkeypatch.setattr(checkpoint.torch, "load", lambda *arguments, **more: right(
        *arguments, **more | {"weights_only": False}))  # fmt: skip
    assert attack.main(["--family", "pickles", "--count", "2", "--seed", "1"]) == 1
    assert "executed" in lines(capsys)[1]


@needs_compiler
def test_a_library_that_is_not_checked_is_found(capsys, monkeypatch):
    monkeypatch.setattr("tslm.fast.cpu.build._is_intact", lambda path, digest_path: path.exists())
    assert attack.main(["--family", "libraries", "--case", "0"]) == 1
    assert "executed" in lines(capsys)[1]
    assert attack_libraries.LIBRARIES[0] is attack_libraries.without_digest


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("attacks")


@pytest.fixture
def place(shared):
    with private_environment(shared):
        yield Place(Case("family", 0, 0, shared))


@pytest.mark.parametrize(("deed", "found"), [
    (lambda place: pickle.loads(b"cposix\nsystem\nX\x04\x00\x00\x00true\x85R."), "os.system"),
    (lambda place: (place.outside / "new").open("w"), "open"),
    (lambda place: (place.outside / "precious.txt").unlink(), "changed outside|os.remove"),
    (lambda place: __import__("planted"), "executed"),
    (lambda place: attack.os.environ.update(EVIL="1"), "environment EVIL"),
    (lambda place: 1 / 0, "exit code 1"),
    (lambda place: print("tslm: one\ntslm: two"), "not one sentence"),
])
def test_the_watch_sees_every_deed(place, monkeypatch, deed, found):
    monkeypatch.setattr(Place, "_call", staticmethod(lambda command, options: deed(place) is deed))
    with pytest.raises(AssertionError, match=found):
        place.attack("fit", [])


@pytest.mark.parametrize("form", sorted(set(attack.FORMS)))
def test_a_payload_is_where_it_was_put(tmp_path, form):
    """What torch would run if it ran anything: the archive is right apart from the payload."""
    payload = shapes(tmp_path / "canary")["REDUCE of a GLOBAL"]
    state = {"a": {"b.c": torch.zeros(3)}, "tslm": 3}
    (tmp_path / "evil.ckpt").write_bytes(planted_checkpoint(state, "a.b.c", payload, form))
    if form != "torchscript":
        with contextlib.suppress(RuntimeError):  # a pickle alone is no file of torch's
            torch.load(tmp_path / "evil.ckpt", weights_only=False)
        assert (tmp_path / "canary").exists()
    else:
        assert any(name.endswith("constants.pkl") for name in zipfile.ZipFile(tmp_path / "evil.ckpt").namelist())


def test_a_value_is_replaced_at_a_path_of_keys():
    state = {"a": {"b.c": 1, "d": 2}}
    assert with_value(state, ["a", "b", "c"], 3) == {"a": {"b.c": 3, "d": 2}}
    assert with_value(state, ["x", "y"], 3) == {"a": {"b.c": 1, "d": 2}, "x": {"y": 3}}
    assert state == {"a": {"b.c": 1, "d": 2}}
    assert "" in PLACES
