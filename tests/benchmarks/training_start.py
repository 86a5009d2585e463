"""How long a user waits for the first training step: options of `fit` come in, seconds from the command on go out."""

import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from tests.benchmarks.measure import ROOT

_POLL_SECONDS = 0.005
_LIMIT_SECONDS = 300


class FirstStep:
    """A command `python -m tslm fit …` that is watched from outside.

    It is told to report every step; the first line of its metrics.csv, written behind the first step, ends the clock,
    and the command.

    Args:
        options: of `fit`; where it writes is added.
        prepared: the folder where the prepared data is kept.
        scratch: gets the run directories.
    """

    def __init__(self, options: list[str], prepared: Path, scratch: Path) -> None:
        self.options = [*options, f"--data.cache_dir={prepared.absolute()}", "--trainer.log_every_n_steps=1",
                        "--trainer.compile=false"]
        self.scratch = scratch.absolute()
        self.number = 0

    def prepare(self) -> None:
        """Run it once, so that the data is prepared and every file is in the system's cache."""
        self.seconds()

    def seconds(self) -> float:
        """Start it afresh; return the seconds to the end of its first step.

        Raises:
            ChildProcessError: it ended before, or took more than five minutes; the sentence has its last line.
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
        """Return the seconds that a fresh Python takes until lightning is imported."""
        start = time.perf_counter()
        with subprocess.Popen([sys.executable, "-c", "import lightning.pytorch; print('x', flush=True)"], cwd=ROOT,
                              stdout=subprocess.PIPE) as process:  # fmt: skip
            assert process.stdout is not None
            process.stdout.readline()
            seconds = time.perf_counter() - start
        if process.returncode != 0:
            raise ChildProcessError("lightning cannot be imported")
        return seconds


def _has_row(root: Path) -> bool:
    """Tell whether a metrics.csv with a row under its heading lies in a run directory below."""
    for path in root.glob("lightning_logs/version_0/metrics.csv"):
        with suppress(OSError):
            return path.read_bytes().count(b"\n") > 1
    return False
