"""Every shipped configuration parses, and every value that it states is the value of an existing option."""

import pytest
import yaml

from tests.conftest import ROOT
from tslm.cli import CommandLine
from tslm.commands.options import leaves
from tslm.commands.parsed import CommandParser

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.fixture(scope="module")
def fit_parser():
    """The parser of the command `fit`; nothing is run."""
    class OnlyParse(CommandLine):
        def parse_arguments(self, parser, args):
            raise StopIteration

    cli = OnlyParse.__new__(OnlyParse)
    with pytest.raises(StopIteration):
        cli.__init__([])
    return cli._subcommand_parsers["fit"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_parses_to_the_values_that_it_states(path, fit_parser):
    assert isinstance(fit_parser, CommandParser)
    config = fit_parser.parse_path(path)
    stated = dict(leaves(yaml.safe_load(path.read_text())))
    assert stated
    for key, value in stated.items():
        parsed = config.as_dict()
        for name in key.split("."):
            parsed = parsed[name]
        assert parsed == (tuple(value) if isinstance(parsed, tuple) else value), key


def test_the_tinystories_configurations_train_the_model_of_the_course(fit_parser):
    for name, tokens in (("tinystories", 327_680_000), ("tinystories-cpu", 40_960_000)):
        config = fit_parser.parse_path(ROOT / "configs" / f"{name}.yaml")
        assert config.trainer.max_tokens == tokens
        assert (config.data.vocab_size, config.data.context_length) == (10_000, 256)
        model = config.model
        assert (model.d_model, model.d_ff, model.num_layers, model.num_heads, model.rope_theta) == (
            512, 1344, 4, 16, 10_000.0)


def test_four_configurations_are_shipped():
    assert {path.stem for path in CONFIGS} == {"quickstart", "text", "tinystories", "tinystories-cpu"}
