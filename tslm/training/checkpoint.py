"""Checkpoint files: written completely or not at all, read without running code, and checked for damage."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, BinaryIO

import torch

from tslm.errors import MissingFileError, UserError
from tslm.training.parts import check_parts

fcntl: Any = importlib.import_module("fcntl") if os.name == "posix" else None

CHECKPOINT_KEY = "tslm"  # what `fit` adds to Lightning's checkpoint: architecture, configuration, tokenizer, RNG states
ADVICE = "; earlier checkpoints are unchanged: make room, or choose another folder with --checkpoint.dirpath"
LEFTOVER = re.compile(r"\..+\.(ckpt|json|jsonl|txt)(\.\d+)?\.new")  # the temporary names of the files of a run
PathOrFile = str | os.PathLike[str] | BinaryIO | IO[bytes]


class WriteError(UserError, OSError):
    """A file could not be written, because the disk is full, the folder is missing or it is not writable."""


def save_checkpoint(model: torch.nn.Module, optimizer: torch.optim.Optimizer, iteration: int, out: PathOrFile) -> None:
    """Write the states of the model and the optimizer, and the iteration, to a path or a binary file.

    A path is written atomically: after a crash it holds the old file or the new one, never a part of one.

    Example:
        >>> save_checkpoint(model, optimizer, 1000, "model.pt")
        >>> load_checkpoint("model.pt", model, optimizer)
        1000

    Raises:
        WriteError: the folder does not exist or is not writable, or the disk is full.
    """
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "iteration": iteration}
    if isinstance(out, str | os.PathLike):
        write_atomically(Path(out), state)
    else:
        torch.save(state, out)


def load_checkpoint(src: PathOrFile, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restore what `save_checkpoint` wrote, and return the iteration.

    Raises:
        MissingFileError: the path does not exist.
        UserError: the file is damaged, or was not written by `save_checkpoint`, or the model has other names or shapes.
    """
    state = read_checkpoint(src)
    missing = {"model", "optimizer", "iteration"} - set(state)
    if missing:
        raise UserError(f"{_name(src)} was not written by save_checkpoint: it lacks {', '.join(sorted(missing))}")
    check_shapes(state["model"], model.state_dict(), _name(src))
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["iteration"])


def check_shapes(saved: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], name: str) -> None:
    """Raise a UserError that names the first weight whose shape differs between a checkpoint and a model."""
    for key in sorted(set(saved) | set(wanted)):
        have, want = (tuple(side[key].shape) if key in side else "absent" for side in (saved, wanted))
        if have != want:
            raise UserError(
                f"{name} does not fit this model: {key} is {have} in the checkpoint and {want} in the model; build the "
                "model with the sizes that it was trained with"
            )


def read_checkpoint(src: PathOrFile, *, mmap: bool = False) -> dict[str, Any]:
    """Load a checkpoint's dictionary on the CPU. Loading never runs code (`weights_only`).

    Args:
        src: path or binary file.
        mmap: map the tensors into memory instead of reading them, to read only the small values of a large file. The
            checksums are not verified then.

    Raises:
        MissingFileError: the path does not exist.
        UserError: the file is damaged, may not be read, or is not a checkpoint.
    """
    if isinstance(src, str | os.PathLike) and not Path(src).is_file():
        raise MissingFileError(
            f"there is no checkpoint at {os.fspath(src)}; the checkpoints of runs are in lightning_logs/*/checkpoints/"
        )
    if isinstance(src, str | os.PathLike) and (refusal := _refusal(Path(src))):
        raise UserError(f"{_name(src)} cannot be read ({refusal}): change its permissions, or give another --ckpt_path")
    if isinstance(src, str | os.PathLike) and not is_intact(Path(src), contents=not mmap):  # torch verifies nothing
        raise UserError(f"{_name(src)} is damaged or no checkpoint: take an earlier one from its folder")
    try:
        state = torch.load(src, map_location="cpu", weights_only=True, mmap=mmap or None)
    except Exception as error:  # torch raises RuntimeError, EOFError, OSError, UnpicklingError, … for a damaged file
        raise UserError(
            f"{_name(src)} is damaged or no checkpoint ({_first_line(error)}): take an earlier one from its folder"
        ) from error
    if not isinstance(state, dict):
        raise UserError(f"{_name(src)} is no checkpoint: it holds a {type(state).__name__}, not a dictionary")
    return state


