from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import pytest
from jsonargparse import ActionConfigFile

from tslm.commands.arguments import Parser
from tslm.commands.explain import describe
from tslm.errors import UserError


class Optimizer:
    def __init__(self, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.95)) -> None: ...


class Rule:
    def __init__(self, strength: float = 1.0) -> None: ...


class Data:
    def __init__(
        self,
        train_files: list[str] | None = None,
        vocab_size: int = 1000,
        source: Literal["toy", "text"] = "toy",
        precision: Literal[16, 32] | Literal["16", "bf16"] | None = None,
        shuffle: bool = True,
        rule: Rule | str = "none",
        weights: list[float] = [],  # noqa: B006
    ) -> None: ...


def make_parser():
    """Build what LightningCLI builds: a parser per subcommand, groups of options from classes, a configuration file."""
    def subparser():
        parser = Parser()
        parser.add_argument("-c", "--config", action=ActionConfigFile)
        parser.add_class_arguments(Optimizer, "optimizer")
        parser.add_class_arguments(Data, "data")
        parser.add_argument("--seed", type=int, default=0)
        parser.add_argument("--size", type=int)
        parser.add_argument("--flag", action="store_true")
        parser.link_arguments("data.vocab_size", "size")
        return parser

    parser = Parser(prog="python -m tslm")
    parser.add_argument("-c", "--config", action=ActionConfigFile)
    commands = parser.add_subcommands()
    commands.add_subcommand("fit", subparser())
    commands.add_subcommand("validate", subparser())
    return parser


def sentence(*words):
    """Return the message of the UserError that a command line raises."""
    with pytest.raises(UserError) as error:
        make_parser().parse_args(words)
    assert "\n" not in str(error.value)
    return str(error.value)


COMMAND_LINE = [
    (["--optimizer.lrr", "3"], "unknown option --optimizer.lrr: did you mean --optimizer.lr?"),
    (["--optimizer.lrr=3"], "unknown option --optimizer.lrr: did you mean --optimizer.lr?"),
    (["--dat.vocab_size", "3"], "unknown option --dat.vocab_size: did you mean --data.vocab_size?"),
    (["--data.vocab-size", "3"], "unknown option --data.vocab-size: did you mean --data.vocab_size?"),
    (["--vocab_size", "3"], "unknown option --vocab_size: did you mean --data.vocab_size?"),
    (["--lr", "-3"], "unknown option --lr: did you mean --optimizer.lr?"),
    (["--data.vocab", "3"], "unknown option --data.vocab: did you mean --data.vocab_size?"),  # no abbreviations
    (["--xyzzy", "3"], "unknown option --xyzzy: `python -m tslm fit --help` lists the options"),
    (["--data.sourc", "a", "--lrr=3"],
     "unknown option --data.sourc: did you mean --data.source?; unknown option --lrr: "),
    (["--optimizr", "3"], "unknown option --optimizr: did you mean --optimizer.lr?"),  # not the group
    (["--optimizer.lr", "-x"], "--optimizer.lr needs a value; one that begins with a hyphen follows an equals sign: "
                               "--optimizer.lr=-x"),
    (["--optimizer.lr", "--seed", "1"], "--optimizer.lr needs a value"),
    (["--data.weights", "[nan]"], "--data.weights is '[nan]', but it must be a list of numbers, written as '[1, 2.5]'"),
    (["--flag=true"], "--flag takes no value: leave '=true' out"),
    (["stray"], "unrecognized arguments: stray"),
    (["--optimizer.lr"], "--optimizer.lr needs a value"),
    (["--optimizer.lr", "abc"], "--optimizer.lr is 'abc', but it must be a number"),
    (["--data.vocab_size=3.5"], "--data.vocab_size is '3.5', but it must be a whole number"),
    (["--data.source", "wiki"], "--data.source is 'wiki', but it must be one of toy, text"),
    (["--data.precision", "17"], "--data.precision is '17', but it must be one of 16, 32, bf16 or null"),
    (["--data.shuffle", "maybe"], "--data.shuffle is 'maybe', but it must be true or false"),
    (["--data.train_files", "a.txt"],
     "--data.train_files is 'a.txt', but it must be a list, written as '[one, two]' or null"),
    (["--data.train_files.x", "1"],
     "unknown option --data.train_files.x: give --data.train_files, which takes a list, written as '[one, two]' or"),
    (["--optimizer.betas", "[1, 2, 3]"], "--optimizer.betas is '[1, 2, 3]', but it must be a list of 2 values"),
    (["--optimizer", "3"], "--optimizer is '3', but it is a group of options: set each of them by its own name, or "
                           "name a YAML file that has them"),
    (["--data.weights", "[" * 3000], "--data.weights is '[[[["),
    (["--data.weights", "{a: " * 3000], "--data.weights is '{a: {a: "),
    (["--size", "3"], 'Linked "size" must be given via "data.vocab_size".'),
    (["--config"], "--config needs a value"),
    (["--config", "/"], "configuration / is not a file: give the path of a YAML file"),
]


