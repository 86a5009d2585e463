"""Options as dotted keys: which ones a command line states, and how to reach into a nested configuration by them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml


def asks_for_help(argv: list[str]) -> bool:
    """Whether the command line only wants to know something."""
    return any(arg in ("-h", "--help", "--print_config") or arg.startswith("--print_config=") for arg in argv)


def flag_keys(argv: list[str]) -> set[str]:
    """Return the options that a command line states, without dashes and values."""
    keys = {arg.lstrip("-").split("=")[0].rstrip("+") for arg in argv if arg.startswith("--")}  # `+` adds to a list
    return keys | {"config" for arg in argv if arg == "-c"}


def is_stated(key: str, stated: set[str]) -> bool:
    """Whether an option, a part of it or the group it belongs to is among those stated."""
    return any(key == other or key.startswith(f"{other}.") or other.startswith(f"{key}.") for other in stated)


def read_yaml(path: Any) -> dict[str, Any]:
    """Read a configuration file that has been parsed without complaint before."""
    return yaml.safe_load(Path(str(path)).read_text(encoding="utf-8")) or {}


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the value of every option in a nested configuration."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def get_key(values: Mapping[str, Any], key: str) -> Any:
    """Return the value of a dotted key."""
    *groups, name = key.split(".")
    for group in groups:
        values = values[group]
    return values[name]


def put_key(values: dict[str, Any], key: str, value: Any) -> None:
    """Set the value of a dotted key."""
    *groups, name = key.split(".")
    for group in groups:
        values = values[group]
    values[name] = value
