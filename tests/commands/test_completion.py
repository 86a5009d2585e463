"""The script of `tslm --completion`, as bash runs it."""

import subprocess

import pytest

from tests.test_configs import fit_parser  # noqa: F401 (a fixture)
from tslm.__main__ import COMMANDS, main
from tslm.commands.completion import options_of
from tslm.commands.study import STUDIES


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """Return what bash offers for the last of some words."""
    path = tmp_path_factory.mktemp("completion") / "script"
    with pytest.MonkeyPatch.context() as patch, path.open("w") as file:
        patch.setattr("sys.stdout", file)
        assert main(["--completion"]) == 0

    def run(*words):
        source = f"source {path}; COMP_WORDS=({' '.join(map(repr, words))}); COMP_CWORD={len(words) - 1}; _tslm"
        done = subprocess.run(["bash", "-c", f'{source}; echo "${{COMPREPLY[@]}}"'], capture_output=True, text=True,
                              check=True)  # fmt: skip
        assert done.stderr == ""
        return done.stdout.split()

    return run


def test_commands_and_studies_are_completed(complete):
    assert complete("tslm", "") == list(COMMANDS)
    assert complete("tslm", "t") == ["test", "train-tokenizer", "tokenize"]
    assert complete("tslm", "study", "") == [*STUDIES, "--help"]
    assert complete("tslm", "stud") == ["study"]


def test_options_of_each_command_are_completed(complete, fit_parser):  # noqa: F811
    assert complete("tslm", "generate", "--max") == ["--max_new_tokens"]
    assert complete("tslm", "generate", "--prompt", "x", "--to") == ["--top_p", "--top_k"]
    assert complete("tslm", "score", "--ht") == ["--html"]
    assert complete("tslm", "study", "unicode", "--te") == ["--text"]
    assert complete("tslm", "study", "tokenizer", "--word", "a", "--se") == ["--seed"]
    assert complete("tslm", "fit", "--optimizer.weight") == ["--optimizer.weight_decay"]
    assert {"--config", "--data.train_files", "--ckpt_path", "--name"} <= set(complete("tslm", "fit", "--"))
    for command in COMMANDS:
        assert "--help" in complete("tslm", command, "--")
    unknown = set(options_of(["fit"])) - set(fit_parser._option_string_actions)
    assert unknown == set()


def test_a_file_is_offered_where_an_option_takes_a_value(complete):
    assert complete("tslm", "generate", "--ckpt_path", "light") == []  # so `-o default` completes file names
