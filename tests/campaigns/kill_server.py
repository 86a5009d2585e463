"""Runs command lines of tslm in forked processes, and kills them.

Importing torch and lightning takes seconds, so a server imports everything once, starts no thread, and forks a process
for each run. The forked process does what `python -m tslm` does, up to the functions that run at its exit.
"""

from __future__ import annotations

import atexit
import dataclasses
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from tests.campaigns.kill_points import Point, count_in

MODULES = ("tslm.__main__", "tslm.cli", "torch.utils.tensorboard", "attr",
           "fsspec.implementations.local", "tslm.fast.forms")
ORPHAN_SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class Signal:
    """A signal to a process: `delay` seconds after `since`, the `start` of the run or of its first `step`."""

    delay: float
    since: str = "start"
    number: int = signal.SIGKILL
    process: int = 0


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a run ended."""

    codes: list[int]  # of its processes; -9 after SIGKILL
    output: str
    seconds: float  # from the start to the end of the last process
    first_step: float | None  # seconds from the start to the first optimizer step
    alone: float  # seconds from the last signal to the end of the last process
    problem: str  # a timeout, or processes that outlived the run
    killed: bool  # whether a signal was sent to a running process

    @property
    def code(self) -> int:
        """The exit code of the first process."""
        return self.codes[0]


class Server:
    """The server's process. Its folder receives what the runs print."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "output.txt"
        self.planted = ""  # statements that each forked process executes first: the faults that a test plants
        self._process = subprocess.Popen([sys.executable, "-m", __name__], stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, text=True,
                                         env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip

    def run(self, words: list[str], folder: Path, *, signals: Sequence[Signal] = (),
            point: Point | None = None, measure: str | None = None, processes: int = 1, fork: bool = True,
            seconds: float = 180.0) -> Ended:  # fmt: skip
        """Run a command line in a folder.

        Args:
            words: the words after `python -m tslm`.
            folder: the working folder.
            signals: signals to send.
            point: where the process kills itself.
            measure: a function, as in `Point`. A line `measured {…}` of the output counts each of its calls.
            processes: number of processes, of one training with `ddp`.
            fork: False starts `python -m tslm` instead of forking.
            seconds: a timeout, after which the processes are killed.
        """
        job = {"words": words, "folder": str(folder), "log": str(self.log), "processes": processes, "fork": fork,
               "signals": [dataclasses.asdict(each) for each in signals], "measure": measure, "seconds": seconds,
               "planted": self.planted, "point": dataclasses.asdict(point) if point else None}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return Ended(output=self.log.read_text(encoding="utf-8", errors="replace"), **answer)

    def close(self) -> None:
        """End the server."""
        self._process.communicate()


def main() -> NoReturn:
    """Serve until the input ends; in a forked process, run its command line."""
    for name in MODULES:
        importlib.import_module(name)
    while line := sys.stdin.readline():
        job = json.loads(line)
        reader, writer = os.pipe()
        port = _free_port()  # over which the processes of a training find each other
        Path(job["log"]).write_bytes(b"")
        started: list[Any] = []  # forked or started
        for number in range(job["processes"]):
            if not job["fork"]:
                started.append(_start(job))
            elif pid := os.fork():
                started.append(pid)
            else:
                os.close(reader)
                _become(job, number, port, writer)
        os.close(writer)
        pids = [each if isinstance(each, int) else each.pid for each in started]
        print(json.dumps(_watch(job, pids, reader)), flush=True)
        os.close(reader)
    os._exit(0)  # to free every object takes seconds


def _start(job: dict[str, Any]) -> subprocess.Popen[bytes]:
    with open(job["log"], "ab") as log:
        return subprocess.Popen([sys.executable, "-m", "tslm", *job["words"]], stdin=subprocess.DEVNULL, stdout=log,
                                stderr=log, cwd=job["folder"], process_group=0)  # fmt: skip


def _become(job: dict[str, Any], number: int, port: int, writer: int) -> NoReturn:
    """Become one of the processes of a job: run its command line and end with its exit code."""
    from tslm import __main__ as program

    os.setpgid(0, 0)
    log = os.open(job["log"], os.O_WRONLY | os.O_APPEND)
    for target in (1, 2):
        os.dup2(log, target)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(job["folder"])
    if job["processes"] > 1:
        os.environ.update({"LOCAL_RANK": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    sys.argv = ["tslm", *job["words"]]
    _report_first_step(writer)
    exec(job["planted"], {})
    if job["measure"] is not None:
        count_in(job["measure"])
    if job["point"] is not None:
        point = Point(**job["point"])
        count_in(point.function, point)
    code = 1
    try:
        code = program.run()
    except BaseException:
        traceback.print_exc()
    finally:  # what the interpreter does at its end, without freeing every object, which takes seconds after a fork
        getattr(threading, "_shutdown")()  # noqa: B009
        getattr(atexit, "_run_exitfuncs")()  # noqa: B009
        sys.stdout.flush()
        os._exit(code)


def _report_first_step(writer: int) -> None:
    from tslm.loops.lightning import StepEpochLoop

    inner = StepEpochLoop.train_step

    def first(self: StepEpochLoop) -> None:
        os.write(writer, b".")
        setattr(StepEpochLoop, "train_step", inner)  # noqa: B010 (mypy)
        inner(self)

    setattr(StepEpochLoop, "train_step", first)  # noqa: B010 (mypy)


def _watch(job: dict[str, Any], pids: list[int], reader: int) -> dict[str, Any]:
    """Send the signals and wait for all processes."""
    start = last = time.monotonic()
    times = {"start": start}
    signals, codes = [Signal(**each) for each in job["signals"]], dict[int, int]()
    problem = ""
    while len(codes) < len(pids):
        time.sleep(0.0005)
        now = time.monotonic()
        if "step" not in times and select.select([reader], [], [], 0)[0] and os.read(reader, 1):
            times["step"] = now
        if now > start + job["seconds"]:
            problem = f"no end after {job['seconds']} s"
            signals = [Signal(0, process=process) for process in range(len(pids))]
        for each in signals.copy():
            pid = _pid(pids, each.process)
            if pid is not None and pid not in codes and now >= times.get(each.since, now + 1) + each.delay:
                signals.remove(each)
                os.kill(pid, each.number)
                last = now
        for pid in pids:
            if pid not in codes:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    codes[pid] = os.waitstatus_to_exitcode(status)
    limit = time.monotonic() + ORPHAN_SECONDS
    while groups := list(filter(_has_group, pids)):  # processes that these have started
        time.sleep(0.001)
        if time.monotonic() > limit:
            problem = problem or f"processes outlived the run by {ORPHAN_SECONDS} s"
            for pid in groups:
                os.killpg(pid, signal.SIGKILL)
            break
    end = time.monotonic()
    return {"codes": [codes[pid] for pid in pids], "seconds": end - start, "alone": end - last, "problem": problem,
            "killed": last > start,
            "first_step": times["step"] - start if "step" in times else None}  # fmt: skip


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _pid(pids: list[int], process: int) -> int | None:
    """Return a process of a run; those that are not started by the server are children of the first."""
    if process < len(pids):
        return pids[process]
    children = Path(f"/proc/{pids[0]}/task/{pids[0]}/children").read_text(encoding="utf-8").split()
    return int(children[process - 1]) if process <= len(children) else None


def _has_group(pid: int) -> bool:
    try:
        os.killpg(pid, 0)
        return True
    except ProcessLookupError:
        return False


if __name__ == "__main__":
    main()
