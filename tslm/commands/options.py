"""Options as dotted keys: which ones a command line or a configuration file states, and access to nested values."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tslm.errors import MissingFileError, UserError


def asks_for_help(argv: list[str]) -> bool:
    """Whether the command line asks for information only."""
    return any(name in ("-h", "--help", "--print_config") for name, _ in stated_options(argv))


def stated_options(argv: list[str]) -> list[tuple[str, str]]:
    """Return the options that a command line states, with dashes, and their values.

    An option without `=` has the next word as its value, or "" at the end; a final `+`, which extends a list, is
    dropped. `--a=1 --b+ 2 -c` is [("--a", "1"), ("--b", "2"), ("-c", "")].
    """
    options = []
    for word, following in zip(argv, [*argv[1:], ""], strict=False):
        name, equals, value = word.partition("=")
        if re.match(r"--?[A-Za-z]", name):  # and not a negative number
            options.append((name.removesuffix("+"), value if equals else following))
    return options


def split_words(argv: list[str]) -> tuple[list[str], list[str]]:
    """Divide a command line into the study's own words and those of `fit`: options with a dot, and --config.

    Example: `--steps 9 --data.corpus toy` gives (["--steps", "9"], ["--data.corpus", "toy"]).
    """
    own: list[str] = []
    fit: list[str] = []
    here = own
    for word in argv:
        name = word.partition("=")[0]
        if name.startswith("--") or name == "-c":
            here = fit if "." in name or name in ("-c", "--config") else own
        here.append(word)
    return own, fit


def configs_first(argv: list[str], between: list[str] | None = None) -> list[str]:
    """Move `--config` and its values to the place after the command, so that the other options win over the files.

    Example: `fit --ckpt_path last --config a.yaml` gives `fit --config a.yaml --ckpt_path last`.

    Args:
        argv: the command line.
        between: words that are put after the files and before the other options.
    """
    first, rest = list[str](), list[str]()
    for before, word in zip(["", *argv], argv, strict=False):
        is_config = word in ("-c", "--config") or word.startswith("--config=") or before in ("-c", "--config")
        (first if is_config else rest).append(word)
    return [*rest[:1], *first, *(between or []), *rest[1:]]


def flag_keys(argv: list[str]) -> set[str]:
    """Return the keys of the options that a command line states."""
    return {"config" if name == "-c" else name.lstrip("-") for name, _ in stated_options(argv)}


def stated_values(argv: list[str]) -> dict[str, Any]:
    """Return the dotted keys that a command line states, also within a group of options, and their values.

    A group is given as a mapping or as a YAML file. `--trainer.max_steps 5` is {"trainer.max_steps": 5}, and so is
    `--trainer '{max_steps: 5}'`.
    """
    found: dict[str, Any] = {}
    for name, text in stated_options(argv):
        key, value = "config" if name == "-c" else name.lstrip("-"), text
        if key != "config":
            with contextlib.suppress(yaml.YAMLError, RecursionError):  # the parser explains what is wrong with it
                value = load_yaml(text)
        found |= _without_groups({key: value})
    return found


def values_in(path: str | Path) -> dict[str, Any]:
    """Return the dotted keys that a configuration file states, and their values, with those of files that it names.

    Raises:
        UserError: as for `read_yaml`.
    """
    return _without_groups(read_yaml(path))


GROUPS = ("model", "data", "trainer", "optimizer", "generation", "checkpoint")


def _without_groups(values: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in leaves(values):
        is_file = key in GROUPS and isinstance(value, str) and Path(value).is_file()
        found |= dict(leaves(read_yaml(value), f"{key}.")) if is_file else {key.removesuffix("+"): value}
    return found


def is_stated(key: str, stated: set[str]) -> bool:
    """Whether an option, a part of it or the group it belongs to is among those stated."""
    return any(key == other or key.startswith(f"{other}.") or other.startswith(f"{key}.") for other in stated)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a configuration file.

    Raises:
        UserError: the file does not exist, is not UTF-8 or not YAML, states a key twice, or holds something else than a
            mapping.
    """
    path = Path(path)
    if not path.exists():
        neighbours = {each.name: each for each in path.parent.glob("*.y*ml")}
        nearest = difflib.get_close_matches(path.name, neighbours, n=1, cutoff=0.75)
        hint = f"did you mean {neighbours[nearest[0]]}?" if nearest else "give the path of a YAML file"
        raise MissingFileError(f"configuration file {path} does not exist: {hint}")
    if not path.is_file():
        raise UserError(f"configuration {path} is not a file: give the path of a YAML file")
    try:
        content = load_yaml(path.read_bytes().decode("utf-8"))
    except UnicodeDecodeError as error:
        byte = f"byte {error.object[error.start]:#04x} at offset {error.start}"
        raise UserError(f"{path} is not UTF-8 text: {byte}") from error
    except DuplicateKeyError as error:
        raise UserError(f"{path} {error.problem}, the second time in line {error.line}") from error
    except RecursionError as error:
        raise UserError(f"{path} nests lists or mappings too deeply for a configuration") from error
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{path} is not valid YAML{where}: {problem}") from error
    if not isinstance(content, dict):
        found = "is empty" if content is None else f"holds {str(content)[:60]!r}"
        raise UserError(f"{path} {found}, but a configuration is a list of options, each written as `name: value`")
    keys = [key for key, _ in leaves(content)]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise UserError(f"{path} states the key {twice!r} twice, once dotted and once nested")
    return content


