"""The directory of a run: its name, its creation before the data is prepared, and the lock that marks a running one."""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from types import FrameType

import lightning.pytorch as pl
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from tslm.errors import UserError
from tslm.files import fcntl, is_locked, lock
from tslm.training.runs import RUNS, continued_name, run_of

FileLogger = TensorBoardLogger | CSVLogger  # they choose the number of their folder when it is first needed


def run_dir(trainer: pl.Trainer) -> Path:
    """Return the run directory. `trainer.log_dir` is collective; this function may be called by one process alone."""
    for logger in trainer.loggers:
        if logger.log_dir:
            return Path(logger.log_dir)
    unlogged: Path = getattr(trainer, "unlogged_dir", Path(trainer.default_root_dir))
    return unlogged


@contextmanager
def reserved_run_dir(trainer: pl.Trainer, resumed: Path | None, begun: Callable[[], bool]) -> Iterator[None]:
    """Create the run directory, and lock it while the `with` block runs, which marks the run as running.

    A logger uses the version that the user gave it, or else a new `version_N` in its folder. Only the first process
    calls this; the others receive its paths.

    Args:
        trainer: the trainer whose loggers write to the directory.
        resumed: the checkpoint from which the run is resumed; a version that the user gave may be that of its run.
        begun: whether the training has taken a step. If the block fails before, or SIGTERM ends the process, no
            directory is left.

    Raises:
        UserError: the directory of a version that the user gave exists, or another process trains in it.
    """
    created = _create_run_dirs(trainer, resumed)
    handle = None if fcntl is None else os.open(run_dir(trainer), os.O_RDONLY)

    def remove_unused() -> None:
        """Remove the directories, unless the training has begun."""
        for folder in [] if begun() else created:
            shutil.rmtree(folder, ignore_errors=True)

    def end(signum: int, frame: FrameType | None) -> None:
        """End the process, unless Lightning's handler, which calls this one, has asked for a stop after a step."""
        if not trainer.received_sigterm:
            remove_unused()
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)

    is_ours = (threading.current_thread() is threading.main_thread()
               and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
    if is_ours:
        signal.signal(signal.SIGTERM, end)
    try:
        if handle is not None:
            lock(handle, wait=False)  # if `runs` looks at this very moment, the run is not shown as running
        yield
    except BaseException:
        remove_unused()
        raise
    finally:
        if is_ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if handle is not None:
            os.close(handle)


def _create_run_dirs(trainer: pl.Trainer, resumed: Path | None) -> list[Path]:
    loggers = [each for each in trainer.loggers if isinstance(each, FileLogger)]
    unnamed = [each for each in loggers if each._version is None]
    created: list[Path] = getattr(trainer, "reserved", [])  # by an earlier `fit` of this trainer
    earlier = len(created)
    for folder in {Path(each.log_dir) for each in loggers if each not in unnamed}.difference(created):
        if folder.exists() and resumed is not None and resumed.resolve().is_relative_to(folder.resolve()):
            if is_locked(folder):
                raise UserError(f"another process trains in {folder}: wait for its end, or give the logger another "
                                "version, or none")
        else:
            create_run_dir(folder)
            created.append(folder)
    roots = {Path(logger.root_dir) for logger in unnamed}
    if not any(logger.log_dir for logger in trainer.loggers):
        roots.add(Path(trainer.default_root_dir) / RUNS)
    for root in roots:
        created.append(_reserve(trainer, root, resumed))
        for logger in unnamed:
            if Path(logger.root_dir) == root:
                logger._version = created[-1].name
    if not any(logger.log_dir for logger in trainer.loggers):
        setattr(trainer, "unlogged_dir", created[-1])  # noqa: B010 (not of a stock Trainer)
    run_dir(trainer).mkdir(parents=True, exist_ok=True)  # TensorBoard's `sub_dir` is a folder in that of the version
    return created[earlier:]


def _reserve(trainer: pl.Trainer, root: Path, resumed: Path | None) -> Path:
    """Create the directory of a run: with the user's name, as the continuation of a run beside it, or `version_N`."""
    name = getattr(trainer, "run_name", None)
    run = None if resumed is None else run_of(resumed, Path(trainer.default_root_dir)).resolve()
    if run is not None:
        setattr(trainer, "continues", run.name)  # noqa: B010 (not of a stock Trainer)
    if name is None and run is not None and run.parent == root.resolve():
        return new_run_dir(root, f"{continued_name(run.name) or run.name}-continued")
    if name is None or getattr(trainer, "numbered", False):
        return new_run_dir(root, name)
    create_run_dir(root / name, "give another --name")
    return root / str(name)


def new_run_dir(root: Path, name: str | None = None) -> Path:
    """Create the next free `version_N` in a folder, or the first free one of NAME, NAME-2, …; no other run gets it.

    Example: `version_0` is continued as `version_0-continued`, `version_0-continued-2` and so on.

    Raises:
        UserError: the folder cannot be created, or nothing can be created in it.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        taken = [int(found[1]) for path in root.iterdir() if (found := re.fullmatch(r"version_(\d+)", path.name))]
        for number in count(1):
            free = f"version_{max(taken, default=-1) + number}" if name is None else name + f"-{number}" * (number > 1)
            with suppress(FileExistsError):  # another process was faster
                (root / free).mkdir()
                return root / free
    except OSError as error:
        raise UserError(f"a run directory cannot be made in {root} ({error.strerror}): give "
                        "--trainer.default_root_dir a folder that is writable") from error
    raise AssertionError


def checked_name(name: str) -> str:
    """Return the name of a run, which is that of a folder.

    Raises:
        UserError: it is no plain name.
    """
    if name in ("last", "best"):
        raise UserError(f"the name of the run is {name!r}, a checkpoint of the newest run: give another --name")
    if not re.fullmatch(r"[^-/\\\0.][^/\\\0]{0,99}", name) or not name.isprintable() or name != name.strip():
        raise UserError(f"the name of the run is {name!r}: give --name up to 100 characters without / and \\, of which "
                        "the first is no full stop, hyphen or space, and the last no space")
    return name


def create_run_dir(folder: Path, remedy: str = "give the logger another version, or none") -> None:
    """Create a run directory whose name the user chose.

    Raises:
        UserError: it exists, so it belongs to another run; or it cannot be created.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
    except FileExistsError as error:
        raise UserError(f"the run directory {folder} exists, and another run may be in it: {remedy}") from error
    except OSError as error:
        raise UserError(f"the run directory {folder} cannot be made ({error.strerror}): give the logger another "
                        "save_dir") from error
