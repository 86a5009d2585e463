"""Parsers that answer a mistake with one sentence instead of the usage of every option.

In comes what jsonargparse has to say, which may be a page of type alternatives; out goes what was written, what is
allowed, and the nearest right name. `Parser` is for the small commands, `OneSentenceErrors` for any other parser.
"""

from __future__ import annotations

import argparse
import difflib
import enum
import itertools
import re
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Union

from jsonargparse import ArgumentParser, Namespace

if TYPE_CHECKING:
    _Base = ArgumentParser
else:
    _Base = object


class OneSentenceErrors(_Base):
    """What to put before a jsonargparse parser, or a subclass of one, in a list of base classes.

        class CommandParser(OneSentenceErrors, LightningArgumentParser): ...

    A mistake ends the process with exit code 2 and one line on the standard error, such as

        tslm: unknown option --optimizer.lrr: did you mean --optimizer.lr?

    Options cannot be abbreviated: what `--trainer.max` stands for should not depend on which options exist.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401  (passed on as they are)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def parse_args(self, *args: Any, **kwargs: Any) -> Namespace:  # type: ignore[override]  # noqa: ANN401
        """Parse, and also notice two mistakes in a configuration file that jsonargparse lets through."""
        try:
            config = super().parse_args(*args, **kwargs)
        except UnicodeDecodeError as error:
            byte = f"byte {error.object[error.start]:#04x} at offset {error.start}"
            self.error(f"{_config_file(self)} is not UTF-8 text: {byte}")
        options = dict(_actions_by_key(self))
        groups = {key.rpartition(".")[0] for key in options} - {""}
        for key in groups:
            value = config.get(key)
            if not hasattr(options.get(key), "_typehint") and isinstance(value, str | int | float | list):
                self.error(f"{key} is {value!r}, but it is a group of options, each written as `name: value` below it")
        return config

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the sentence for a message of jsonargparse's and end the process."""
        if not self.exit_on_error:  # a parser inside a parser: the outer one will explain
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        print(f"tslm: {explain(parser, message, ex)}", file=sys.stderr)
        self.exit(2)


class Parser(OneSentenceErrors, ArgumentParser):
    """The parser of a small command."""


def explain(parser: ArgumentParser, message: str, cause: BaseException | None = None) -> str:
    """Turn what jsonargparse says about a mistake into one sentence.

    Args:
        parser: the parser that found the mistake, which knows the right names and types.
        message: its message.
        cause: the exception behind the message, which for YAML knows line and column.
    """
    for pattern, sentence in _SENTENCES:
        if match := re.search(pattern, message, re.DOTALL):
            return sentence(parser, match, cause)
    return _shorten(message)


def _unknown_options(parser: ArgumentParser, match: re.Match[str], cause: BaseException | None) -> str:
    words = match[1].split()
    unknown = [word.partition("=")[0] for word in words if word.startswith("-") and not _is_number(word)]
    if not unknown:
        return f"unexpected argument {words[0]!r}: options are written as --name value, lists as --name '[one, two]'"
    names = [string for action in parser._actions for string in action.option_strings if string.startswith("--")]
    return "; ".join(f"unknown option {option}: {_did_you_mean(option, names, parser)}" for option in unknown)


def _unknown_key(parser: ArgumentParser, match: re.Match[str], cause: BaseException | None) -> str:
    key = match[1]
    names = [name for name, _ in _actions_by_key(parser)]
    return f"unknown key {key!r} in {_config_file(parser)}: {_did_you_mean(key, names, parser)}"


