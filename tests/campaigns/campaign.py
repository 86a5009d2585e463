"""Run families of random cases: a number of them, or for a given time. Each case can be repeated by its number.

A family is a function of a `Case` that raises an error if something is wrong. The result is one JSON line per family on
stdout, with the keys `name`, `tried`, `failed`, `seed` and `seconds`. Each failing case is printed on stderr, with its
inputs and the options that repeat it. A family says with `@full(count)` how many cases a full campaign has.
"""

import argparse
import json
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from tqdm import tqdm

_SHOWN = 3  # failures per family that are printed in full
_REPR = 2000  # characters per input that are printed


def run_campaign(
    name: str, families: "Sequence[Family]", description: str, arguments: Sequence[str] | None = None
) -> int:
    """Run a campaign from the command line.

    Args:
        name: Name of the module.
        families: Families of checks. The name of the function is the name of the family.
        description: One sentence for `--help`.
        arguments: Words of the command line, or None for those of this process.

    Returns:
        The exit code: 1 after a failure, 130 after Ctrl-C without a failure, else 0.
    """
    named = {family.__name__: family for family in families}
    parser = argparse.ArgumentParser(prog=f"python -m {name}", description=description)
    parser.add_argument("--seed", type=int, default=0, help="seed of all cases (default: 0)")
    size = parser.add_mutually_exclusive_group()
    sizes = ", ".join(f"{family} {count_of(named[family])}" for family in named)
    size.add_argument("--count", type=int, help=f"number of cases per family (default: {sizes})")
    size.add_argument("--seconds", type=float, help="time for all families together, instead of a number of cases")
    parser.add_argument("--family", choices=named, action="append", help="run only this family; can be repeated")
    parser.add_argument("--case", type=int, help="run only the case with this number")
    options = parser.parse_args(arguments)
    runs = [_Run(named[family], options.seed) for family in options.family or named]
    code = 0
    try:
        with tempfile.TemporaryDirectory() as folder:
            _run_all(runs, Path(folder), options)
    except KeyboardInterrupt:
        code = 130
    for run in runs:
        print(json.dumps(run.line()), flush=True)
    return 1 if any(run.failed for run in runs) else code


def _run_all(runs: list["_Run"], folder: Path, options: argparse.Namespace) -> None:
    if options.case is not None:
        for run in runs:
            run.do(options.case, folder)
        return
    if options.seconds is not None:
        deadline = time.monotonic() + options.seconds
        while time.monotonic() < deadline:
            # The family with the least time so far is next, so that a slow family does not use all of it.
            run = min(runs, key=lambda run: run.seconds)
            run.do(run.tried, folder)
        return
    for run in runs:
        count = options.count if options.count is not None else count_of(run.check)
        for number in tqdm(range(count), desc=run.name, disable=None):  # None: shown on a terminal only
            run.do(number, folder)


def full(count: int) -> Callable[["Family"], "Family"]:
    """Return a decorator that sets the number of cases of a family in a full campaign."""

    def mark(family: Family) -> Family:
        family.full = count  # type: ignore[attr-defined]
        return family

    return mark


def count_of(family: "Family") -> int:
    """Return the number of cases of a family in a full campaign."""
    return getattr(family, "full", 1000)


class _Run:
    """The cases of one family so far."""

    def __init__(self, family: "Family", seed: int) -> None:
        self.check, self.name, self.seed = family, family.__name__, seed
        self.tried = self.failed = 0
        self.seconds = 0.0

    def do(self, number: int, folder: Path) -> None:
        """Run one case, and print it if it fails."""
        start = time.monotonic()
        case = Case(self.name, self.seed, number, folder)
        try:
            self.check(case)
        except Exception:
            self.failed += 1
            print(f"{self.name}: case {number} of seed {self.seed} failed; repeat it with --family {self.name} "
                  f"--seed {self.seed} --case {number}", file=sys.stderr)  # fmt: skip
            if self.failed <= _SHOWN:
                traceback.print_exc()
                for name, value in case.inputs.items():
                    print(f"{name} = {value!r:.{_REPR}}", file=sys.stderr)
        self.tried += 1
        self.seconds += time.monotonic() - start

    def line(self) -> dict[str, object]:
        """Return the summary."""
        return {"name": self.name, "tried": self.tried, "failed": self.failed, "seed": self.seed,
                "seconds": round(self.seconds, 1)}  # fmt: skip


class Case:
    """One case: its number, its random generator, a folder for its files, and the inputs to print if it fails."""

    def __init__(self, family: str, seed: int, number: int, folder: Path) -> None:
        self.rng = random.Random(f"{family} {seed} {number}")
        self.folder, self.number = folder, number
        self.inputs: dict[str, Any] = {}

    def note(self, **inputs: Any) -> None:
        """Record inputs, to be printed if the case fails."""
        self.inputs |= inputs

    def write(self, name: str, data: bytes) -> Path:
        """Write a file into the folder of the case and return its path."""
        path = self.folder / name
        path.write_bytes(data)
        return path


Family: TypeAlias = Callable[[Case], None]


def check_equal(found: object, expected: object) -> None:
    """Raise AssertionError unless two values are equal. The order of dictionary keys does not matter."""
    if found != expected:
        raise AssertionError(f"found    {found!r:.{_REPR}}\nexpected {expected!r:.{_REPR}}")


def check_fails(call: Callable[[], object], part: str) -> None:
    """Raise AssertionError unless a call raises a ValueError whose message is one line that contains `part`."""
    try:
        result = call()
    except ValueError as error:
        if part not in str(error) or "\n" in str(error):
            raise AssertionError(f"the message {str(error)!r} lacks {part!r} or has several lines") from error
    else:
        raise AssertionError(f"expected an error with {part!r}, got {result!r:.{_REPR}}")
