"""Compiles the C kernels at their first use and keeps the library in the user's cache folder.

The library's name holds a hash of everything it depends on: the sources, the compiler, the flags, and the processor,
because the code is compiled for the processor at hand. The finished library is renamed into its place, so two processes
that compile at once do not disturb each other. A library is code, so it is loaded only from a folder to which no other
user can write. It is compiled again if another user can write to its file, or its SHA-256 is not the one stored beside
it.
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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tslm.fast.door import UnavailableError, warn_once
from tslm.files import atomic_write, remove_leftovers

if TYPE_CHECKING:  # the tokenizer loads its library without torch
    import numpy.typing as npt
    import torch

HEADER = Path(__file__).with_name("simd.h")  # included by the sources
FLAGS = ["-O3", "-march=native", "-shared", "-fPIC"]
# For code with vectors and threads. For AVX2, GCC vectorises comparisons only if they need not raise floating-point
# exceptions, and square roots only if they need not set errno.
VECTOR_FLAGS = ["-fno-trapping-math", "-fno-math-errno", "-fopenmp"]
_TIMEOUT, _TIMEOUT_VERSION = 120, 20  # seconds, for a compiler that hangs; compiling takes about one
_hanging: set[str] = set()  # compilers that are not asked again


@functools.cache
def load(sources: tuple[Path, ...], dtype: torch.dtype | None = None) -> ctypes.CDLL:
    """Return the library of some C files.

    Args:
        sources: the files.
        dtype: of activations, float32 or bfloat16. None for code that needs neither vectors nor threads, so that any
            compiler will do: Apple's has no OpenMP, and older ones do not know -march=native.

    Raises:
        UnavailableError: the library cannot be compiled or loaded on this machine; the message says why.
    """
    try:
        try:
            return ctypes.CDLL(str(build(sources, dtype)))
        except OSError as error:
            with tempfile.TemporaryDirectory() as folder:  # a loaded library needs its file no longer
                library = ctypes.CDLL(str(build(sources, dtype, Path(folder, "tslm"))))
            warn_once(f"the C kernels are compiled again by each command, because they cannot be kept ({error}): name "
                      "another cache folder in XDG_CACHE_HOME")
            return library
    except (RuntimeError, OSError) as error:  # RuntimeError: the user has no home folder
        raise UnavailableError(f"the C kernels are missing ({error})") from error


def build(sources: tuple[Path, ...], dtype: torch.dtype | None = None, folder: Path | None = None) -> Path:
    """Compile the sources unless an intact library exists, and return its path.

    The environment variable `CC` names the compiler (default `cc`), `XDG_CACHE_HOME` the cache folder (default
    `~/.cache`), and `TSLM_CFLAGS` further flags, such as -mno-avx512f to compile for a processor without AVX-512.

    Args:
        sources: as for `load`.
        dtype: as for `load`.
        folder: where to keep the library, if not in the cache folder.

    Raises:
        UnavailableError: there is no compiler, or it fails; always on Windows.
        OSError: the folder cannot be written.
    """
    if platform.system() == "Windows":
        raise UnavailableError("they are not compiled on Windows")
    compiler = _words_of("CC") or ["cc"]
    if shutil.which(compiler[0]) is None:
        raise UnavailableError(f"no C compiler: {compiler[0]} is not found; install one, or name one in CC")
    flags = [*FLAGS, *(VECTOR_FLAGS if dtype is not None else [])]
    flags += [*(["-DBFLOAT16"] if str(dtype) == "torch.bfloat16" else []), *_words_of("TSLM_CFLAGS")]
    path = _private(folder or _folder()) / f"kernel-{_key(sources, compiler, flags)}.so"
    digest_path = path.with_suffix(".sha256")
    if not _is_intact(path, digest_path):
        remove_leftovers(path.parent)
        with atomic_write(path) as file:  # first, because a folder that cannot be written needs no compiler
            library = _compile([*compiler, *flags], sources, without_vectors=dtype is None)
            with atomic_write(digest_path) as digest_file:
                os.fchmod(digest_file.fileno(), 0o700)  # whatever the umask is
                digest_file.write(_digest(library).encode())
            os.fchmod(file.fileno(), 0o700)
            file.write(library)
    return path


def _compile(command: list[str], sources: tuple[Path, ...], *, without_vectors: bool) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        new = Path(folder) / "kernel.so"
        command = [*command, "-o", str(new), *map(str, sources), "-lm"]
        try:
            _run(command, _TIMEOUT)
        except UnavailableError:
            if not without_vectors:
                raise
            _run([word for word in command if word != "-march=native"], _TIMEOUT)
        if not new.is_file():
            raise UnavailableError(f"{command[0]} makes no library")
        return new.read_bytes()


def address(array: npt.NDArray[Any]) -> ctypes.c_void_p:
    """Return where an array is in memory, as the argument of a function in C."""
    return ctypes.c_void_p(array.ctypes.data)


def _words_of(variable: str) -> list[str]:
    text = os.environ.get(variable, "")
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UnavailableError(f"{variable} is {text!r}, which is no command line ({error})") from error


def _private(folder: Path) -> Path:
    """Create a folder that no other user can write to, or check that an existing one is such a folder.

    Raises:
        UnavailableError: another user owns the folder or can write to it, or it is a symbolic link, or all users can
            write to its parent, which has no sticky bit.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _is_own(folder):
        raise UnavailableError(f"other users can write to {folder}, and a library from there would run as code: remove "
                               "it, or name another cache folder in XDG_CACHE_HOME")
    if folder.parent.stat().st_mode & 0o1002 == 0o002:  # without the sticky bit, others can rename `folder`
        raise UnavailableError(f"all users can replace folders in {folder.parent}, and a library from there would run "
                               f"as code: run chmod o-w on it, or name another cache folder in XDG_CACHE_HOME")
    return folder


