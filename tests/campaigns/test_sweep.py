"""`python -m tests.campaigns.sweep` with a tiny model and a few steps."""

import json

import pytest

from tests.campaigns import sweep
from tests.campaigns.sweep import DEFAULTS, combinations, read_log, run_missing, table

VALUES = {name: [value] for name, value in vars(DEFAULTS).items()}


def test_settings_change_one_at_a_time_or_in_a_grid():
    values = VALUES | {"lr": [1e-3, 1e-2], "weight_decay": [0.0, 0.1]}
    settings = combinations(values, grid=False)
    assert [(setting.lr, setting.weight_decay) for setting in settings] == [(1e-3, 0.0), (1e-2, 0.0), (1e-3, 0.1)]
    assert len(combinations(values, grid=True)) == 4
    assert len(combinations(values | {"beta1": [0.9, 0.9]}, grid=False)) == 3


def test_a_sweep_is_logged_and_can_be_extended(story_file, tmp_path, capsys):
    log = tmp_path / "logs" / "sweep.jsonl"
    arguments = ["--text", str(story_file), "--shape", "tiny", "--tokens", "640", "--seeds", "2", "--batch-size", "4",
                 "--log", str(log), "--lr", "1e-2"]
    assert sweep.main(arguments) == 0
    lines = read_log(log)
    assert [line["seed"] for line in lines] == [0, 1]
    for line in lines:
        assert 4 < line["valid"] < 7
        assert len(line["train"]) == 10
        assert (line["lr"], line["batch_size"], line["tokens"], line["precision"]) == (1e-2, 4, 640, "bf16")
    assert sweep.main([*arguments, "1e-4", "--final-lr", "0", "0.5"]) == 0
    assert read_log(log)[:2] == lines
    assert len(read_log(log)) == 6
    output, errors = capsys.readouterr()
    assert [json.loads(line) for line in output.splitlines()] == read_log(log)
    rows = errors.splitlines()[-4:]
    assert rows[0].split() == ["setting", "valid", "loss", "difference", "seeds"]
    assert rows[1].startswith("base: lr=0.01 ")
    assert rows[2].startswith("lr=0.0001 ")
    assert "+" in rows[2]  # a small rate learns less
    assert "±" in rows[2]
    assert rows[3].startswith("final_lr=0.5 ")


def test_the_same_training_gives_the_same_loss(story_file, tmp_path):
    logs = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    for log in logs:
        sweep.main(["--text", str(story_file), "--shape", "tiny", "--tokens", "200", "--seeds", "1", "--batch-size",
                    "4", "--log", str(log)])
    first, second = (read_log(log)[0] for log in logs)
    assert (first["valid"], first["train"]) == (second["valid"], second["train"])


def test_an_incomplete_line_of_the_log_is_trained_again(tmp_path):
    log = tmp_path / "log"
    log.write_text('{"seed": 0, "valid": 1.0}\n{"seed": 1, "va')
    run_missing([{"seed": 0}, {"seed": 1}], log, lambda trial: {"valid": 2.0})
    assert [json.loads(line) for line in log.read_text().splitlines()] == [
        {"seed": 0, "valid": 1.0}, {"seed": 1, "valid": 2.0},
    ]


def test_differences_are_computed_seed_by_seed():
    settings = combinations(VALUES | {"lr": [1.0, 2.0, 3.0]}, grid=False)
    base, other, diverging = ((*vars(setting).values(),) for setting in settings)
    losses = {(*base, 0): 3.0, (*base, 1): 5.0, (*other, 0): 2.5, (*other, 1): 4.7, (*other, 2): 9.0,
              (*diverging, 0): None}  # fmt: skip
    rows = [line.split() for line in table(settings, range(3), losses).splitlines()]
    assert rows[2] == ["lr=2", "5.4000", "-0.4000", "±", "0.1000", "3"]
    assert rows[3] == ["lr=3", "1,", "1", "diverged"]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(["--seeds", "0"], "--seeds"), (["--text", "missing.txt"], "missing.txt"), (["--lr", "-1"], "lr is -1")],
)
def test_a_wrong_option_is_one_sentence(arguments, word, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert sweep.main(["--shape", "tiny", "--tokens", "64", *arguments]) == 2
    errors = capsys.readouterr().err
    assert len(errors.splitlines()) == 1
    assert word in errors


def test_a_log_of_something_else_is_refused(tmp_path):
    log = tmp_path / "log"
    log.write_text("hello\n")
    with pytest.raises(ValueError, match="line 1 is not JSON"):
        read_log(log)