class DuplicateKeyError(yaml.YAMLError):
    """A mapping states a key twice, the second time in a line that is counted from 1."""

    def __init__(self, key: str, line: int) -> None:
        self.problem, self.line = f"states the key {key!r} twice", line
        super().__init__(self.problem)


class _StrictLoader(yaml.SafeLoader):
    """YAML's safe loader, which refuses duplicate keys instead of taking the last value, and aliases that multiply."""

    def construct_document(self, node: yaml.Node) -> Any:
        """Construct a document, unless its aliases stand for very many values, or for one that contains itself."""
        if _expanded(node, {}) > LARGEST_DOCUMENT:
            raise yaml.YAMLError(f"its aliases stand for more than {LARGEST_DOCUMENT:,} values, or contain themselves")
        return super().construct_document(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Construct a mapping; the keys that `<<` merges into it may be stated again."""
        seen = set()
        for key, _ in node.value:
            if key.value in seen and isinstance(key.value, str):
                raise DuplicateKeyError(key.value, key.start_mark.line + 1)
            seen.add(key.value if isinstance(key.value, str) else id(key))
        return super().construct_mapping(node, deep=deep)


LARGEST_DOCUMENT = 1_000_000  # values, where each alias counts as a copy


def _expanded(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """Count the values of a node, where each alias counts as a copy; `known` has the counts so far."""
    if node not in known:
        known[node] = LARGEST_DOCUMENT + 1  # in case that it contains itself
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        inner = [each for part in parts for each in (part if isinstance(part, tuple) else (part,))]
        known[node] = 1 + sum(_expanded(each, known) for each in inner)
    return known[node]


def load_yaml(text: str) -> Any:
    """Read YAML.

    Raises:
        DuplicateKeyError: a mapping states a key twice.
        yaml.YAMLError: the text is not YAML.
    """
    return yaml.load(text, _StrictLoader)


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the value of every option in a nested configuration."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def get_key(values: Mapping[str, Any], key: str) -> Any:
    """Return the value of a dotted key."""
    for name in key.split("."):
        values = values[name]
    return values


def put_key(values: dict[str, Any], key: str, value: Any) -> None:
    """Set the value of a dotted key."""
    group, _, name = key.rpartition(".")
    (get_key(values, group) if group else values)[name] = value


def find_shipped(argv: list[str]) -> tuple[list[str], list[str]]:
    """Return a command line in which `--config configs/NAME` names the shipped file, where there is none of this name.

    Returns:
        The words, and a notice for each file that was found in this way. So the commands of the README work in every
        folder, also with an installed wheel.
    """
    words, notices = list(argv), []
    for place, word in enumerate(words):
        option, equals, value = word.rpartition("=")
        is_value = option == "--config" if equals else place > 0 and words[place - 1] in ("-c", "--config")
        shipped = config_folder() / Path(value).name
        if is_value and Path(value).parent == Path("configs") and not Path(value).exists() and shipped.is_file():
            words[place] = f"{option}{equals}{shipped}"
            notices.append(f"{value} is not in this folder; the one that comes with tslm is used: {shipped}")
    return words, notices


def config_folder() -> Path:
    """Return the folder of the shipped configurations, in the project or in the installed package."""
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"
