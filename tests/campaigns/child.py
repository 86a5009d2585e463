"""Runs uses of files in a forked child, because they may crash or hang, and checks how they end."""

import faulthandler
import json
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from tests.campaigns.forked import forget_kernels
from tslm.__main__ import _sentence
from tslm.errors import UserError

LIMIT = 60.0  # seconds after which a use of a file hangs


class Outcome(NamedTuple):
    """How a use ended: its exit code (negative: a signal; None: a hang), its output, and its result."""

    code: int | None
    out: str
    err: str
    result: object


Use = Callable[[], object]  # runs in the world's folder; returns the result, or raises SystemExit with an exit code


def in_child(use: Use, world: Path, limit: float = LIMIT) -> Outcome:
    """Run a use in a forked process, in the world's folder."""
    sys.stdout.flush()
    sys.stderr.flush()
    pipes = [os.pipe() for _ in range(3)]  # output, errors, result: a limit on the size of files does not stop them
    pid = os.fork()
    if pid == 0:
        _child(use, [writer for _, writer in pipes], world)
    for reader, writer in pipes:
        os.close(writer)
        os.set_blocking(reader, False)
    texts, code = [b"", b"", b""], None
    deadline = time.monotonic() + limit
    while code is None and time.monotonic() < deadline:
        time.sleep(0.01)
        done, status = os.waitpid(pid, os.WNOHANG)
        code = os.waitstatus_to_exitcode(status) if done else None
        texts = [text + _read(reader) for text, (reader, _) in zip(texts, pipes, strict=True)]
    if code is None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    for reader, _ in pipes:
        os.close(reader)
    out, err, result = (text.decode(errors="replace") for text in texts)
    return Outcome(code, out, err, json.loads(result) if code == 0 else None)


def _read(pipe: int) -> bytes:
    """Return what is in a pipe, without waiting for more."""
    text = b""
    with suppress(BlockingIOError):
        while part := os.read(pipe, 1 << 16):
            text += part
    return text


def _child(use: Use, pipes: list[int], world: Path) -> None:
    code: object = 1
    try:
        faulthandler.disable()  # pytest's handler would print a stack after a signal
        for number, pipe in enumerate(pipes[:2], start=1):
            os.dup2(pipe, number)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", errors="replace", closefd=False) for n in (1, 2))
        warnings.simplefilter("default")
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.set_num_threads(1)
        os.chdir(world)
        os.environ["XDG_CACHE_HOME"] = str(world / "kernels")
        forget_kernels()
        result = use()
        os.write(pipes[2], json.dumps(result).encode())
        code = 0
    except SystemExit as stopped:
        code = stopped.code
    except (UserError, OSError) as error:  # a use may call the library, which raises what a command would print
        sentence = _sentence(error)
        print(f"tslm: {sentence}" if sentence else traceback.format_exc(), file=sys.stderr)
        code = 2 if sentence else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def check_ending(outcome: Outcome, names: list[str]) -> None:
    """Raise AssertionError unless a use worked, or ended with one sentence that has one of the names."""
    if outcome.code is None:
        raise AssertionError("hangs")
    if outcome.code not in (0, 2) or "Traceback" in outcome.err + outcome.out:
        raise AssertionError(f"ended with {outcome.code}")
    sentences = [line for line in outcome.err.splitlines() if line.startswith("tslm: ")]
    if outcome.code == 2 and not (sentences and any(name in sentences[-1] for name in names)):
        raise AssertionError(f"no sentence names {names}")


def describe(use: Use) -> str:
    """Return the name of a use, with its arguments."""
    return f"{use.func.__name__} {' '.join(use.args)}" if isinstance(use, partial) else use.__name__
