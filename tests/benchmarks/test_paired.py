"""`python -m tests.benchmarks.paired` on tiny inputs; both trees are this one."""

import json
import shutil

import pytest

from tests.benchmarks import paired, paired_jobs
from tests.conftest import ROOT

KEYS = ["job", "unit", "a", "b", "ratio", "runs", "a_runs", "b_runs"]


def test_each_quantity_is_one_json_line_with_medians(story_file, tmp_path, capsys):
    options = ["--job", "tokenizer-train", "tokenizer-encode", "--runs", "3", "--megabytes", "0.2", "--vocab-size",
               "300", "--text", str(story_file), "--workdir", str(tmp_path)]
    assert paired.main([str(ROOT), str(ROOT), *options]) == 0
    output, errors = capsys.readouterr()
    lines = [json.loads(line) for line in output.splitlines()]
    assert [(line["job"], line["unit"]) for line in lines] == [
        ("tokenizer-train", "MB/s"), ("tokenizer-encode", "MB/s")]
    for line in lines:
        assert list(line) == KEYS
        assert line["a"] == sorted(line["a_runs"])[1] > 0
        assert line["ratio"] == line["b"] / line["a"]
    turns = [line.rpartition(" ")[2] for line in errors.splitlines() if "tokenizer-encode, run" in line]
    assert turns == ["a", "b"] * 3


@pytest.mark.slow
def test_a_training_is_a_run_of_fit(story_file, tmp_path):
    rates = paired_jobs.quickstart(str(ROOT), str(story_file), str(tmp_path / "cache"), 6, "tiny", 0)
    assert list(rates) == ["tokens/s", "tokens/s after the first report"]
    assert min(rates.values()) > 0


def test_the_package_of_each_tree_is_the_one_that_runs(tmp_path, capsys):
    shutil.copytree(ROOT / "tslm", tmp_path / "tree" / "tslm")
    with (tmp_path / "tree" / "tslm" / "__init__.py").open("a") as file:
        file.write("\nraise RuntimeError('this is the second tree')\n")
    options = ["--job", "generate", "--runs", "1", "--tokens", "2", "--shape", "tiny", "--workdir", str(tmp_path)]
    assert paired.main([str(ROOT), str(tmp_path / "tree"), *options]) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("RuntimeError: this is the second tree")


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--runs", "0"], ["--runs", "at least 1"]), (["--text", "missing.txt"], ["missing.txt", "--text"]),
     (["--megabytes", "0"], ["--megabytes is 0.0"])],
)
def test_a_wrong_option_is_one_sentence(options, words, tmp_path, capsys):
    assert paired.main([str(ROOT), str(ROOT), *options, "--workdir", str(tmp_path / "work")]) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert len(errors.splitlines()) == 1
    assert all(word in errors for word in words)


def test_a_folder_without_the_package_is_refused(tmp_path, capsys):
    assert paired.main([str(ROOT), str(tmp_path)]) == 2
    assert f"{tmp_path} has no tslm/__init__.py" in capsys.readouterr().err
