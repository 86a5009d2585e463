"""Checks of values that come from a checkpoint: each accepts plain values of one form, and never raises."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

Check = Callable[[object], bool]

LARGEST = 2**63 - 1
LONGEST_TEXT, LONGEST_LIST = 1_000_000, 100_000
ABSENT = object()


def look_up(values: object, key: str) -> object:
    """Return the value of a dotted key in nested dictionaries, or `ABSENT`."""
    for name in key.split("."):
        if type(values) is not dict or name not in values:
            return ABSENT
        values = values[name]
    return values


def whole(least: int = 0, most: int = LARGEST) -> Check:
    """Accept an int from `least` to `most`, and no bool."""
    return lambda value: type(value) is int and least <= value <= most


def number(least: float = 0.0) -> Check:
    """Accept a finite float, or a 64-bit int, of at least `least`."""
    return lambda value: (
        (type(value) is float and math.isfinite(value)) or (type(value) is int and abs(value) <= LARGEST)
    ) and value >= least


def one_of(*names: str) -> Check:
    """Accept one of these strings."""
    return lambda value: type(value) is str and value in names


def optional(check: Check) -> Check:
    """Accept None, too."""
    return lambda value: value is None or check(value)


def either(*checks: Check) -> Check:
    """Accept what one of the checks accepts."""
    return lambda value: any(check(value) for check in checks)


def list_of(check: Check, least: int = 0, most: int = LONGEST_LIST) -> Check:
    """Accept a flat list or tuple of `least` to `most` values that the check accepts."""
    return lambda value: (
        (type(value) is list or type(value) is tuple) and least <= len(value) <= most and all(map(check, value))
    )


def switch(value: object) -> bool:
    """Accept true and false."""
    return type(value) is bool


def text(value: object) -> bool:
    """Accept a string that UTF-8 can encode."""
    return type(value) is str and len(value) <= LONGEST_TEXT and not re.search("[\ud800-\udfff]", value)


def numbers(value: object) -> bool:
    """Accept a few small numbers by names."""
    return type(value) is dict and 0 < len(value) <= 16 and all(
        type(name) is str and name.isidentifier() and len(name) < 64 and (number(-1e3)(each) and each <= 1e3)
        for name, each in value.items()
    )


def path_to_read(value: object) -> bool:
    """Accept a string of printable characters: the name of a text file."""
    return type(value) is str and value.isprintable() and 0 < len(value) <= 4096


def max_time(value: object) -> bool:
    """Accept days, hours, minutes and seconds as Lightning writes them: 00:12:00:00."""
    return type(value) is str and re.fullmatch(r"[0-9]{2}(:[0-9]{2}){3}", value) is not None