@pytest.mark.parametrize(("words", "expected"), COMMAND_LINE)
def test_arguments_explain_a_mistake_on_the_command_line(words, expected):
    assert sentence("fit", *words).startswith(expected)


CONFIGURATIONS = [
    ("optimizer:\n  lrr: 3\n", "unknown key 'optimizer.lrr' in a.yaml: did you mean optimizer.lr?"),
    ("optmizer:\n  lr: 3\n", "unknown key 'optmizer.lr' in a.yaml: did you mean optimizer.lr?"),
    ("xyzzy: 3\ndata:\n  vocab_size: 3\n", "unknown key 'xyzzy' in a.yaml: `python -m tslm fit --help` lists"),
    ("optimizer:\n  lr: abc\n", "optimizer.lr in a.yaml is 'abc', but it must be a number"),
    ("optimizer: 7\n", "optimizer in a.yaml is '7', but it is a group of options: set each of them by its own name"),
    ("data:\n  rule:\n    class_path: tests.commands.test_arguments.Rule\n    init_args:\n      strength: x\n",
     "data.rule cannot be used: Problem with given class_path 'tests.commands.test_arguments.Rule': "
     "Parser key \"strength\": Expected a <class 'float'>. Got value: x"),
    ("data:\n  rule:\n    class_path: tests.commands.test_arguments.Rule\n    init_args:\n      strngth: 1\n",
     "data.rule cannot be used: Problem with given class_path 'tests.commands.test_arguments.Rule': "
     "Option 'strngth' is not accepted"),
    ("a: [1,\nb: }", "a.yaml is not valid YAML in line 2, column 4: expected the node content, but found '}'"),
    ("size: 3\n", "size in a.yaml follows from data.vocab_size: set that one instead"),
    ("optimizer: b.yaml\n", "optimizer in a.yaml is 'b.yaml', but it is a group of options"),
    ("- 1\n- 2\n", "a.yaml holds '[1, 2]', but a configuration is a list of options"),
    ("", "a.yaml is empty, but a configuration is a list of options, each written as `name: value`"),
]


