"""One sentence about a mistake on the command line or in a configuration file.

The sentences are made from the parser's options and their types, the command line and the configuration files, because
jsonargparse's own messages change with its versions and can fill a page.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Union

from jsonargparse import ActionConfigFile, ArgumentParser  # type: ignore[attr-defined]

from tslm.commands.hints import ELSEWHERE
from tslm.commands.options import get_key, read_yaml, stated_options
from tslm.errors import UserError
from tslm.loops.step import TokenCount


def explain(parser: ArgumentParser, message: str, cause: BaseException | None = None) -> str:
    """Return one sentence about a mistake on the command line or in a configuration file.

    jsonargparse's message is returned in one line where nothing better is known.
    """
    if isinstance(cause, argparse.ArgumentError) and cause.argument_name and cause.message.startswith("expected"):
        name = cause.argument_name.split("/")[-1]
        given = next((value for option, value in stated_options(_words(parser)) if option == name), "")
        hint = f"; one that begins with a hyphen follows an equals sign: {name}={given}"
        return f"{name} needs a value{hint * (given.startswith('-') and given not in parser._option_string_actions)}"
    if found := re.search(r"argument (\S+): ignored explicit argument '(.*)'", message):
        return f"{found[1].split('/')[-1]} takes no value: leave {'=' + found[2]!r} out"
    if match := re.match(r'Parser key "([^"]*)"', message):
        return _wrong_value(parser, match[1], message, cause)
    if parser._subparsers is not None:  # what is wrong with one command is explained by the parser of that command
        return _shorten(message)
    known, stated = parser._option_string_actions, [name for name, _ in stated_options(_words(parser))]
    unknown = [name for name in stated if name not in known and not is_part(parser, name)]
    if unknown:
        names = [name for name in known if name.startswith("--") and not is_group(parser, name)]
        return "; ".join(f"unknown option {name}: {nearest(name, names, parser)}" for name in unknown)
    missing = [action.option_strings[-1] if action.option_strings else action.dest.upper() for action in parser._actions
               if action.required and not set(action.option_strings) & set(stated)]
    if missing:
        return f"{' and '.join(missing)} must be given: see `{_command(parser)} --help`"
    return _shorten(message)


def _wrong_value(parser: ArgumentParser, key: str, message: str, cause: BaseException | None) -> str:
    """Return the sentence for an option with a value that it does not allow."""
    type_hint = getattr(parser._option_string_actions.get(f"--{key}"), "_typehint", None)
    values = list(_stated_values(parser, key))
    if not values:
        return _shorten(message)
    parts = [each for each in values if each[0].startswith(f"--{key}.")]
    wrong = [each for each in values if each not in parts and _is_refused(type_hint, each[1])]
    name, value = ((parts if type_hint is not None else []) or wrong or values)[0]
    if problem := re.search(r"Problem with given class_path '([^']*)':\s*(.*?)(?=\n *- |\n *Given|\Z)", message, re.S):
        if lacks := re.fullmatch(r"the following arguments are required: (.*)", problem[2]):
            needs = " and ".join(f"--{key}.{each}" for each in lacks[1].split(", "))
            return f"{key} cannot be {problem[1]} without more options: give {needs}"
        if inner := re.match(r'Parser key "([^"]*)":\s*Does not validate.*?Subtypes: \[(.*?)\]', problem[2], re.S):
            name, value = next((each for each in values if each[0] == f"--{key}.{inner[1]}"), (name, value))
            return f"{name} is {str(value)!r:.80}, but {problem[1]} takes one of {inner[2]}"
        return f"{key} cannot be used: {_shorten(problem[0])}"
    if type_hint is None:
        if is_group(parser, f"--{key}"):
            return group_as_value(name, value)
        return f"{name} cannot be used: {_shorten(message)}"
    allowed = describe(type_hint)
    if allowed is None:  # a class; jsonargparse's message about the first alternative of the type names the mistake
        while cause is not None and isinstance(cause.__cause__, TypeError | ValueError):
            cause = cause.__cause__
        if re.match("Expected a (<class 'list'>|dot import path)|Not a valid subclass", str(cause)):
            return (f"{name} is {_shorten(str(value), 80)!r}, but it must be the name of a class of Lightning, or of a "
                    "class of your own as module.Class")
        return f"{key} cannot be used: {_shorten(str(cause or message))}"
    if name.startswith(f"--{key}."):  # a part of a value that has none
        return f"unknown option {name}: give --{key}, which takes {allowed}"
    return f"{name} is {_shorten(str(value), 80)!r}, but it must be {allowed}"


def _is_refused(type_hint: object, value: object) -> bool:
    """Whether an option of a type, or a group of options, which has none, does not allow a value."""
    if type_hint is None:
        return not isinstance(value, Mapping)
    alone = ArgumentParser(exit_on_error=False)
    alone.add_argument("--value", type=type_hint)
    try:
        alone.parse_object({"value": value})
    except argparse.ArgumentError:
        return True
    return False


def _stated_values(parser: ArgumentParser, key: str) -> Iterator[tuple[str, Any]]:
    """Yield the places where an option is stated, in words, with the values there."""
    for path in config_files(parser, _words(parser)):
        with contextlib.suppress(KeyError, TypeError):
            yield f"{key} in {path}", get_key(read_yaml(path), key)
    for name, value in stated_options(_words(parser)):
        if name == f"--{key}" or name.startswith(f"--{key}."):
            yield name, value


def group_as_value(name: str, value: object) -> str:
    """Return the sentence about a group of options that is given as one value."""
    return (f"{name} is {_shorten(str(value), 80)!r}, but it is a group of options: set each of them by its own name, "
            "or name a YAML file that has them")


_WORDS = {
    TokenCount: "a number of tokens, such as 2000000, 2e6 or 2M",
    bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path", type(None): "null"
}


def describe(type_hint: object) -> str | None:
    """Say in words which values a type has: `Literal["a", "b"] | None` is "one of a, b or null"; None for classes."""
    choices, others = [], []
    for alternative in _alternatives(type_hint):
        kind, arguments = typing.get_origin(alternative) or alternative, typing.get_args(alternative)
        if kind is Literal:
            choices += [str(value) for value in arguments]
        elif kind in _WORDS:
            others.append(_WORDS[kind])
        elif kind is tuple and ... not in arguments:
            others.append(f"a list of {len(arguments)} values, written as '[one, two]'")
        elif isinstance(kind, type) and issubclass(kind, Mapping):
            others.append("a mapping, written as '{name: value}'")
        elif isinstance(kind, type) and issubclass(kind, Iterable):
            others.append("a list of numbers, written as '[1, 2.5]'" if arguments == (float,) else
                          "a list, written as '[one, two]'")
        else:
            return None
    if choices:
        others.insert(0, f"one of {', '.join(dict.fromkeys(choices))}")
    return " or ".join(dict.fromkeys(others))


def _alternatives(type_hint: object) -> list[Any]:
    if typing.get_origin(type_hint) in (Union, types.UnionType):
        return [each for argument in typing.get_args(type_hint) for each in _alternatives(argument)]
    return [type_hint]


def nearest(wrong: str, names: list[str], parser: ArgumentParser) -> str:
    """Suggest the nearest name: first one that only lacks its group (--lr), then by spelling."""
    spellings = {name.lstrip("-").replace("-", "_"): name for name in names}
    spelling = wrong.lstrip("-").replace("-", "_")
    leaf = spelling.rpartition(".")[2]
    here = ELSEWHERE.get(leaf)
    if here is not None and here.split()[0].rstrip(",") in names:
        return f"give {here}"
    same_leaf = [each for each in spellings if each.rpartition(".")[2] == leaf]
    nearest = (difflib.get_close_matches(spelling, same_leaf, n=1, cutoff=0)
               or difflib.get_close_matches(spelling, spellings, n=1))
    return f"did you mean {spellings[nearest[0]]}?" if nearest else f"`{_command(parser)} --help` lists the options"


def is_group(parser: ArgumentParser, name: str) -> bool:
    """Whether a name is that of a group of options, which takes no value of its own."""
    known = parser._option_string_actions
    return any(each.startswith(f"{name}.") for each in known) and not hasattr(known.get(name), "_typehint")


def is_part(parser: ArgumentParser, name: str) -> bool:
    """Whether a name is below an option that takes a class or a mapping, such as --trainer.logger.save_dir."""
    parts = name.split(".")
    parents = (parser._option_string_actions.get(".".join(parts[:length])) for length in range(1, len(parts)))
    return any(hasattr(parent, "_typehint") for parent in parents)


def config_files(parser: ArgumentParser, words: list[str]) -> list[str]:
    """Return the paths of the configuration files that a command line states, if the parser takes any."""
    return [value for name, value in stated_options(words)
            if name in ("-c", "--config") and value
            and isinstance(parser._option_string_actions.get(name), ActionConfigFile)]


def _words(parser: ArgumentParser) -> list[str]:
    """Return the words of the command line that the parser parsed last."""
    return list(getattr(parser, "args", None) or [])


def _command(parser: ArgumentParser) -> str:
    return parser.prog.replace(" [options]", "")


def _shorten(text: str, length: int = 300) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[:length]} …"


def refused_class(error: BaseException) -> UserError:
    """Return the sentence about a class, named by the user, that refuses its arguments."""
    key = re.search(r'Parser key "([^"]*)"', str(error))
    while isinstance(cause := error.__cause__ or error.__context__, Exception):  # jsonargparse's own fill a page
        error = cause
    text = " ".join(str(error).split())[:300]
    return UserError(f"{key[1] if key else 'an option'} cannot be used: {text}")
