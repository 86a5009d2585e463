"""Measure `fit` from outside: how long a user waits for the first step, and what another `fit` beside it costs."""

import json
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from tests.benchmarks.measure import ROOT

_POLL_SECONDS = 0.005
_LIMIT_SECONDS = 300


class FirstStep:
    """A command `python -m tslm fit …`, measured from outside.

    The command reports every step. The first row of metrics.csv is written after the first step. It stops the clock,
    and then the command.

    Args:
        options: Options of `fit`; output folders are added.
        prepared: Folder that keeps prepared data.
        scratch: Folder of the run directories.
    """

    def __init__(self, options: list[str], prepared: Path, scratch: Path) -> None:
        self.options = [*options, f"--data.cache_dir={prepared.absolute()}", "--trainer.log_every_n_steps=1",
                        "--trainer.compile=false"]
        self.scratch = scratch.absolute()
        self.number = 0

    def prepare(self) -> None:
        """Run the command once, so that the data is prepared and the files are in the page cache."""
        self.seconds()

    def seconds(self) -> float:
        """Start the command and return the seconds to the end of its first step.

        Raises:
            ChildProcessError: The command ended without a step, or took more than five minutes. The message ends with
                its last line.
        """
        self.number += 1
        root = self.scratch / f"first-step-{self.number}"
        root.mkdir()
        command = [sys.executable, "-m", "tslm", "fit", *self.options, f"--trainer.default_root_dir={root}"]
        with (root / "output.txt").open("w+", encoding="utf-8") as output:
            start = time.perf_counter()
            process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, start_new_session=True)
            try:
                while not _has_row(root):
                    if process.poll() is not None or time.perf_counter() - start > _LIMIT_SECONDS:
                        output.seek(0)
                        last_line = (output.read().strip().splitlines() or ["nothing was printed"])[-1]
                        raise ChildProcessError(f"{' '.join(command)} took no step: {last_line}")
                    time.sleep(_POLL_SECONDS)
                return time.perf_counter() - start
            finally:
                process.kill()
                process.wait()

    def seconds_of_import(self) -> float:
        """Return the seconds that a new Python process takes to start and to import lightning."""
        start = time.perf_counter()
        with subprocess.Popen([sys.executable, "-c", "import lightning.pytorch; print('x', flush=True)"], cwd=ROOT,
                              stdout=subprocess.PIPE) as process:  # fmt: skip
            assert process.stdout is not None
            process.stdout.readline()
            seconds = time.perf_counter() - start
        if process.returncode != 0:
            raise ChildProcessError("lightning cannot be imported")
        return seconds


def speeds_at_once(count: int, options: list[str], prepared: Path, scratch: Path, steps: int) -> list[float]:
    """Start `count` trainings at once and return the tokens per second of each.

    Args:
        count: Number of trainings.
        options: Options of `fit`; output folders and the budget are added.
        prepared: Folder that keeps prepared data.
        scratch: Folder of the run directories.
        steps: Optimizer steps of each.

    Raises:
        ChildProcessError: A training failed.
    """
    roots = [Path(tempfile.mkdtemp(dir=scratch)).absolute() for _ in range(count)]
    commands = [[sys.executable, "-m", "tslm", "fit", *options, f"--data.cache_dir={prepared.absolute()}",
                 f"--trainer.max_steps={steps}", f"--trainer.default_root_dir={root}"] for root in roots]
    processes = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
                 for command in commands]
    try:
        errors = [process.communicate()[1].decode(errors="replace") for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for process, error in zip(processes, errors, strict=True):
        if process.returncode:
            raise ChildProcessError(f"a training failed: {error.strip().splitlines()[-1:]}")
    summaries = [json.loads((root / "lightning_logs/version_0/summary.json").read_text()) for root in roots]
    return [summary["tokens_per_second"] for summary in summaries]


def _has_row(root: Path) -> bool:
    """Return whether the run directory has a metrics.csv with a row."""
    for path in root.glob("lightning_logs/version_0/metrics.csv"):
        with suppress(OSError):
            return path.read_bytes().count(b"\n") > 1
    return False
