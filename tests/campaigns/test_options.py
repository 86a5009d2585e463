"""`python -m tests.campaigns.options` in a short form, and a planted fault that it finds."""

import json

import pytest

from tests.campaigns import options
from tests.campaigns.options import problem
from tslm.commands import arguments


def lines(capsys):
    out, err = capsys.readouterr()
    return [json.loads(line) for line in out.splitlines()], err


def test_a_short_campaign_of_command_lines_finds_nothing(capsys):
    assert options.main(["--count", "45", "--seed", "3"]) == 0
    found, err = lines(capsys)
    assert err == ""
    assert len({line["name"] for line in found}) == len(options.START)
    assert [(line["tried"], line["failed"]) for line in found] == [(5, 0)] * len(found)


def test_a_fault_in_the_explanation_of_one_type_is_found(capsys, monkeypatch):
    right = arguments.describe

    def planted(type_hint):
        if type_hint is float:  # of the options of `generate`: temperature and top_p
            raise KeyError(type_hint)
        return right(type_hint)

    monkeypatch.setattr(arguments, "describe", planted)
    assert options.main(["--count", "40", "--seed", "3", "--command", "generate"]) == 1
    (line,), err = lines(capsys)
    assert 0 < line["failed"] < line["tried"] == 40
    assert err.count("KeyError") >= line["failed"]
    monkeypatch.undo()
    assert options.main(["--count", "40", "--seed", "3", "--command", "generate"]) == 0


@pytest.mark.parametrize(("code", "text", "after", "found"), [
    (0, "fine", {"a", "t/vocab.json"}, None),
    (130, "tslm: interrupted", {"a"}, None),
    (2, "tslm: lr is -1", {"a"}, None),
    (1, "", {"a"}, "exit code 1"),
    ("KeyError", "", {"a"}, "exit code KeyError"),
    (0, "Traceback (most recent call last)", {"a"}, "exit code 0"),
    (2, "", {"a"}, "not one sentence"),
    (2, "tslm: a\ntslm: b", {"a"}, "not one sentence"),
    (2, "tslm: lr is -1", {"a", "runs/last.ckpt"}, "files are left"),
    (0, "fine", {"a", "ids.tmp"}, "files are left"),
])
def test_an_outcome_is_judged(code, text, after, found):
    result = problem(code, text, {"a"}, after)
    assert result is None if found is None else result.startswith(found)
