"""Files of a run: written completely or not at all, with one sentence if the system refuses."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import torch

from tslm.errors import UserError
from tslm.files import atomic_write, lock, sync_folder, temporary_name

FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)  # the errors of a disk or file without room
ADVICE = "; earlier files are unchanged: make room or allow access there, or choose another folder"


class WriteError(UserError, OSError):
    """A file could not be written, because the disk is full, the folder is missing or it is not writable."""


def write_atomically(path: Path, state: object) -> None:
    """Replace `path` by `torch.save(state)` in one step.

    Raises:
        WriteError: the tensors need more space than the disk has, or writing failed; the old file is unchanged.
    """
    needed = sum(tensor.nbytes for tensor in _tensors(state))
    with suppress(FileNotFoundError):  # writing will say that there is no such folder
        free = shutil.disk_usage(path.parent).free
        if needed > free:
            raise WriteError(f"{path} needs {needed:,} bytes and its disk has {free:,} left{ADVICE}")
    replace_atomically(path, lambda file: torch.save(state, file))


def replace_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a file that replaces `path` (see `files.atomic_write`).

    Raises:
        WriteError: the system refused to write; the old file is unchanged.
    """
    try:
        with atomic_write(path) as file:
            write(file)
    except Exception as error:
        reason = _system_reason(error)
        if reason is None:
            raise
        raise WriteError(f"{path} could not be written ({reason}){ADVICE}") from error


@contextmanager
def named_full_disk(folder: Callable[[], Path]) -> Iterator[None]:
    """Name the run directory if a logger finds the disk full, because the logger's own error names no file.

    TensorBoard writes in a thread and raises its error in the main thread, so the thread's own report is suppressed.

    Raises:
        WriteError: the disk is full.
    """
    hook = threading.excepthook
    threading.excepthook = lambda thread: None if isinstance(thread.exc_value, OSError) else hook(thread)
    try:
        yield
    except Exception as error:
        reason = None if isinstance(error, UserError) else _system_reason(error, FULL)
        if reason is None:
            raise
        raise WriteError(f"{folder()} could not be written ({reason}){ADVICE}") from error
    finally:
        threading.excepthook = hook


def _system_reason(error: BaseException | None, numbers: Container[int | None] | None = None) -> str | None:
    """Return why the system refused; torch raises a RuntimeError, which has the system's error as its context."""
    while error is not None and not (isinstance(error, OSError) and (numbers is None or error.errno in numbers)):
        error = error.__cause__ or error.__context__
    return None if error is None else error.strerror or str(error)


def link_atomically(path: Path, name: Path) -> None:
    """Make `name` another name of `path` in one step: a hard link, or a copy if the file system has no links."""
    if name.exists() and path.samefile(name):
        return  # to rename a file to another name of the same file does nothing, so the temporary name would stay
    temporary = temporary_name(name)
    with path.open("rb") as file:
        lock(file)  # also locks the hard link under the temporary name
        try:
            os.link(path, temporary)
        except OSError:
            replace_atomically(name, lambda copy: shutil.copyfileobj(file, copy))
            return
        os.replace(temporary, name)
    sync_folder(name.parent)


def _tensors(state: object) -> Iterator[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, Mapping):
        for value in state.values():
            yield from _tensors(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from _tensors(value)
