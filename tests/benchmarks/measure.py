"""Measure two sides in turn, and report each figure as a JSON line and as a row of a table.

Time is wall time in seconds. Memory is the peak of the proportional set size (PSS) of a process and all its
descendants, without pages of files: `Pss_Anon` + `Pss_Shmem` of `/proc/<pid>/smaps_rollup`, read every 20 ms. PSS
divides each shared page by the number of processes that share it. Pages of files, such as a mapped text or a library's
code, are excluded on both sides, because they are a cache that the system can drop.
"""

import contextlib
import importlib.util
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

from tslm.errors import UserError

ROOT = Path(__file__).parents[2]
_SAMPLE_SECONDS = 0.02


class Target(NamedTuple):
    """A bound on the ratio or on our own value: at most or at least `value`."""

    quantity: Literal["ratio", "ours"]
    relation: Literal["<=", ">="]
    value: float

    def holds(self, figure: "Figure") -> bool:
        """Return whether a figure reaches the target."""
        measured: float = getattr(figure, self.quantity)
        return measured <= self.value if self.relation == "<=" else measured >= self.value


@dataclass(frozen=True)
class Figure:
    """One quantity, measured for tslm and, as a rule, for a peer.

    Attributes:
        name: Name of the figure.
        unit: Unit of `ours` and `peer`.
        ours: Median for tslm.
        peer: Median for the peer, or None without a peer.
        peer_name: Name of the peer, or None.
        target: The bound to reach, or None for a figure that is only reported.
        runs: Number of runs on each side.
        form: How tslm ran, such as "eager" or "compiled", or None where there is one way only.
        details: Further keys of the JSON line.
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
        """The target in words, such as `ratio <= 0.5` or `ours <= 400 MB`."""
        if self.target is None:
            return None
        quantity, relation, value = self.target
        return f"{quantity} {relation} {value:.3g}" + (f" {self.unit}" if quantity == "ours" else "")

    @property
    def holds(self) -> bool | None:
        """Whether the target is reached, or None without a target."""
        return None if self.target is None else self.target.holds(self)

    def json_line(self) -> str:
        """Return the figure as a JSON object in one line."""
        return json.dumps({
            "name": self.name, "ours": self.ours, "peer": self.peer, "peer_name": self.peer_name, "ratio": self.ratio,
            "target": self.target_text, "holds": self.holds, "runs": self.runs,
            **({} if self.form is None else {"form": self.form}), **self.details,
        })

    def cells(self) -> list[str]:
        """Return the cells of the figure's row, in the order of `COLUMNS`."""
        side = "" if self.peer is None else f"{_short(self.peer)} {self.unit} ({self.peer_name})"
        verdict = {True: "yes", False: "no", None: ""}[self.holds]
        ratio = "" if self.ratio is None else _short(self.ratio)
        form = "" if self.form is None else f" ({self.form})"
        return [self.name, f"{_short(self.ours)} {self.unit}{form}", side, ratio, self.target_text or "", verdict,
                str(self.runs)]


class Plan(NamedTuple):
    """A figure that can be measured.

    Attributes:
        name: Name of the figure.
        peer: Package that the measurement needs, or None.
        measure: Function of (inputs, name) that returns the figure.
    """

    name: str
    peer: str | None
    measure: Callable[[Any, str], Figure]


def choose(available: list[Plan], names: list[str] | None) -> list[Plan]:
    """Return the plans whose names begin with one of `names`, or all plans for None.

    Raises:
        UserError: No plan begins with one of the names.
    """
    for name in names or []:
        if not any(plan.name.startswith(name) for plan in available):
            raise UserError(f"no figure is called {name}: choose from {', '.join(plan.name for plan in available)}")
    return [plan for plan in available if not names or plan.name.startswith(tuple(names))]


COLUMNS = ["figure", "tslm", "peer", "ratio", "target", "holds", "runs"]


def table(figures: Iterable[Figure]) -> str:
    """Return the figures as aligned columns for a terminal."""
    rows = [COLUMNS, *(figure.cells() for figure in figures)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def markdown(figures: Iterable[Figure]) -> str:
    """Return the figures as a Markdown table."""
    rows = [COLUMNS, ["---"] * len(COLUMNS), *([f"`{name}`", *rest] for name, *rest in (f.cells() for f in figures))]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def in_turn(ours: Callable[[], float], peer: Callable[[], float], runs: int) -> tuple[float, float]:
    """Call both sides `runs` times, in turn, and return the median of each side."""
    pairs = [(ours(), peer()) for _ in range(runs)]
    our_values, peer_values = zip(*pairs, strict=True)
    return median(our_values), median(peer_values)


class Run(NamedTuple):
    """Result of a function that ran in a new process.

    Attributes:
        result: Return value of the function.
        seconds: Time from before the start of the process until after its end.
        peak_bytes: Peak memory of the process and its descendants; 0 unless it was sampled.
    """

    result: Any
    seconds: float
    peak_bytes: int


def run_alone(function: Callable[..., Any], *, sample_memory: bool = False, **arguments: object) -> Run:
    """Run a function in a new Python process.

    Args:
        function: Function of an importable module. Its arguments and its result must be JSON.
        sample_memory: Whether to sample memory, which slows the process down a little.
        arguments: Keyword arguments. Paths are passed as absolute paths, in strings.

    Raises:
        ChildProcessError: The process failed. The message ends with the last line of its stderr.
        OSError: `sample_memory` is set, and this system has no smaps_rollup.
    """
    command = [sys.executable, "-m", "tests.benchmarks.child", f"{function.__module__}:{function.__qualname__}",
               json.dumps(arguments, default=os.path.abspath)]
    peak = 0
    if sample_memory and not Path("/proc/self/smaps_rollup").exists():
        raise OSError("memory is read from /proc/<pid>/smaps_rollup, missing on this system: measure it on Linux")
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        start = time.perf_counter()
        # A new session, so that killing the group ends every worker too.
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
            raise ChildProcessError(f"{function.__qualname__} failed in its process: {last_line}")
    return Run(json.loads(output), seconds, peak)


def _memory(pid: int) -> int:
    """Return the memory of a process and its descendants in bytes; 0 for a process that has ended."""
    try:
        own = _process_memory(pid)
        children = [child for task in Path(f"/proc/{pid}/task").iterdir()
                    for child in (task / "children").read_text().split()]
    except OSError:  # the process ended during the reading
        return 0
    return own + sum(_memory(int(child)) for child in children)


def _process_memory(pid: int) -> int:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return sum(int(fields[name].split()[0]) for name in ("Pss_Anon", "Pss_Shmem")) * 1024


def is_installed(package: str) -> bool:
    """Return whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


def exit_code(work: Callable[[], int | None]) -> int:
    """Call `work` and return an exit code: its own or 0, 2 after a user's mistake, 130 after Ctrl-C."""
    try:
        return work() or 0
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def machine(packages: Iterable[str]) -> str:
    """Return one line with the processor, the number of cores, and the versions of Python and of packages."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    versions = (f"{package} {version(package)}" for package in packages)
    return ", ".join([model, f"{os.cpu_count()} cores", f"Python {platform.python_version()}", *versions])


def _short(value: float) -> str:
    """Format three significant digits, and all digits before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
