"""Kernels in C, compiled at their first use and kept: sources and a dtype come in, a loaded library goes out.

A library lies in the user's cache folder under a name that holds a hash of everything it depends on: the sources, the
compiler, the flags, and the processor, since it is compiled for the one at hand. It appears there by a rename, so two
processes that compile at once do not disturb each other.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

import torch

HEADER = Path(__file__).with_name("kernel.h")  # which all sources share
FLAGS = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"]
_SPINS = "1000"  # some 20 microseconds; the threads of an undisturbed step rarely wait longer
_SECONDS = 120  # for a compiler that hangs; compiling takes one


class BuildError(RuntimeError):
    """There is no library, for the reason given."""


@functools.cache
def load(sources: tuple[Path, ...], dtype: torch.dtype, what: str) -> ctypes.CDLL | None:
    """The library of some sources that multiplies in `dtype`; None, with one warning, where it cannot be had.

    Args:
        sources: files in C.
        dtype: float32 or bfloat16.
        what: the work that torch does instead, for the warning: "text is generated".
    """
    try:
        return _open(build(sources, dtype))
    except (RuntimeError, OSError) as error:  # RuntimeError also of a user without a home
        warnings.warn(f"{what} by torch's operators, more slowly: the C kernel is missing ({error})", stacklevel=2)
        return None


def build(sources: tuple[Path, ...], dtype: torch.dtype) -> Path:
    """Compile the sources unless that has been done, and return the library's path.

    `CC` names another compiler than `cc`, and `XDG_CACHE_HOME` another cache folder than `~/.cache`.

    Raises:
        BuildError: there is no compiler, or it fails; always on Windows.
        OSError: the cache folder cannot be written.
    """
    if platform.system() == "Windows":
        raise BuildError("it is not compiled on Windows")
    compiler = shlex.split(os.environ.get("CC") or "cc")
    if shutil.which(compiler[0]) is None:
        raise BuildError(f"no C compiler: {compiler[0]} is not found; install one, or name one in CC")
    flags = [*FLAGS, *(["-DBFLOAT16"] if dtype == torch.bfloat16 else [])]
    path = _folder() / f"kernel-{_key(sources, compiler, flags)}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=path.parent) as folder:
            new = Path(folder) / path.name
            _run([*compiler, *flags, "-o", str(new), *map(str, sources), "-lm"])
            os.replace(new, path)
    return path


def _open(path: Path) -> ctypes.CDLL:
    """Load a library so that its threads, waiting for each other, soon sleep instead of spinning.

    They wait some 40 times a step. With GNU's default, milliseconds of spinning, a step takes up to 30 times as long
    when another program is busy on the same cores, and with this one twice as long. It is read while GNU's OpenMP
    library is loaded: where torch has brought that along under its usual name, the kernels share torch's threads, and
    this changes nothing.
    """
    before = os.environ.get("GOMP_SPINCOUNT")
    os.environ["GOMP_SPINCOUNT"] = before or _SPINS
    try:
        return ctypes.CDLL(str(path))
    finally:
        if before is None:
            del os.environ["GOMP_SPINCOUNT"]


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tslm"


def _key(sources: tuple[Path, ...], compiler: list[str], flags: list[str]) -> str:
    parts = [_run([*compiler, "--version"]), shlex.join([*compiler, *flags]), _processor()]
    parts += [path.read_text(encoding="utf-8") for path in [*sources, HEADER]]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    """What `-march=native` looks at: the processor's features, or its name where they are not told."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    told = {line for line in lines if line.startswith(("flags", "Features", "model name", "CPU part"))}
    return "\n".join([platform.machine(), platform.processor(), *sorted(told)])


def _run(command: list[str]) -> str:
    try:
        # In a session of its own: Ctrl-C is for the training, which finishes its step, and would end a compiler.
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False,
                              start_new_session=True)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]} does not run: {error}") from error
    if done.returncode != 0:
        line = next((line for line in done.stderr.splitlines() if "error" in line), f"exit code {done.returncode}")
        raise BuildError(f"{command[0]} fails: {line}")
    return done.stdout
