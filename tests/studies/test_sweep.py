"""`study lr-range`, `study batch-size` and `study ablation` with a tiny model and few steps."""

import json

import pytest

from tests.test_cli import TEXT
from tslm.__main__ import main
from tslm.commands.options import split_words
from tslm.studies import fit_runs
from tslm.studies.fit_runs import free_prefix, parse_fit
from tslm.studies.statistics import Interval
from tslm.studies.sweep import VARIANTS


@pytest.fixture
def fit(tiny):
    """The options of `fit` for the tiny model."""
    return ["--config", TEXT, *(option for option in tiny if "max_steps" not in option)]


def summary(project, name):
    return json.loads((project / "lightning_logs" / name / "summary.json").read_text())


def test_a_sweep_of_learning_rates_ends_where_training_diverges(project, fit, capsys):
    assert main(["study", "lr-range", *fit, "--steps", "3", "--lr", "[0.01, 100000.0]"]) == 0
    out, err = capsys.readouterr()
    rows = [line.split() for line in out.splitlines()]
    good = summary(project, "lr-range-0.01-seed0")
    assert ["0.01", f"{good['valid_loss']:.4f}", "lr-range-0.01-seed*"] in rows
    assert ["100000", "diverged", "lr-range-100000-seed*"] in rows
    assert "The lowest loss is at lr 0.01." in out
    assert good["steps"] == 3
    assert "run 2 of 2: lr 100000, seed 0" in err
    assert (project / "lr-range.png").read_bytes().startswith(b"\x89PNG")
    assert (project / "lightning_logs" / "lr-range-0.01-seed0" / "config.yaml").is_file()
    assert free_prefix("lr-range", ".") == "lr-range2"


def test_batches_of_all_sizes_train_on_the_same_tokens(project, fit, capsys):
    assert main(["study", "batch-size", *fit, "--steps", "2", "--max_batch_size", "5"]) == 0
    out = capsys.readouterr().out
    for size in (1, 2, 4):
        found = summary(project, f"batch-size-{size}")
        assert (found["steps"], found["tokens_seen"]) == (8 // size, 8 * 32)
        assert f"{found['valid_loss']:.4f}" in out
        assert f" {found['tokens_per_second']:,.0f} " in out
    assert [line.split()[0] for line in out.splitlines() if line.endswith(("-1", "-2", "-4"))] == ["1", "2", "4"]


def test_an_ablation_compares_seed_by_seed(project, fit, capsys):
    words = ["--steps", "2", "--seeds", "2", "--only", "[tied embeddings, SiLU feed-forward]"]
    assert main(["study", "ablation", *fit, *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    base, tied = ([summary(project, f"ablation-{name}-seed{seed}")["valid_loss"] for seed in range(2)]
                  for name in ("base", "tied-embeddings"))
    differences = [value - other for value, other in zip(tied, base, strict=True)]
    # Two differences a and b: mean (a + b) / 2, half width t · |a - b| / 2 with t = 12.7062 for one degree of freedom.
    half = 12.7062 * abs(differences[0] - differences[1]) / 2
    (row,) = [line for line in lines if line.startswith("tied embeddings")]
    assert str(Interval(sum(differences) / 2, half)) in row
    config = (project / "lightning_logs" / "ablation-SiLU-feed-forward-seed1" / "config.yaml").read_text()
    assert "ffn: silu" in config
    assert "d_ff: 64" in config


def test_every_variant_is_a_setting_of_fit(fit):
    base = parse_fit(fit)
    for words in VARIANTS.values():
        key, _, value = words[0].removeprefix("--").partition("=")
        assert str(parse_fit([*fit, *words])[key]).lower() == value.lower() != str(base[key]).lower()


def test_ctrl_c_ends_a_study_after_its_run(project, fit, monkeypatch, capsys):
    def interrupted(words):
        raise SystemExit(130)

    monkeypatch.setattr(fit_runs, "cli", interrupted)
    assert main(["study", "ablation", *fit, "--steps", "2", "--seeds", "1"]) == 130
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(("words", "sentence"), [
    (["lr-range", "--steps", "0"], "steps is 0, but it must be 1 or more"),
    (["lr-range", "--lr", "[0]"], "lr is [0"),
    (["lr-range", "--lr", "[0.01, 0.1, 0.01]"], "lr is [0.01, 0.1, 0.01], but a sweep needs different learning rates"),
    (["lr-range", "--lr", "[0.01, 1e+30]"], "optimizer.lr is 1e+30, but it must be between 0 and 1e+18"),
    (["lr-range", "--optimizer.lr", "1"], "--optimizer.lr is decided by the study"),
    (["batch-size", "--data.micro_batch_size", "1"], "--data.micro_batch_size is decided by the study"),
    (["ablation", "--trainer.max_tokens", "1k"], "--trainer.max_tokens is decided by the study"),
    (["ablation", "--trainer.max_minutes", "1"], "--trainer.max_minutes is decided by the study"),
    (["lr-range", "--plot", "."], "the output . is a folder"),
    (["lr-range", "--plot", "a.xyz"], "the plot a.xyz does not end in .png"),
    (["batch-size", "--plot", "nowhere/a.png"], "the folder of the plot nowhere/a.png does not exist"),
    (["ablation", "--only", "[]"], "only is []"),
    (["batch-size", "--max_batch_size", "0"], "max_batch_size is 0"),
    (["ablation", "--seeds", "0"], "seeds is 0"),
    (["ablation", "--only", "[rope]"], "only names 'rope', but the variants are no normalisation, "),
    (["ablation", "--data.vocab", "9"], "unknown option --data.vocab: did you mean --data.vocab_size?"),
    (["ablation", "--stepps", "9"], "unknown option --stepps: did you mean --steps?"),
])
def test_mistakes_in_a_sweep_are_sentences_before_the_first_run(words, sentence, project, capsys):
    assert main(["study", *words]) == 2
    assert capsys.readouterr().err.startswith(f"tslm: {sentence}")
    assert not (project / "lightning_logs").exists()


@pytest.mark.parametrize("option", ["--trainer.fast_dev_run=true", "--trainer.limit_val_batches=0"])
def test_a_run_without_a_validation_loss_has_not_diverged(option, project, fit, capsys):
    assert main(["study", "ablation", *fit, "--steps", "1", "--seeds", "1", "--only", "[post-norm]", option]) == 2
    assert "the run ablation-base-seed0 has no validation loss" in capsys.readouterr().err


def test_one_seed_has_a_difference_without_an_interval(project, fit, capsys):
    assert main(["study", "ablation", *fit, "--steps", "1", "--seeds", "1", "--only", "[no RoPE]"]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("no RoPE")]
    base, other = (summary(project, f"ablation-{name}-seed0")["valid_loss"] for name in ("base", "no-RoPE"))
    assert row.split("  ")[-2:] == [f"{other - base:.4f}", "one seed shows no interval"]


def test_words_are_divided_by_their_dots():
    assert split_words(["--steps", "9", "--data.corpus", "toy", "--seeds=2", "-c", "a.yaml"]) == (
        ["--steps", "9", "--seeds=2"], ["--data.corpus", "toy", "-c", "a.yaml"])
