"""Run a command line of `python -m tslm` in a forked child, so that no state leaks and a crash or a hang is seen.

Importing torch and lightning takes seconds. A child starts with everything imported, and takes milliseconds.
"""

import contextlib
import faulthandler
import importlib
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, NamedTuple, NoReturn

import torch

from tslm import __main__
from tslm.fast import door
from tslm.fast.cpu import build

EARLIEST = 0.02  # seconds; before, the command may not have begun to handle Ctrl-C
LIMIT = 120  # seconds; even on a busy machine a command with a tiny model takes less than ten
MODULES = [*{module for module, _ in __main__.COMMANDS.values()}, "tensorboard.summary.writer.event_file_writer",
           "torch.utils.tensorboard", "torch.utils.checkpoint", "lightning.pytorch.loggers"]  # fmt: skip


class Outcome(NamedTuple):
    """How a command ended.

    Attributes:
        code: its exit code; the negative number of the signal that ended it.
        text: what it printed.
        peak: its largest resident memory, in bytes.
    """

    code: int
    text: str
    peak: int


def run_command(words: Sequence[str], folder: Path, *, limit: float = LIMIT, memory: int | None = None,
                interrupt_after: float | None = None) -> Outcome:
    """Run a command line in a folder; kill it after `limit` seconds, so that a hang ends with code -9.

    Args:
        words: the words after `python -m tslm`.
        folder: the working folder.
        limit: seconds.
        memory: bytes of address space that the command may use in addition to those of this process.
        interrupt_after: seconds after which Ctrl-C is sent, once.
    """

    def command() -> int:
        sys.argv = ["tslm", *words]
        return __main__.run()

    return run_forked(command, folder, limit=limit, memory=memory, interrupt_after=interrupt_after)


def run_forked(call: Callable[[], int | None], folder: Path, *, limit: float = LIMIT, memory: int | None = None,
               interrupt_after: float | None = None) -> Outcome:
    """Run any function in a forked child; its result is the exit code, and 1 after an exception."""
    for module in MODULES:
        importlib.import_module(module)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    with tempfile.TemporaryFile() as output:
        ready, is_ready = os.pipe()
        pid = os.fork()
        if pid == 0:
            _child(call, folder, output, is_ready, memory)
        os.close(is_ready)
        try:
            os.read(ready, 1)
            status, peak = _wait(pid, limit, interrupt_after)
        finally:
            os.close(ready)
            _kill_group(pid)
        output.seek(0)
        return Outcome(os.waitstatus_to_exitcode(status), output.read().decode(errors="replace"), peak)


def _child(call: Callable[[], int | None], folder: Path, output: IO[bytes], is_ready: int,
           memory: int | None) -> NoReturn:
    code: int | None = 1
    try:
        faulthandler.disable()  # of pytest, which would print the stack of a child that a signal ends
        os.setsid()  # a group of its own, which is killed with all processes that the command has started
        os.chdir(folder)
        with open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), 0)
        for number in (1, 2):
            os.dup2(output.fileno(), number)
        sys.stdout, sys.stderr = (open(number, "w", 1, "utf-8", errors, closefd=False)  # noqa: SIM115
                                  for number, errors in ((1, "strict"), (2, "backslashreplace")))  # as in Python
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, __main__._interrupt)
        torch.set_num_threads(1)  # the threads of this process do not exist in a child
        forget_kernels()
        if memory is not None:
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
            resource.setrlimit(resource.RLIMIT_AS, 2 * (pages * resource.getpagesize() + memory,))
        os.write(is_ready, b"x")
        code = call()
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code or 0)


def forget_kernels() -> None:
    """Forget the kernels that this process has loaded and compared, so that a child loads them from its own folder."""
    build.load.cache_clear()
    door.forget()


def _wait(pid: int, limit: float, interrupt_after: float | None) -> tuple[int, int]:
    start = time.monotonic()
    while True:
        found, status, usage = os.wait4(pid, os.WNOHANG)
        if found:
            return status, usage.ru_maxrss * 1024
        passed = time.monotonic() - start
        if interrupt_after is not None and passed >= max(interrupt_after, EARLIEST):
            os.kill(pid, signal.SIGINT)
            interrupt_after = None
        if passed >= limit:
            _kill_group(pid)
        time.sleep(0.005)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # all processes have ended
        os.killpg(pid, signal.SIGKILL)
