"""`study fast`: what runs for each replaceable function, and why."""

import importlib

import pytest

from tests.conftest import needs_compiler, needs_open_door
from tslm import fast
from tslm.__main__ import main
from tslm.fast import DisagreementWarning, door
from tslm.fast.table import SUBSTITUTES
from tslm.model import ops
from tslm.studies.fast_forms import autocast, reports


@pytest.fixture(autouse=True)
def _fresh_door():
    door.forget()
    yield
    door.forget()


@needs_compiler
@needs_open_door
def test_every_replaceable_function_is_listed():
    rows = list(reports(seconds=0))
    assert len({(row.function, row.form) for row in rows}) == len(rows)
    assert {row.function for row in rows} == set(SUBSTITUTES)
    assert all(row.reason == "" and row.speedup is None for row in rows)
    assert {row.runs for row in rows if row.function == "tslm.model.ops.rms_norm"} == {"fast.cpu.kernels.rms_norm"}
    assert {row.runs for row in rows if row.function == "tslm.tokenizer.bpe.merge_pairs"} == {
        "fast.cpu.make_merges.merge_pairs", "fast.tokenizer.merging.merge_pairs"}
    assert {row.error for row in rows if row.function.startswith("tslm.tokenizer")} == {0}


@needs_compiler
def test_the_arguments_to_measure_with_select_the_form_of_their_row():
    for name, places in SUBSTITUTES.items():
        importlib.import_module(name.rpartition(".")[0])
        for substitute in filter(None, map(door.load, places)):
            for key in list(substitute.keys()):
                assert substitute.examples is not None
                with autocast(key):
                    assert substitute.supports(*substitute.examples(key).arguments) == key


@needs_compiler
@needs_open_door
def test_an_edited_function_is_listed_as_written_with_the_reason(monkeypatch):
    plain = ops.rms_norm.plain
    monkeypatch.setattr(ops.rms_norm, "plain", lambda *arguments: 3 * plain(*arguments))
    with pytest.warns(DisagreementWarning):
        rows = [row for row in reports(seconds=0) if row.function == "tslm.model.ops.rms_norm"]
    assert {row.runs for row in rows} == {"as written"}
    assert all("on a probe it gives" in row.reason and row.error is None for row in rows)


@needs_compiler
@needs_open_door
def test_the_page_says_what_runs_and_how_much_faster_it_is(capsys):
    assert main(["study", "fast", "--seconds", "0.001", "--function", "choose_tokens"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line for line in lines if line.startswith("generation.sampling.choose_tokens")]
    assert row.endswith("×")


def test_with_the_door_shut_everything_runs_as_written(capsys):
    with fast.shut():
        assert main(["study", "fast", "--seconds", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("The door is shut")
    assert not any("fast.cpu" in line for line in lines)


def test_an_unknown_function_is_refused_with_the_known_names(capsys):
    assert main(["study", "fast", "--function", "rmsnorm"]) == 2
    assert "give a part of one of" in capsys.readouterr().err


def test_a_negative_time_is_refused(capsys):
    assert main(["study", "fast", "--seconds", "-1"]) == 2
    assert "seconds is -1.0, but it must be 0 or more" in capsys.readouterr().err