def _unknown_choice(parser: ArgumentParser, match: re.Match[str], cause: BaseException | None) -> str:
    name, value, choices = match[1], match[2], re.findall(r"[^\s',]+", match[3])
    name = "command" if name == "subcommand" else name
    nearest = difflib.get_close_matches(value, choices, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"choose one of {', '.join(choices)}"
    return f"{name} {value!r} is unknown: {hint}"


def _missing_command(parser: ArgumentParser, match: re.Match[str], cause: BaseException | None) -> str:
    return f"a command is missing: choose one of {match[1].replace(',', ', ')}"


def _missing_value(parser: ArgumentParser, match: re.Match[str], cause: BaseException | None) -> str:
    return f"{match[1].split('/')[-1]} needs a value"


def _missing_option(parser: ArgumentParser, match: re.Match[str], cause: BaseException | None) -> str:
    names = [f"--{name.strip().lstrip('-')}" for name in match[1].split(",")]
    return f"{' and '.join(names)} must be given: `{_command(parser)} --help` says what for"


def _linked(parser: ArgumentParser, match: re.Match[str], cause: BaseException | None) -> str:
    return f"--{match[1]} cannot be set by itself, because it follows from --{match[2]}: set that one"


def _missing_config(parser: ArgumentParser, match: re.Match[str], cause: BaseException | None) -> str:
    path = Path(match[1])
    neighbours = [each.name for each in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    nearest = difflib.get_close_matches(path.name, neighbours, n=1, cutoff=0.75)
    hint = f"did you mean {_relative(path.with_name(nearest[0]))}?" if nearest else "give the path of a YAML file"
    return f"configuration file {_relative(path)} does not exist: {hint}"


def _config_is_no_file(parser: ArgumentParser, match: re.Match[str], cause: BaseException | None) -> str:
    return f"configuration {_relative(Path(match[1]))} is not a file: give the path of a YAML file"


def _config_unreadable(parser: ArgumentParser, match: re.Match[str], cause: BaseException | None) -> str:
    problem = cause.__cause__ if cause is not None else None
    mark = getattr(problem, "problem_mark", None)
    where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
    what = getattr(problem, "problem", None) or _shorten(match[1])
    return f"{_config_file(parser)} is not valid YAML{where}: {what}"


def _config_without_options(parser: ArgumentParser, match: re.Match[str], cause: BaseException | None) -> str:
    found = f"holds {_shorten(match[1], 60)!r}" if match[1].strip() else "is empty"
    return f"{_config_file(parser)} {found}, but a configuration is a list of options, each written as `name: value`"


def _group_as_value(parser: ArgumentParser, match: re.Match[str], cause: BaseException | None) -> str:
    return (
        f"--{match[1]} is {match[2]!r}, but it takes a YAML file with a group of options; a single option of the group "
        f"is written as --{match[1]}.NAME, see `{_command(parser)} --help`"
    )


def _wrong_value(parser: ArgumentParser, match: re.Match[str], cause: BaseException | None) -> str:
    key, details = match[1], match[2]
    type_hint = getattr(dict(_actions_by_key(parser)).get(key), "_typehint", None)
    for inner in re.findall(r'Parser key "([^"]*)"', details):  # an option of a class that is itself an option
        key, type_hint = f"{key}.{inner}", None
    name = f"--{key}" if any(word.partition("=")[0] == f"--{key}" for word in _words(parser)) else key
    if inner := re.search(r"NestedArg\(key='([^']*)'|Option '([^']+)' is not accepted", details):
        return f"unknown option --{key}.{inner[1] or inner[2]}: {key} has none of this name"
    value = re.search(r"(?:Got|Given) value: (.*?)(?:\n\s+- |$)", details, re.DOTALL)
    if value is None:
        return f"{name} cannot be used as it is: {_shorten(details)}"
    expected = re.search(r"Expected an? (?:<class ')?(.*?)(?:'>)?\. Got value", details)
    allowed = describe(type_hint) if type_hint else f"a {expected[1]}" if expected else "something else"
    return f"{name} is {_shorten(value[1], 80)!r}, but it must be {allowed}"


_SENTENCES = [
    (r"^unrecognized arguments: (.*)", _unknown_options),
    (r"^Subcommand '[^']*' does not accept option '([^']*)'", _unknown_key),
    (r"^Option '([^']*)' is not accepted", _unknown_key),
    (r"^argument ([^:]*): invalid choice: '?([^'(]*?)'? \(choose from (.*)\)", _unknown_choice),
    (r'^expected "subcommand" to be one of \{([^}]*)\}', _missing_command),
    (r"^argument ([^:]*): expected .*argument", _missing_value),
    (r"^the following arguments are required: (.*)", _missing_option),
    (r'Key "([^"]*)" is required', _missing_option),
    (r'^Linked "([^"]*)" must be given via "([^"]*)"', _linked),
    (r"File does not exist: '?([^'\n]*)", _missing_config),
    (r"Path is not a file: '?([^'\n]*)", _config_is_no_file),
    (r"^Problems parsing config: (.*)", _config_unreadable),
    (r"^Unexpected config: (.*)", _config_without_options),
    (r"Parser key \"([^\"]*)\":\s*Unable to load config '([^']*)'", _group_as_value),
    (r'^Parser key "([^"]*)":(.*)', _wrong_value),
]


_WORDS = {
    bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path", type(None): "null"
}


def describe(type_hint: object) -> str:
    """Say in words which values a type has: `Literal["a", "b"] | None` is "one of a, b or null"."""
    choices, others = [], []
    for alternative in _alternatives(type_hint):
        kind, arguments = typing.get_origin(alternative) or alternative, typing.get_args(alternative)
        if kind is Literal:
            choices += [str(value) for value in arguments]
        elif kind in _WORDS:
            others.append(_WORDS[kind])
        elif kind is tuple and ... not in arguments:
            others.append(f"a list of {len(arguments)} values, written as '[one, two]'")
        elif isinstance(kind, type) and issubclass(kind, enum.Enum):
            choices += kind.__members__
        elif isinstance(kind, type) and issubclass(kind, Mapping):
            others.append("a mapping, written as '{name: value}'")
        elif isinstance(kind, type) and issubclass(kind, Iterable):
            others.append("a list, written as '[one, two]'")
        else:
            others.append(f"a {getattr(kind, '__name__', kind)}")
    if choices:
        others.insert(0, f"one of {', '.join(dict.fromkeys(choices))}")
    return " or ".join(dict.fromkeys(others))


def _alternatives(type_hint: object) -> list[Any]:
    if typing.get_origin(type_hint) in (Union, types.UnionType):
        return [each for argument in typing.get_args(type_hint) for each in _alternatives(argument)]
    return [type_hint]


def _did_you_mean(wrong: str, names: list[str], parser: ArgumentParser) -> str:
    """Name the nearest right name: first one that only lacks its group (--lr), then by spelling."""
    leaf = wrong.lstrip("-").rpartition(".")[2].replace("-", "_")
    by_leaf = [name for name in names if name.lstrip("-").rpartition(".")[2] == leaf]
    by_spelling = difflib.get_close_matches(wrong.replace("-", "_"), [name.replace("-", "_") for name in names], n=1)
    nearest = difflib.get_close_matches(wrong, by_leaf, n=1, cutoff=0) or [
        name for name in names if name.replace("-", "_") in by_spelling
    ]
    return f"did you mean {nearest[0]}?" if nearest else f"`{_command(parser)} --help` lists the right ones"


def _actions_by_key(parser: ArgumentParser) -> Iterator[tuple[str, argparse.Action]]:
    """Yield the key of every option of a parser and of its subcommands, as YAML would write it."""
    for action in parser._actions:
        yield action.dest, action
        if isinstance(action, argparse._SubParsersAction):
            for name, subparser in action.choices.items():
                yield name, action
                yield from ((f"{name}.{key}", inner) for key, inner in _actions_by_key(subparser))


def _command(parser: ArgumentParser) -> str:
    return parser.prog.replace(" [options]", "")


def _words(parser: ArgumentParser) -> list[str]:
    """Return the words of the command line; a subcommand's parser only knows them through its parent."""
    return list(getattr(getattr(parser, "parent_parser", parser), "args", None) or [])


def _config_file(parser: ArgumentParser) -> str:
    """Name the configuration file if the command line names just one."""
    words = _words(parser)
    files = [after for before, after in itertools.pairwise(words) if before in ("-c", "--config")]
    files += [word.partition("=")[2] for word in words if word.startswith("--config=")]
    return files[0] if len(files) == 1 and files[0] else "the configuration"


def _relative(path: Path) -> str:
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _is_number(word: str) -> bool:
    return re.fullmatch(r"-\d*\.?\d+(e[+-]?\d+)?", word) is not None


def _shorten(text: str, length: int = 300) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[:length]} …"
