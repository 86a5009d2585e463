"""`python -m tests.benchmarks.tokenizer` on a megabyte of text."""

import json

import pytest

from tests.benchmarks import tokenizer
from tests.benchmarks.scripts import SCRIPTS, draw_text
from tests.benchmarks.tokenizer_figures import plans

KEYS = ["name", "ours", "peer", "peer_name", "ratio", "target", "holds", "runs"]
# Figures whose peers the [test] extra installs, without the text of all installed packages.
FIGURES = [plan.name for plan in plans(10**6)
           if plan.peer in (None, "tiktoken", "tokenizers") and not plan.name.startswith(("mixed", "scripts"))]


def compare(value, relation, limit):
    return value <= limit if relation == "<=" else value >= limit


@pytest.mark.slow
def test_every_figure_is_one_json_line(tmp_path, capsys):
    assert len(FIGURES) == 9
    assert tokenizer.main(["--size", "1", "--runs", "1", "--workdir", str(tmp_path), "--only", *FIGURES]) == 0
    output, errors = capsys.readouterr()
    figures = [json.loads(line) for line in output.splitlines()]
    assert [figure["name"] for figure in figures] == FIGURES
    for figure in figures:
        assert list(figure) == KEYS
        assert figure["ours"] > 0
        assert figure["runs"] >= 1
        if figure["peer_name"] is None:
            assert figure["peer"] is figure["ratio"] is None
        else:
            assert figure["ratio"] == figure["ours"] / figure["peer"] > 0
        quantity, relation, limit, *unit = figure["target"].split()
        assert unit == [] if quantity == "ratio" else len(unit) == 1
        assert figure["holds"] is compare(figure[quantity], relation, float(limit))
        assert figure["name"] in errors
    assert [path.name for path in tmp_path.iterdir()] == [path.name for path in tmp_path.glob("drawn-*-1000000-0.txt")]


def test_figures_can_be_chosen_by_the_beginning_of_their_names(tmp_path, capsys):
    arguments = ["--size", "1", "--runs", "1", "--workdir", str(tmp_path), "--only", "small", "merge", "--markdown"]
    assert tokenizer.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["name"] for line in lines[:2]] == ["small_train", "merge_table"]
    assert lines[2].startswith("| figure |")


@pytest.mark.slow
def test_scripts_without_spaces_have_figures(tmp_path, capsys):
    arguments = ["--size", "0.3", "--runs", "1", "--workdir", str(tmp_path), "--only", "scripts_thai"]
    assert tokenizer.main(arguments) == 0
    figures = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(figure["name"], figure["peer_name"]) for figure in figures] == [
        ("scripts_thai_train", "tokenizers"), ("scripts_thai_encode", "tiktoken"),
    ]
    peers = {plan.name: plan.peer for plan in plans(10**6) if plan.name.startswith("scripts")}
    assert [*peers] == [f"scripts_{name}_{job}" for name in SCRIPTS for job in ("train", "encode")]
    assert peers["scripts_dna_train"] is peers["scripts_dna_encode"] is None
    for name in SCRIPTS:
        text = draw_text(name, 3000, 1)
        assert text == draw_text(name, 3000, 1) != draw_text(name, 3000, 2)
        assert 2990 < len(text.encode()) <= 3000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "speed"], ["no figure is called speed", "train_1GB_vs_gigatoken"]),
        (["--runs", "0"], ["--runs", "above 0"]),
        (["--only", "small_train", "--train-text", "missing.txt"], ["missing.txt"]),
        (["--only", "merge_table", "--counts", "list.json"], ["list.json", "pre-token"]),
    ],
)
def test_a_wrong_option_is_one_sentence(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.json").write_text("[1]")
    assert tokenizer.main([*arguments, "--workdir", str(tmp_path / "work")]) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert "Traceback" not in errors
    assert all(word in errors.splitlines()[-1] for word in words)


def test_a_missing_program_is_named_before_anything_is_measured(tmp_path, capsys):
    arguments = ["--only", "train", "--workdir", str(tmp_path / "work")]
    assert tokenizer.main(arguments, installed=lambda package: False) == 2
    errors = capsys.readouterr().err
    assert all(word in errors for word in ("gigatoken", "rustbpe", "tokenizers", "pip install -e '.[bench]'"))
    assert len(errors.splitlines()) == 1
    assert not (tmp_path / "work").exists()
