"""`python -m tests.campaigns.options` in a short form, and planted faults that it finds."""

import json
import time

import pytest

from tests.campaigns import forked, options
from tests.campaigns.forked import run_command, run_forked
from tests.campaigns.options import good_value, options_of, problem
from tslm.commands import explain


def lines(capsys):
    out, err = capsys.readouterr()
    return [json.loads(line) for line in out.splitlines()], err


def test_a_short_campaign_of_command_lines_finds_nothing(capsys):
    assert options.main(["--count", "1", "--seed", "3"]) == 0
    found, err = lines(capsys)
    assert err == ""
    assert len({line["name"] for line in found}) == len(options.START)
    assert [(line["tried"], line["failed"]) for line in found] == [(1, 0)] * len(found)
    assert sum(options.COUNTS.values()) == 2400


def test_a_fault_in_the_explanation_of_one_type_is_found(capsys, monkeypatch):
    right = explain.describe

    def planted(type_hint):
        if type_hint in (int, float):  # of the options of `generate`: temperature, top_p, seed and so on
            raise KeyError(type_hint)
        return right(type_hint)

    monkeypatch.setattr(explain, "describe", planted)
    assert options.main(["--count", "10", "--seed", "3", "--family", "generate"]) == 1
    (line,), err = lines(capsys)
    assert 0 < line["failed"] < line["tried"] == 10
    assert "KeyError" in err


def test_a_hang_is_killed_with_all_that_it_has_started_and_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(forked.__main__, "_run", lambda *words: time.sleep(60))
    outcome = run_command(["fit"], tmp_path, limit=0.5)
    assert outcome.code == -9
    assert problem(outcome.code, outcome.text, set(), set()).startswith("exit code -9")
    outcome = run_command(["fit"], tmp_path, interrupt_after=0.1)
    assert (outcome.code, outcome.text) == (130, "tslm: interrupted\n")


def test_a_crash_an_exception_and_too_much_memory_are_seen(tmp_path):
    assert run_forked(lambda: forked.os.kill(forked.os.getpid(), 11), tmp_path).code == -11
    assert "ZeroDivisionError" in run_forked(lambda: 1 // 0, tmp_path).text
    assert "MemoryError" in run_forked(lambda: len(bytearray(1 << 30)), tmp_path, memory=1 << 28).text
    assert run_forked(lambda: len(bytearray(b"x" * (1 << 28))) and 3, tmp_path).peak > 1 << 28


def test_the_help_names_the_type_of_every_option():
    known = options_of("fit")
    assert {"--config", "--ckpt_path", "--data.vocab_size", "--trainer.max_steps"} <= set(known)
    assert (known["--trainer.max_steps"], known["--optimizer.betas"]) == ("int | null", "tuple[float, float]")
    rng = options.random.Random(0)
    assert good_value(rng, "--trainer.precision", known["--trainer.precision"]) in known["--trainer.precision"]
    assert good_value(rng, "--trainer.inference_mode", "bool") in ("true", "false")
    assert float(good_value(rng, "--optimizer.lr", "float")) > 0
    assert good_value(rng, "--optimizer.betas", "tuple[float, float]").count(",") == 1


@pytest.mark.parametrize(("code", "text", "after", "found"), [
    (0, "fine", {"a", "t/vocab.json"}, None),
    (130, "tslm: interrupted", {"a"}, "exit code 130"),
    (2, "tslm: lr is -1", {"a"}, None),
    (1, "", {"a"}, "exit code 1"),
    (-9, "", {"a"}, "exit code -9"),
    (0, "Traceback (most recent call last)", {"a"}, "exit code 0"),
    (2, "", {"a"}, "not one sentence"),
    (2, "tslm: a\ntslm: b", {"a"}, "not one sentence"),
    (2, "tslm: lr is -1", {"a", "runs/last.ckpt"}, "files are left"),
    (0, "fine", {"a", "ids.tmp"}, "files are left"),
    (0, "Stopped at step 1 of 3. No checkpoint was saved.", {"a"}, "a training without a checkpoint"),
])
def test_an_outcome_is_judged(code, text, after, found):
    result = problem(code, text, {"a"}, after)
    assert result is None if found is None else result.startswith(found)
    assert problem(130, "tslm: interrupted", {"a"}, {"a"}, interrupted=True) is None
