"""Run families of random cases for a given time. Each case can be repeated by its number.

A family is a function of a `Case` that raises an error if something is wrong. The result is one JSON line per family on
stdout. Each failing case is printed on stderr, with its inputs and the options that repeat it.
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
    parser.add_argument("--seconds", type=float, default=60, help="time for all families together (default: 60)")
    parser.add_argument("--cases", type=int, help="number of cases per family, instead of a time")
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
    return 1 if any(run.failures for run in runs) else code


def _run_all(runs: list["_Run"], folder: Path, options: argparse.Namespace) -> None:
    if options.case is not None:
        for run in runs:
            run.do(options.case, folder)
        return
    deadline = time.monotonic() + options.seconds
    number = 0
    while number < options.cases if options.cases is not None else time.monotonic() < deadline:
        # The family with the least time so far is next, so that a slow family does not use all of it.
        for run in runs if options.cases is not None else [min(runs, key=lambda run: run.seconds)]:
            run.do(run.cases, folder)
        number += 1


class _Run:
    """The cases of one family so far."""

    def __init__(self, family: "Family", seed: int) -> None:
        self._check, self.family, self.seed = family, family.__name__, seed
        self.cases = self.failures = 0
        self.seconds = 0.0

    def do(self, number: int, folder: Path) -> None:
        """Run one case, and print it if it fails."""
        start = time.monotonic()
        case = Case(self.family, self.seed, number, folder)
        try:
            self._check(case)
        except Exception:
            self.failures += 1
            print(f"{self.family}: case {number} of seed {self.seed} failed; repeat it with --family {self.family} "
                  f"--seed {self.seed} --case {number}", file=sys.stderr)  # fmt: skip
            if self.failures <= _SHOWN:
                traceback.print_exc()
                for name, value in case.inputs.items():
                    print(f"{name} = {value!r:.{_REPR}}", file=sys.stderr)
        self.cases += 1
        self.seconds += time.monotonic() - start

    def line(self) -> dict[str, object]:
        """Return the summary."""
        return {"family": self.family, "cases": self.cases, "seed": self.seed, "failures": self.failures,
                "seconds": round(self.seconds, 1)}  # fmt: skip


class Case:
    """One case: its random generator, a folder for its files, and the inputs to print if it fails."""

    def __init__(self, family: str, seed: int, number: int, folder: Path) -> None:
        self.rng = random.Random(f"{family} {seed} {number}")
        self.folder = folder
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
