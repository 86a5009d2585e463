"""Measures two sides in turn and reports it: a figure's runs come in, a JSON line and a row of a table go out.

Seconds are wall time. Memory is what processes keep for themselves: the anonymous and shared-memory pages of a process
and all its descendants, each page divided by the number of processes that share it (`Pss_Anon` and `Pss_Shmem` of
`/proc/<pid>/smaps_rollup`, read every 20 ms; the peak of the sum counts). Pages of files, such as a mapped text or a
library's code, are the system's cache, which it takes back at need; they count on neither side.
"""

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

ROOT = Path(__file__).parents[2]
_SAMPLE_SECONDS = 0.02


class Target(NamedTuple):
    """What is to hold: the ratio, or our own quantity, at most or at least `value`."""

    quantity: Literal["ratio", "ours"]
    relation: Literal["<=", ">="]
    value: float

    def holds(self, figure: "Figure") -> bool:
        """Say whether a figure meets it."""
        measured: float = getattr(figure, self.quantity)
        return measured <= self.value if self.relation == "<=" else measured >= self.value


@dataclass(frozen=True)
class Figure:
    """One quantity, taken on our side and on a peer's.

    Attributes:
        name: what was measured.
        unit: of `ours` and `peer`.
        ours, peer: medians; `peer` is None where nobody else is measured.
        peer_name: the other program.
        target: what is to hold, or None where the figure is only reported.
        runs: on each side.
        form: of our side, where it was measured in several.
        details: further keys of the JSON line.
    """

    name: str
    unit: str
    ours: float
    peer: float | None
    peer_name: str | None
    target: Target | None
    runs: int
    form: str | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """`ours` / `peer`."""
        return None if self.peer is None else self.ours / self.peer

    @property
    def target_text(self) -> str | None:
        """The target as it stands in the reports, such as `ratio <= 0.5` or `ours <= 400 MB`."""
        if self.target is None:
            return None
        quantity, relation, value = self.target
        return f"{quantity} {relation} {value:.3g}" + (f" {self.unit}" if quantity == "ours" else "")

    @property
    def holds(self) -> bool | None:
        """Whether the target is met; None without one."""
        return None if self.target is None else self.target.holds(self)

    def json_line(self) -> str:
        """Return the figure as one line that a program can read."""
        return json.dumps({
            "name": self.name, "ours": self.ours, "peer": self.peer, "peer_name": self.peer_name, "ratio": self.ratio,
            "target": self.target_text, "holds": self.holds, "runs": self.runs,
            **({} if self.form is None else {"form": self.form}), **self.details,
        })

    def cells(self) -> list[str]:
        """Return the figure as a row under `COLUMNS`."""
        side = "" if self.peer is None else f"{_short(self.peer)} {self.unit} ({self.peer_name})"
        verdict = {True: "yes", False: "no", None: ""}[self.holds]
        ratio = "" if self.ratio is None else _short(self.ratio)
        form = "" if self.form is None else f" ({self.form})"
        return [self.name, f"{_short(self.ours)} {self.unit}{form}", side, ratio, self.target_text or "", verdict,
                str(self.runs)]


class Plan(NamedTuple):
    """A figure that can be measured.

    Attributes:
        name: of the figure.
        peer: the package it needs, or None.
        measure: returns the figure, given what it is measured on and its name.
    """

    name: str
    peer: str | None
    measure: Callable[[Any, str], Figure]


def choose(available: list[Plan], names: list[str] | None) -> list[Plan]:
    """Return the plans whose names begin with one of `names`, or all.

    Raises:
        ValueError: one of the names fits none.
    """
    for name in names or []:
        if not any(plan.name.startswith(name) for plan in available):
            raise ValueError(f"no figure is called {name}; there are {', '.join(plan.name for plan in available)}")
    return [plan for plan in available if not names or plan.name.startswith(tuple(names))]


COLUMNS = ["figure", "tslm", "peer", "ratio", "target", "holds", "runs"]


def table(figures: Iterable[Figure]) -> str:
    """Return the figures as columns for a terminal."""
    rows = [COLUMNS, *(figure.cells() for figure in figures)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def markdown(figures: Iterable[Figure]) -> str:
    """Return the figures as a Markdown table."""
    rows = [COLUMNS, ["---"] * len(COLUMNS), *([f"`{name}`", *rest] for name, *rest in (f.cells() for f in figures))]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def in_turn(ours: Callable[[], float], peer: Callable[[], float], runs: int) -> tuple[float, float]:
    """Call both sides `runs` times, strictly in turn, and return the median of each."""
    pairs = [(ours(), peer()) for _ in range(runs)]
    our_values, peer_values = zip(*pairs, strict=True)
    return median(our_values), median(peer_values)


class Run(NamedTuple):
    """What a function gave in a process of its own.

    Attributes:
        result: what it returned.
        seconds: from before the process was started until it had ended.
        peak_bytes: of memory, over all its processes; 0 unless it was asked for.
    """

    result: Any
    seconds: float
    peak_bytes: int


def run_alone(function: Callable[..., Any], *, sample_memory: bool = False, **arguments: object) -> Run:
    """Run a function of an importable module in a fresh Python process.

    Args:
        function: arguments and result can be written as JSON.
        sample_memory: whether to watch the memory, which costs the process a little time.
        arguments: passed on; paths become absolute ones, as strings.

    Raises:
        ChildProcessError: the process failed; the sentence ends with the last line of its stderr.
        OSError: the memory was asked for, but this system does not tell it.
    """
    command = [sys.executable, "-m", "tests.benchmarks.child", f"{function.__module__}:{function.__qualname__}",
               json.dumps(arguments, default=os.path.abspath)]
    peak = 0
    if sample_memory and not Path("/proc/self/smaps_rollup").exists():
        raise OSError("memory is read from /proc/<pid>/smaps_rollup, which this system lacks; measure it on Linux")
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        start = time.perf_counter()
        # A session of its own, so that no worker outlives it, however it or we end.
        child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True,
                                 start_new_session=True)
        try:
            if sample_memory:
                while child.poll() is None:
                    peak = max(peak, _memory(child.pid))
                    time.sleep(_SAMPLE_SECONDS)
            output = child.communicate()[0]
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        seconds = time.perf_counter() - start
        if child.returncode != 0:
            errors.seek(0)
            last_line = (errors.read().strip().splitlines() or [f"exit code {child.returncode}"])[-1]
            raise ChildProcessError(f"{function.__qualname__} failed in a process of its own: {last_line}")
    return Run(json.loads(output), seconds, peak)


def _memory(pid: int) -> int:
    """Return the bytes that a process and its descendants keep for themselves; 0 for one that is gone."""
    try:
        own = _own_memory(pid)
        children = [child for task in Path(f"/proc/{pid}/task").iterdir()
                    for child in (task / "children").read_text().split()]
    except OSError:  # it ended while it was looked at
        return 0
    return own + sum(_memory(int(child)) for child in children)


def _own_memory(pid: int) -> int:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return sum(int(fields[name].split()[0]) for name in ("Pss_Anon", "Pss_Shmem")) * 1024


def exit_code(work: Callable[[], int | None]) -> int:
    """Do what a benchmark's command does; return what it returns or 0, 2 after a mistake, 130 after Ctrl-C."""
    try:
        return work() or 0
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def machine(packages: Iterable[str]) -> str:
    """Return one line that says what was measured on: processor, cores, Python and the versions of packages."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    versions = (f"{package} {version(package)}" for package in packages)
    return ", ".join([model, f"{os.cpu_count()} cores", f"Python {platform.python_version()}", *versions])


def _short(value: float) -> str:
    """Three significant digits, all of those before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
