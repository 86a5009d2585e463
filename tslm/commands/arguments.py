"""Parsers that answer a mistake with one sentence instead of the usage of every option.

jsonargparse finds most mistakes, and `explain` writes the sentence. What it would accept or explain badly is refused
before.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, Namespace

from tslm.commands.explain import config_files, explain, group_as_value, is_group, is_part, nearest
from tslm.commands.options import DuplicateKeyError, leaves, load_yaml, read_yaml, stated_options
from tslm.errors import UserError, as_called

if TYPE_CHECKING:
    _Base = ArgumentParser
else:
    _Base = object


class OneSentenceErrors(_Base):
    """A mixin that makes a jsonargparse parser raise a UserError for every mistake.

    Its place is before the parser in the list of base classes:

        class CommandParser(OneSentenceErrors, LightningArgumentParser): ...

    Options cannot be abbreviated: the meaning of `--trainer.max` must not depend on which options exist.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - passed on as they are
        kwargs.setdefault("allow_abbrev", False)
        if kwargs.get("prog"):
            kwargs["prog"] = as_called(kwargs["prog"])
        super().__init__(*args, **kwargs)

    def parse_args(self, args: Any = None, *rest: Any, **kwargs: Any) -> Namespace:  # type: ignore[override]  # noqa: ANN401
        """Parse a command line and its configuration files.

        Raises:
            UserError: an option, a key or a value is wrong.
        """
        if self._subparsers is None:  # with subcommands, the parser of the chosen one is called for the rest
            for path in config_files(self, args or []):
                _check_keys(self, path)
            for name, value in stated_options(args or []):
                check_value(name, value)
            _check_mappings(args or [])
        config = super().parse_args(args, *rest, **kwargs)
        if self._subparsers is None:
            for name, value in reversed(config.as_dict().items()):  # the target of a link precedes its source
                check_value(name, value)
        return config

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise a UserError for a mistake that jsonargparse has found."""
        if not self.exit_on_error:  # the parser of a class that is an option's value; the outer parser explains it
            super().error(message, ex)
        raise UserError(explain(self, message, ex)) from ex


def check_value(name: str, value: object) -> None:
    """Refuse numbers that no option can use, and text that cannot be written to a file as UTF-8.

    Raises:
        UserError: a float is infinite, not a number or too large for float32, an integer has more than 64 bits, or a
            text contains a lone surrogate. It stands for a byte of the command line that is not UTF-8.
    """
    if isinstance(value, Mapping):
        if "class_path" not in value:  # the class decides which numbers it takes
            for key, each in value.items():
                check_value(f"{name}.{key}", each)
    elif isinstance(value, list | tuple):
        for each in value:
            check_value(name, each)
    elif isinstance(value, float) and not abs(value) <= LARGEST_FLOAT:
        raise UserError(f"{name} is {value}, but it must be a number between -{LARGEST_FLOAT} and {LARGEST_FLOAT}")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise UserError(f"{name} is {value:.6g}, but it must be a whole number of at most 64 bits: give one from "
                        f"{-(2**63)} to {2**63 - 1}")
    elif isinstance(value, str) and (found := re.search("[\ud800-\udfff]", value)):
        raise UserError(f"{name} contains the lone surrogate U+{ord(found[0]):04X} at position {found.start()}, which "
                        "is not text: give valid UTF-8")


LARGEST_FLOAT = 3e38  # just below the largest float32


class Parser(OneSentenceErrors, ArgumentParser):
    """The parser of a command that is not one of LightningCLI's."""


def _check_keys(parser: ArgumentParser, path: str) -> None:
    """Refuse keys of a configuration file that are not options, and groups of options that are given as one value."""
    known = {name.removeprefix("--"): action for name, action in parser._option_string_actions.items()}
    for key, value in leaves(read_yaml(path)):
        action = known.get(key.removesuffix("+"))
        if (source := getattr(action, "source", None)) is not None:  # a link; jsonargparse would ignore the value
            raise UserError(f"{key} in {path} follows from {source[0][0]}: set that one instead")
        if action is None and not is_part(parser, f"--{key}"):
            names = [name for name in known if not is_group(parser, f"--{name}")]
            raise UserError(f"unknown key {key!r} in {path}: {nearest(key, names, parser)}")
        # A string names a YAML file; jsonargparse reads it.
        if is_group(parser, f"--{key}") and value and not isinstance(value, str):
            raise UserError(group_as_value(f"{key} in {path}", value))


def _check_mappings(words: list[str]) -> None:
    """Refuse a mapping on the command line that states a key twice; jsonargparse would take the last value."""
    for name, value in stated_options(words):
        if "{" in value:
            with contextlib.suppress(yaml.YAMLError, RecursionError):  # what is wrong with it is explained later
                try:
                    load_yaml(value)
                except DuplicateKeyError as error:
                    raise UserError(f"{name} {error.problem}") from error
