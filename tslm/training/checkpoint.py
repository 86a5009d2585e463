"""Checkpoints as files: written whole or not at all, read without running code, and checked before they are trusted."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO

import torch

CHECKPOINT_KEY = "tslm"  # where a checkpoint of `fit` holds what only we know: architecture, config, tokenizer, RNG
PathOrFile = str | os.PathLike[str] | BinaryIO | IO[bytes]


def save_checkpoint(model: torch.nn.Module, optimizer: torch.optim.Optimizer, iteration: int, out: PathOrFile) -> None:
    """Write the model's and the optimizer's state and the iteration to a path or a binary file.

    A path is written atomically: behind a crash it holds the old file or the new one, never half of one.

    Raises:
        OSError: the folder is missing, or the disk is full.
    """
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "iteration": iteration}
    if isinstance(out, str | os.PathLike):
        write_atomically(Path(out), state)
    else:
        torch.save(state, out)


def load_checkpoint(src: PathOrFile, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restore what `save_checkpoint` wrote and return the iteration.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: the file is damaged or not such a checkpoint, or the model has other names or shapes.
    """
    state = read_checkpoint(src)
    missing = {"model", "optimizer", "iteration"} - set(state)
    if missing:
        raise ValueError(f"{_name(src)} is no checkpoint of save_checkpoint: it lacks {', '.join(sorted(missing))}")
    check_shapes(state["model"], model.state_dict(), _name(src))
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["iteration"])


def check_shapes(saved: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], name: str) -> None:
    """Raise a ValueError that names the first weight in which a checkpoint and a model differ."""
    for key in sorted(set(saved) | set(wanted)):
        have, want = (tuple(side[key].shape) if key in side else "absent" for side in (saved, wanted))
        if have != want:
            raise ValueError(
                f"{name} does not fit this model: {key} is {have} in the checkpoint and {want} in the model; build the "
                "model with the sizes that it was trained with"
            )


def read_checkpoint(src: PathOrFile, *, mmap: bool = False) -> dict[str, Any]:
    """Load a checkpoint's dictionary on the CPU; loading never runs code (`weights_only`).

    Args:
        src: path or binary file.
        mmap: map the tensors instead of reading them, for a look at the small values of a large file.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: the file is damaged, or something else than a checkpoint.
    """
    if isinstance(src, str | os.PathLike) and not Path(src).is_file():
        raise FileNotFoundError(
            f"there is no checkpoint at {os.fspath(src)}; the runs' checkpoints lie in lightning_logs/*/checkpoints/"
        )
    if isinstance(src, str | os.PathLike) and not mmap and not is_intact(Path(src)):  # torch itself skips the check
        raise ValueError(f"{_name(src)} is damaged or no checkpoint: take an earlier one from its folder")
    try:
        state = torch.load(src, map_location="cpu", weights_only=True, mmap=mmap or None)
    except PermissionError:
        raise
    except Exception as error:  # torch raises RuntimeError, EOFError, OSError, UnpicklingError, … for a damaged file
        raise ValueError(
            f"{_name(src)} is damaged or no checkpoint ({_first_line(error)}): take an earlier one from its folder"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(f"{_name(src)} is no checkpoint: it holds a {type(state).__name__}, not a dictionary")
    return state


def fit_part(state: Mapping[str, Any], path: object) -> dict[str, Any]:
    """Return what `fit` adds to a checkpoint: architecture, tokenizer, configuration, random number generators.

    Raises:
        ValueError: `fit` did not write this checkpoint.
    """
    part = state.get(CHECKPOINT_KEY)
    if not isinstance(part, dict):
        raise ValueError(f"{path} was not written by `python -m tslm fit`: give another --ckpt_path")
    return part


def is_intact(path: Path) -> bool:
    """Whether a checkpoint is whole: torch writes a zip archive, whose every record carries a CRC-32."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except Exception:  # whatever a damaged directory of records makes zipfile stumble over
        return False


def write_atomically(path: Path, state: object) -> None:
    """Write `torch.save(state)` to a neighbour of `path`, force it to the disk, then rename it onto `path`.

    Raises:
        OSError: there is not enough room for the file; nothing has been written if that could be known before.
    """
    needed, free = sum(tensor.nbytes for tensor in _tensors(state)), shutil.disk_usage(path.parent).free
    if needed > free:
        raise OSError(
            f"{path} needs {needed / 1e6:.0f} MB and its disk has {free / 1e6:.0f} MB left: make room, or choose "
            "another folder with --checkpoint.dirpath"
        )
    replace_atomically(path, lambda file: torch.save(state, file))


def replace_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a temporary file in the same folder, then put it in `path`'s place in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to the disk, so that a rename survives a power cut; a no-op where that is impossible."""
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