def fit_part(state: Mapping[str, Any], path: object, *, resume: bool = False) -> dict[str, Any]:
    """Return what `fit` adds to a checkpoint: architecture, tokenizer, configuration, random number generators.

    Args:
        state: what the file holds.
        path: the file, for the message.
        resume: also check the parts that only resuming reads.

    Raises:
        UserError: `fit` did not write this checkpoint, or one of its parts is missing or has another form.
    """
    part = state.get(CHECKPOINT_KEY)
    if not isinstance(part, dict):
        raise UserError(f"{path} was not written by `python -m tslm fit`: give another --ckpt_path")
    check_parts(state, path, resume=resume)
    return part


def _refusal(path: Path) -> str | None:
    """Return why the system does not open a file for reading; None if it does."""
    try:
        path.open("rb").close()
        return None
    except OSError as error:
        return error.strerror or str(error)


def is_intact(path: Path, *, contents: bool = True) -> bool:
    """Whether a checkpoint file is complete: torch writes a zip archive, whose records carry a CRC-32.

    Torch does not compress its records. Records that would unpack to more bytes than the file has are not read, and
    neither is a pickle that calls `bytearray`, the one call that takes any amount of memory and that torch allows.

    Args:
        path: the file.
        contents: whether the records are read, to verify their CRC-32, and not only the directory of the archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(record.file_size for record in archive.infolist()) > path.stat().st_size:
                return False
            if any(b"\nbytearray\n" in archive.read(name) for name in archive.namelist() if name.endswith(".pkl")):
                return False
            return not contents or archive.testzip() is None
    except Exception:  # zipfile raises many types for a damaged directory of records
        return False


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
    """Let `write` fill a temporary file in the same folder, force it to the disk, and rename it to `path`.

    Raises:
        WriteError: the system refused to write; the old file is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with _open_locked(temporary) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            if fcntl is not None:
                os.replace(temporary, path)  # while it is locked
        if fcntl is None:
            os.replace(temporary, path)  # Windows renames no open file
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        reason = _system_reason(error)
        if reason is None:
            raise
        raise WriteError(f"{path} could not be written ({reason}){ADVICE}") from error
    sync_folder(path.parent)


def _system_reason(error: BaseException | None) -> str | None:
    """Return why the system refused; torch replaces the system's error by a RuntimeError, whose context it is."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return None if error is None else error.strerror or str(error)


def link_atomically(path: Path, name: Path) -> None:
    """Make `name` another name of `path` in one step: a hard link, or a copy if the file system has no links."""
    if name.exists() and path.samefile(name):
        return  # to rename a file to another name of the same file does nothing, so the temporary name would stay
    temporary = name.with_name(f".{name.name}.{os.getpid()}.new")
    with path.open("rb") as file:
        lock(file)  # and thereby its temporary name
        try:
            temporary.unlink(missing_ok=True)
            os.link(path, temporary)
        except OSError:
            replace_atomically(name, lambda copy: shutil.copyfileobj(file, copy))
            return
        os.replace(temporary, name)
    sync_folder(name.parent)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a folder of a run.

    A process holds a lock on its temporary file, which the system releases when the process ends, however it ends. A
    file on which another process holds a lock is kept.
    """
    for path in folder.glob(".*.new"):
        if LEFTOVER.fullmatch(path.name):
            with suppress(OSError), path.open("rb") as file:
                if lock(file, wait=False):
                    path.unlink()


def lock(file: IO[bytes], *, wait: bool = True) -> bool:
    """Lock a file until it is closed; return whether it is locked. Systems without `flock` lock nothing."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:  # another process holds it, or the file system has no locks
        return False


def _open_locked(path: Path) -> BinaryIO:
    """Create a file and lock it; again, if another process has removed it before it was locked."""
    while True:
        file = path.open("wb")
        lock(file)
        if path.exists():
            return file
        file.close()


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to the disk, so that a rename survives a power cut; does nothing outside POSIX."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _tensors(state: object) -> Iterator[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, Mapping):
        for value in state.values():
            yield from _tensors(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from _tensors(value)


def _name(src: PathOrFile) -> str:
    return os.fspath(src) if isinstance(src, str | os.PathLike) else "the file"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:120]