@pytest.mark.parametrize(("text", "expected"), CONFIGURATIONS)
def test_arguments_explain_a_mistake_in_a_configuration(text, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text(text)
    assert sentence("fit", "--config", "a.yaml").startswith(expected)


@pytest.mark.parametrize(("words", "text", "expected"), [
    (["--data.vocab_size=2e3"], "data: {vocab_size: 512}", "--data.vocab_size is '2e3', but it must be a whole number"),
    (["--data.vocab_size=512"], "data: {vocab_size: 2e3}", "data.vocab_size in a.yaml is '2e3', but it must be a"),
    (["--data.source=wiki"], "data: {source: toy}", "--data.source is 'wiki', but it must be one of toy, text"),
    (["--data=3"], "data: {source: toy}", "--data is '3', but it is a group of options"),
    (["--data.source=toy", "--data=b.yaml"], "data: {source: toy}", "--data is 'b.yaml', but it is a group of options"),
])
def test_arguments_name_the_wrong_one_of_several_values(words, text, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text(text)
    assert sentence("fit", "--config", "a.yaml", *words).startswith(expected)


def test_arguments_explain_a_configuration_that_is_not_utf8(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_bytes(b"size: \xff\n")
    assert sentence("fit", "--config", "a.yaml") == "a.yaml is not UTF-8 text: byte 0xff at offset 6"


def test_arguments_name_the_nearest_configuration_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("configs").mkdir()
    Path("configs/quickstart.yaml").touch()
    assert sentence("fit", "--config", "configs/quikstart.yaml") == (
        "configuration file configs/quikstart.yaml does not exist: did you mean configs/quickstart.yaml?")
    assert sentence("fit", "--config", "elsewhere/quikstart.yaml") == (
        "configuration file elsewhere/quikstart.yaml does not exist: give the path of a YAML file")


def test_arguments_name_a_missing_option():
    parser = Parser(prog="python -m tslm tokenize")
    parser.add_argument("--input", required=True)
    parser.add_argument("--output", required=True)
    with pytest.raises(UserError, match=r"^--output must be given: see `python -m tslm tokenize --help`$"):
        parser.parse_args(["--input", "a.txt"])


def test_arguments_quote_the_value_that_is_wrong_among_several(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("right.yaml").write_text("optimizer:\n  lr: 1\n")
    Path("wrong.yaml").write_text("optimizer:\n  lr: abc\n")
    files = ["--config", "right.yaml", "--config=wrong.yaml"]
    assert sentence("fit", *files, "--optimizer.lr=2") == "optimizer.lr in wrong.yaml is 'abc', but it must be a number"
    assert sentence("fit", "-c", "right.yaml", "--optimizer.lr=x").startswith("--optimizer.lr is 'x'")


@pytest.mark.parametrize("text", [
    "optimizer:\n  lr: 3\ndata: {source: text, train_files: [a, b]}\n",
    "optimizer: optimizer.yaml\ndata:\n  source: text\n  train_files+: [a, b]\n",
    "optimizer.lr: 3\ndata:\n  <<: {source: text}\n  train_files: [a, b]\n",
    "optimizer:\ndata:\n  source: text\nseed: 1\n",
])
def test_arguments_accept_every_form_of_a_configuration(text, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    (tmp_path / "optimizer.yaml").write_text("lr: 3\n")
    words = ["--optimizer", "{lr: 3}", "--data.train_files", "[a]", "--data.train_files+=b"] if "seed" in text else []
    config = make_parser().parse_args(["fit", "--config", str(tmp_path / "a.yaml"), *words]).fit
    assert config.optimizer.lr == 3.0
    assert config.data.source == "text"
    assert config.data.train_files == ["a", "b"]


def test_arguments_accept_the_parts_of_a_class(tmp_path):
    rule = "tests.commands.test_arguments.Rule"
    (tmp_path / "a.yaml").write_text(f"data:\n  rule:\n    class_path: {rule}\n    init_args: {{strength: 2}}\n")
    for words in (["--config", str(tmp_path / "a.yaml")], ["--data.rule", rule, "--data.rule.strength=2"]):
        assert make_parser().parse_args(["fit", *words]).fit.data.rule.init_args.strength == 2.0


@pytest.mark.parametrize(("type_hint", "words"), [
    (int, "a whole number"),
    (Path | None, "a path or null"),
    (Literal["a", "b"] | None, "one of a, b or null"),
    (bool | Literal["auto"], "one of auto or true or false"),
    (dict[str, int], "a mapping, written as '{name: value}'"),
    (Iterable[str], "a list, written as '[one, two]'"),
    (tuple[int, int], "a list of 2 values, written as '[one, two]'"),
    (Rule | None, None),
])
def test_arguments_describe_types_in_words(type_hint, words):
    assert describe(type_hint) == words
