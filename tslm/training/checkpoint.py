"""Checkpoint files: what is in them, read without running code, and checked for damage. `writing` writes them."""

from __future__ import annotations

import io
import os
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch

from tslm.errors import MissingFileError, UserError
from tslm.training.llama import is_llama_folder, read_llama
from tslm.training.parts import check_parts
from tslm.training.writing import write_atomically

# Keys of an optimizer's groups that do not tell its kind: the last six are from torch's schedulers.
_NOT_OWN = {"params", "initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr"}
CHECKPOINT_KEY = "tslm"  # what `fit` adds to Lightning's checkpoint: architecture, configuration, tokenizer, RNG states
PathOrFile = str | os.PathLike[str] | BinaryIO | IO[bytes]


def save_checkpoint(model: torch.nn.Module, optimizer: torch.optim.Optimizer, iteration: int, out: PathOrFile) -> None:
    """Write the states of the model and the optimizer, and the iteration, to a path or a binary file.

    A path is written atomically: after a crash it holds the old file or the new one, never a part of one.

    Args:
        model: its weights are written.
        optimizer: its state is written.
        iteration: the optimizer steps so far.
        out: path or binary file.

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
    """Restore what `save_checkpoint` wrote, and return the iteration. Loading never runs code.

    Args:
        src: path or binary file.
        model: gets the weights; its names and shapes must be those of the file.
        optimizer: gets its state, after the checks of the weights. After an error both are unchanged.

    Raises:
        MissingFileError: the path does not exist.
        UserError: the file is damaged, or was not written by `save_checkpoint`, or the model has other names or shapes,
            or the optimizer is of another kind.
    """
    state = read_checkpoint(src)
    missing = {"model", "optimizer", "iteration"} - set(state)
    if missing:
        raise UserError(f"{_name(src)} was not written by save_checkpoint: it lacks {', '.join(sorted(missing))}")
    model_state, iteration = state["model"], state["iteration"]
    if not (isinstance(model_state, dict) and all(isinstance(each, torch.Tensor) for each in model_state.values())
            and type(iteration) is int):
        raise UserError(f"{_name(src)} holds a model or an iteration in another form than save_checkpoint writes")
    check_shapes(model_state, model.state_dict(), _name(src))
    before = optimizer.state_dict()
    try:
        optimizer.load_state_dict(state["optimizer"])
        saved, own = (sorted(set[str]().union(*groups) - _NOT_OWN)
                      for groups in (optimizer.param_groups, before["param_groups"]))
        if saved != own:
            raise ValueError(f"its groups have {', '.join(saved)}, and those of {type(optimizer).__name__} "
                             f"{', '.join(own)}: build the optimizer that was saved")
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        optimizer.load_state_dict(before)
        raise UserError(f"{_name(src)} does not fit this optimizer: {' '.join(str(error).split())}") from error
    model.load_state_dict(model_state)
    return iteration


def check_shapes(saved: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], name: str) -> None:
    """Raise a UserError that names the first weight whose shape differs between a checkpoint and a model."""
    for key in sorted(set(saved) | set(wanted)):
        have, want = (tuple(side[key].shape) if key in side else "absent" for side in (saved, wanted))
        if have != want:
            raise UserError(f"{name} does not fit this model: {key} is {have} in the checkpoint and {want} in the "
                            "model; build the model with the sizes that it was trained with")


def read_checkpoint(src: PathOrFile, *, mmap: bool = False) -> dict[str, Any]:
    """Load a checkpoint's dictionary on the CPU. Loading never runs code (`weights_only`).

    Args:
        src: path or binary file; or a folder of Hugging Face, which `read_llama` turns into a checkpoint's dictionary.
        mmap: map the tensors into memory instead of reading them, to read only the small values of a large file. The
            checksums are not verified then.

    Raises:
        MissingFileError: the path does not exist.
        UserError: the file is damaged, may not be read, or is not a checkpoint.
    """
    name = _name(src)
    if isinstance(src, str | os.PathLike):
        path = Path(src)
        if is_llama_folder(path):
            return read_llama(path)
        if not path.is_file():
            raise MissingFileError(f"there is no checkpoint at {name}; the checkpoints of runs are in "
                                   "lightning_logs/*/checkpoints/")
        try:
            path.open("rb").close()
        except OSError as error:
            raise UserError(f"{name} cannot be read ({error.strerror or error}): change its permissions, or give "
                            "another --ckpt_path") from error
        if not is_intact(path, contents=not mmap):  # because torch verifies no checksum
            raise UserError(f"{name} is damaged or no checkpoint: take an earlier one from its folder")
    try:
        state = torch.load(src, map_location="cpu", weights_only=True, mmap=mmap or None)
    except Exception as error:  # torch raises RuntimeError, EOFError, OSError, UnpicklingError, … for a damaged file
        raise UserError(f"{name} is damaged or no checkpoint ({_first_line(error)}): take an earlier one from its "
                        "folder") from error
    if not isinstance(state, dict):
        raise UserError(f"{name} is no checkpoint: it holds a {type(state).__name__}, not a dictionary")
    return state


def fit_part(state: Mapping[str, Any], path: object, *, resume: bool = False) -> dict[str, Any]:
    """Return what `fit` adds to a checkpoint: architecture, tokenizer, configuration, random number generators.

    With `resume`, the parts that only resuming reads are checked, too.

    Raises:
        UserError: `fit` did not write this checkpoint, or one of its parts is missing or has another form.
    """
    part = state.get(CHECKPOINT_KEY)
    if not isinstance(part, dict):
        raise UserError(f"{path} was not written by `python -m tslm fit`: give another checkpoint")
    if resume and part.get("is_llama_folder"):
        raise UserError(f"{path} is a model of Hugging Face, without the state of a training: start a new run from its "
                        "weights with --init_from")
    check_parts(state, path, resume=resume)
    return part


def check_plain(value: object, name: str) -> None:
    """Check that a part of a checkpoint can be loaded without running code, before a training relies on it.

    `name` is its dotted key, for the message.

    Raises:
        UserError: it holds an object of another kind, such as a number of numpy; the message names its place.
    """
    if type(value) in (dict, OrderedDict):
        for key, each in cast("dict[object, object]", value).items():
            check_plain(key, f"a key of {name}")
            check_plain(each, f"{name}.{key}")
    elif type(value) in (list, tuple):
        for number, each in enumerate(cast("list[object]", value)):
            check_plain(each, f"{name}.{number}")
    elif type(value) not in (bool, int, float, str) and value is not None and not isinstance(value, torch.Tensor):
        try:
            torch.save(value, file := io.BytesIO())
            torch.load(io.BytesIO(file.getvalue()), weights_only=True)
        except Exception as error:  # pickle raises many types
            raise UserError(f"{name} is a {type(value).__module__}.{type(value).__qualname__}, which no checkpoint can "
                            "hold, because loading it would run code: let a callback or an optimizer of your own keep "
                            "numbers, texts, tensors, and lists and dictionaries of them") from error


def is_intact(path: Path, *, contents: bool = True) -> bool:
    """Whether a checkpoint file is complete: a zip archive of torch, in which every record matches its CRC-32.

    Files that could use up memory count as damaged: records may not unpack to more bytes than the file has, because
    torch does not compress them, and no pickle may call `bytearray`, which torch allows with any size.

    Args:
        path: the file.
        contents: whether the records are read, to verify their CRC-32, and not only the directory of the archive.
    """
    if not path.is_file():  # to open a named pipe would wait for its writer
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(record.file_size for record in archive.infolist()) > path.stat().st_size:
                return False
            if any(b"\nbytearray\n" in archive.read(name) for name in archive.namelist() if name.endswith(".pkl")):
                return False
            return not contents or archive.testzip() is None
    except Exception:  # zipfile raises many types for a damaged directory of records
        return False


def _name(src: PathOrFile) -> str:
    return os.fspath(src) if isinstance(src, str | os.PathLike) else "the file"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:120]
