"""The table of budgets, on trainings of seconds."""

import json

from tests.campaigns import quick_start

SMALL = ["--data.toy_stories", "60", "--data.vocab_size", "300", "--model.d_model", "16", "--model.num_layers", "1",
         "--model.num_heads", "2", "--model.d_ff", "16", "--data.batch_size", "1", "--data.context_length", "512"]


def test_two_budgets_are_trained_once_and_shown(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        quick_start, "train", lambda trial, folder: dict.fromkeys(quick_start.KEPT, 0.01 * trial["seed"]))
    words = ["--tokens", "512", "1024", "--seeds", "3", "--log", str(tmp_path / "log")]
    for _ in range(2):
        assert quick_start.main(words) == 0
    assert len((tmp_path / "log").read_text().splitlines()) == 6
    assert "| 512 | 3 | 1.00 ± 0.58% |" in capsys.readouterr().err


def test_a_training_gives_the_figures_of_its_summary(tmp_path):
    log = tmp_path / "log"
    assert quick_start.main(["--tokens", "512", "--seeds", "1", "--log", str(log), "--options", *SMALL]) == 0
    (line,) = map(json.loads, log.read_text().splitlines())
    assert line["steps"] == 1
    assert line["floor_gap"] > 1  # hardly trained


def test_mistakes(tmp_path, capsys):
    assert quick_start.main(["--seeds", "0", "--log", str(tmp_path / "log")]) == 2
    assert quick_start.main(["--tokens", "1", "--log", str(tmp_path / "log"), "--options", "--model.d_model", "0"]) == 2
    assert "model.d_model" in capsys.readouterr().err
