"""Writes files that are complete or absent, and refuses to write over an input, a device or a folder.

Every package may import this module.
"""

from __future__ import annotations

import importlib
import os
import re
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, TypeAlias

from tslm.errors import UserError

fcntl: Any = importlib.import_module("fcntl") if os.name == "posix" else None
# The temporary names of `temporary_name`; those of earlier versions have no number.
LEFTOVER = re.compile(r"\..+\.(\d+|ckpt|csv|json|jsonl|txt|yaml)\.new")


def check_outputs(
    outputs: Iterable[str | os.PathLike[str]], inputs: Iterable[str | os.PathLike[str]] = ()
) -> None:
    """Check that files may be written: each is absent, or a regular file that is not an input.

    Links are followed, so an output that links to an input is refused, too.

    Raises:
        UserError: an output is an input, a folder or a device; the message names it.
    """
    inputs = [path for path in inputs if os.path.exists(path)]
    for output in map(Path, outputs):
        if not output.exists():
            continue
        parent = output.parent.resolve()
        # /dev/stdout leads to a regular file if the output is sent to one, but the link itself would be replaced.
        if not output.is_file() or parent == Path("/dev") or Path("/proc") in parent.parents:
            kind = "a folder" if output.is_dir() else "no regular file"
            raise UserError(f"the output {output} is {kind}; give the path of a file")
        if any(output.samefile(path) for path in inputs):
            raise UserError(f"the output {output} is also an input and would be overwritten; give another output")


Stamp: TypeAlias = tuple[int, int, int]


def file_stamp(path: str | os.PathLike[str]) -> Stamp:
    """Return a file's size, modification time and change time; they differ after any change or replacement.

    The change time is needed because programs can set the modification time, for example to that of a copied file.
    """
    stat = os.stat(path)
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def check_unchanged(stamps: Mapping[str | os.PathLike[str], Stamp]) -> None:
    """Check that files still have the stamps that they had before they were read.

    Raises:
        UserError: a file was changed, replaced or removed; the message names it.
    """
    for path, stamp in stamps.items():
        if not os.path.exists(path) or file_stamp(path) != stamp:
            raise UserError(
                f"{path} was changed or replaced while it was read; start again when no program writes to it"
            )


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces `path` when the `with` block ends, or is removed after an error.

    The content is on the disk before the rename, so that a power cut leaves the old file or the new one.

    Raises:
        OSError: the file cannot be written; the error names `path`, also where the disk is full.
    """
    path = Path(path)
    temporary = temporary_name(path)
    try:
        with _open_locked(temporary) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if fcntl is not None:
                temporary.replace(path)  # while it is locked
        if fcntl is None:
            temporary.replace(path)  # Windows renames no open file
        sync_folder(path.parent)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(temporary)):  # a failed write has no file name
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def new_output(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; the file or folder made there gets this name when the `with` block ends.

    After an error nothing is left.

    Raises:
        UserError: `path` exists, or the disk is full and the system's reason is lost.
        OSError: something cannot be written; the error names `path`, also where the disk is full.
    """
    path = Path(path)
    check_absent(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(".tmp", f".{path.name}.", path.parent, ignore_cleanup_errors=True) as folder:
            unfinished = Path(folder) / path.name
            yield unfinished
            if unfinished.is_file():
                with unfinished.open("rb") as file:
                    os.fsync(file.fileno())
            check_absent(path)
            unfinished.rename(path)
            sync_folder(path.parent)
    except OSError as error:
        if isinstance(error, UserError):
            raise
        if error.errno is None:  # numpy says how many numbers it has written, and not why
            raise UserError(f"{path} could not be written ({error}): make room on its disk, or give another") from error
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def check_absent(path: Path) -> None:
    """Check that an output that is never replaced does not exist.

    Raises:
        UserError: it does.
    """
    if os.path.lexists(path):
        raise UserError(f"the output {path} exists, and it is not replaced: give another --output, or remove it")


def temporary_name(path: Path) -> Path:
    """Return a new name beside `path`. It is random, so no other writer uses it, and no link can be planted there."""
    return path.with_name(f".{path.name}.{secrets.randbits(60)}.new")


def _open_locked(path: Path) -> BinaryIO:
    """Create a file and lock it. If another process removes it before it is locked, create it again."""
    while True:
        file = path.open("xb")  # an error if there is such a file or link
        lock(file)
        if path.exists():
            return file
        file.close()


def lock(file: IO[bytes] | int, *, wait: bool = True) -> bool:
    """Lock a file, or an open handle, until it is closed; return whether it is locked.

    Systems without `flock` lock nothing.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:  # another process holds it, or the file system has no locks
        return False


def is_locked(path: Path) -> bool:
    """Whether another process holds the lock of a file or folder; False on systems without `flock`."""
    if fcntl is None:
        return False
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except OSError:  # the file system has no locks
        return False
    finally:
        os.close(handle)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of `atomic_write` that killed processes left in a folder.

    A process holds a lock on its temporary file, which the system releases when the process ends, however it ends. A
    file on which another process holds a lock is kept.
    """
    for path in folder.glob(".*.new"):
        if LEFTOVER.fullmatch(path.name):
            with suppress(OSError), path.open("rb") as file:
                if lock(file, wait=False):
                    path.unlink()


def sync_folder(folder: Path) -> None:
    """Force the entries of a folder to the disk, so that a rename survives a power cut; does nothing outside POSIX."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