def _is_own(path: Path) -> bool:
    """Whether a file or folder, and not one that it links to, belongs to this user and no other can write to it."""
    status = path.lstat()
    return status.st_uid == os.getuid() and not status.st_mode & 0o022 and not path.is_symlink()


def _is_intact(path: Path, digest_path: Path) -> bool:
    """Whether a library exists, no other user can write to it, and it has the SHA-256 in the file beside it."""
    if not (path.is_file() and digest_path.is_file()):  # to open a named pipe would wait for its writer
        return False
    try:
        own = _is_own(path) and _is_own(digest_path)
        return own and _digest(path.read_bytes()).encode() == digest_path.read_bytes()
    except OSError:
        return False


def _digest(library: bytes) -> str:
    return hashlib.sha256(library).hexdigest()


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tslm"


def _key(sources: tuple[Path, ...], compiler: list[str], flags: list[str]) -> str:
    parts = [_run([*compiler, "--version"], _TIMEOUT_VERSION), shlex.join([*compiler, *flags]), _processor()]
    parts += [path.read_text(encoding="utf-8") for path in [*sources, HEADER]]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    """Return what `-march=native` depends on: the processor's features, or its name where features are not listed."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    features = {line for line in lines if line.startswith(("flags", "Features", "model name", "CPU part"))}
    return "\n".join([platform.machine(), platform.processor(), *sorted(features)])


def _run(command: list[str], timeout: float) -> str:
    if command[0] in _hanging:
        raise UnavailableError(f"{command[0]} hangs")
    try:
        # In a session of its own, because Ctrl-C would end the compiler while training finishes its step.
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
                              timeout=timeout, check=False, start_new_session=True)
    except subprocess.TimeoutExpired as error:
        _hanging.add(command[0])
        raise UnavailableError(f"{command[0]} hangs") from error
    except OSError as error:
        raise UnavailableError(f"{command[0]} does not run: {error}") from error
    if done.returncode != 0:
        line = next((line for line in done.stderr.splitlines() if "error:" in line), f"exit code {done.returncode}")
        raise UnavailableError(f"{command[0]} fails: {line}")
    return done.stdout
