"""The first page of `fit --help`, hints for names of other programs, and numbers of tokens."""

import subprocess
import sys

import pytest
import yaml

from tests.conftest import ROOT
from tests.test_cli import TEXT, complaint
from tests.test_configs import fit_parser  # noqa: F401 (a fixture)
from tslm.__main__ import main
from tslm.commands.first_page import OPTIONS, first_page
from tslm.commands.hints import ELSEWHERE
from tslm.commands.options import get_key
from tslm.loops.step import TokenCount
from tslm.training.lightning_features import REFUSED_FLAGS


def test_the_page_names_options_that_exist_with_the_values_of_the_quick_start(fit_parser):  # noqa: F811
    quick = yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text())
    defaults = fit_parser.get_defaults()
    rows = [row for rows in OPTIONS.values() for row in rows]
    assert 20 <= len(rows) <= 26
    for name, _, value, _ in rows:
        key = name.removeprefix("--")
        assert name in fit_parser._option_string_actions
        if value:
            try:
                expected = get_key(quick, key)
            except (KeyError, TypeError):
                expected = get_key(defaults.as_dict(), key)
            assert value == str(expected), name


def test_the_page_is_short_and_needs_nothing_heavy(capsys):
    assert main(["fit", "--help"]) == 0
    page = capsys.readouterr().out
    assert page == first_page() + "\n"
    assert max(map(len, page.splitlines())) <= 110
    assert len(page.splitlines()) < 60
    heavy = "import sys; from tslm.__main__ import main; main(['fit', '--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", heavy], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_help_for_a_word_is_no_page(capsys):
    assert main(["fit", "--help", "lr"]) == 2
    assert "--help lr is no page of help: give --help, or --help all" in complaint(capsys)
    assert main(["fit", "--help", "--optimizer.lr=1"]) == 0


def test_the_rest_has_no_dead_options(capsys):
    with pytest.raises(SystemExit):
        raise SystemExit(main(["fit", "--help", "all"]))
    text = capsys.readouterr().out
    assert "--model.rope_theta" in text
    assert not [flag for flag in REFUSED_FLAGS if f"--trainer.{flag}" in text.split()]


@pytest.mark.parametrize(("option", "hint"), [
    ("--optimizer.learning_rate=1e-3", "give --optimizer.lr"), ("--learning-rate=1e-3", "give --optimizer.lr"),
    ("--epochs=3", "give --trainer.max_tokens, since a training has no epochs"),
    ("--model.dropout=0.1", "the model has no dropout"),
    ("--model.activation=relu", "give --model.ffn swiglu, --model.ffn silu, or a class of your own"),
    ("--n_layer=2", "give --model.num_layers"), ("--block_size=64", "give --data.context_length"),
    ("--seed=1", "give --seed_everything"), ("--beta2=0.95", "give --optimizer.betas '[0.9, 0.95]'"),
    ("--optim=adamw_torch", "give --optimizer.class_path"), ("--train.global_batch_size=8", "give --data.batch_size"),
    ("--gradient_checkpointing=true", "give --model.recompute true"), ("--do_train=true", "fit --help` lists the"),
    ("--lr_decay_iters=9", "give --optimizer.cosine_steps"), ("--save_total_limit=2", "give --checkpoint.keep"),
])
def test_names_of_other_programs_have_hints(option, hint, project, capsys):
    assert main(["fit", option]) == 2
    assert hint in complaint(capsys)


def test_the_hints_name_options_that_exist(fit_parser):  # noqa: F811
    known = fit_parser._option_string_actions
    for name, hint in ELSEWHERE.items():
        assert hint.split()[0].rstrip(",") in known, name
        # `--seed` alone is that of everything; data.seed follows from it.
        assert name == "seed" or not any(option.rpartition(".")[2].lstrip("-") == name for option in known), name


@pytest.mark.parametrize(("text", "number"), [
    ("2e6", 2_000_000), ("2M", 2_000_000), ("1.5k", 1500), ("1B", 10**9), ("2_000", 2000), ("7", 7), (7, 7),
    (2e6, 2_000_000),
    ("-1", -1),
])
def test_a_number_of_tokens_has_several_forms(text, number):
    assert TokenCount(text) == number


@pytest.mark.parametrize("text", ["", "M", "2X", "1.5", "nan", "inf", "1e99", True, None, "2 M 3"])
def test_what_is_no_number_of_tokens_is_an_error(text):
    with pytest.raises(ValueError, match="number of tokens"):
        TokenCount(text)


def test_a_budget_of_tokens_on_the_command_line_and_in_a_file(project, tiny, capsys):
    (project / "budget.yaml").write_text("trainer:\n  max_tokens: 0.3k\n  max_steps: null\n")
    without = [option for option in tiny if "max_steps" not in option]
    for options in (["--trainer.max_tokens=3e2"], ["--config=budget.yaml"]):
        assert main(["fit", "--config", TEXT, *without, *options]) == 0
        assert "3 steps of 128 tokens" in capsys.readouterr().out
    config = yaml.safe_load((project / "lightning_logs" / "version_1" / "config.yaml").read_text())
    assert config["trainer"]["max_tokens"] == 300
    assert main(["fit", "--trainer.max_tokens=2X"]) == 2
    assert "it must be a number of tokens, such as 2000000, 2e6 or 2M or null" in complaint(capsys)
