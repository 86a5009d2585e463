"""Runs families of random cases for a given time, each case repeatable by its number.

Families (functions of a `Case` that raise an error if something is wrong) and the words of a command come in; one JSON
line per family goes out, and on stderr each failing case with its inputs and the options that repeat it.
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

_SHOWN = 3  # failures of a family that are printed in full
_REPR = 2000  # characters of an input that are printed


def run_campaign(
    name: str, families: "Sequence[Family]", description: str, arguments: Sequence[str] | None = None
) -> int:
    """Run a campaign from the command line.

    Args:
        name: of the module.
        families: what is checked; each has the name of its function.
        description: one sentence for `--help`.
        arguments: the words of the command; None takes the process's own.

    Returns:
        The exit code: 1 after a failure, 130 after Ctrl-C without one, else 0.
    """
    named = {family.__name__: family for family in families}
    parser = argparse.ArgumentParser(prog=f"python -m {name}", description=description)
    parser.add_argument("--seed", type=int, default=0, help="decides all cases, with the family and the case's number")
    parser.add_argument("--seconds", type=float, default=60, help="for all families together")
    parser.add_argument("--cases", type=int, help="of each family, instead of a time")
    parser.add_argument("--family", choices=named, action="append", help="only this one; may be given again")
    parser.add_argument("--case", type=int, help="only the case of this number, to repeat it")
    options = parser.parse_args(arguments)
    runs = [_Run(named[family], options.seed) for family in options.family or named]
    code = 0
    try:
        with tempfile.TemporaryDirectory() as folder:
            _go(runs, Path(folder), options)
    except KeyboardInterrupt:
        code = 130
    for run in runs:
        print(json.dumps(run.line()), flush=True)
    return 1 if any(run.failures for run in runs) else code


def _go(runs: list["_Run"], folder: Path, options: argparse.Namespace) -> None:
    if options.case is not None:
        for run in runs:
            run.do(options.case, folder)
        return
    deadline = time.monotonic() + options.seconds
    number = 0
    while number < options.cases if options.cases is not None else time.monotonic() < deadline:
        # The family that had least time goes next, so that a slow one does not take it all.
        for run in runs if options.cases is not None else [min(runs, key=lambda run: run.seconds)]:
            run.do(run.cases, folder)
        number += 1


class _Run:
    """What was done in one family."""

    def __init__(self, family: "Family", seed: int) -> None:
        self._check, self.family, self.seed = family, family.__name__, seed
        self.cases = self.failures = 0
        self.seconds = 0.0

    def do(self, number: int, folder: Path) -> None:
        """Do one case and print it if it fails."""
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
    """One case: its random numbers, a folder for its files, and the inputs to print if it fails."""

    def __init__(self, family: str, seed: int, number: int, folder: Path) -> None:
        self.rng = random.Random(f"{family} {seed} {number}")
        self.folder = folder
        self.inputs: dict[str, Any] = {}

    def note(self, **inputs: Any) -> None:
        """Take down inputs."""
        self.inputs |= inputs

    def write(self, name: str, data: bytes) -> Path:
        """Write a file of the case."""
        path = self.folder / name
        path.write_bytes(data)
        return path


Family: TypeAlias = Callable[[Case], None]


def same(found: object, expected: object) -> None:
    """Complain unless two values are equal; their order in a dictionary does not matter."""
    if found != expected:
        raise AssertionError(f"found    {found!r:.{_REPR}}\nexpected {expected!r:.{_REPR}}")


def fails(call: Callable[[], object], part: str) -> None:
    """Complain unless a call raises a ValueError of one line that holds this part."""
    try:
        result = call()
    except ValueError as error:
        if part not in str(error) or "\n" in str(error):
            raise AssertionError(f"the sentence {str(error)!r} lacks {part!r} or is no single line") from error
    else:
        raise AssertionError(f"no error that says {part!r}, but {result!r:.{_REPR}}")
