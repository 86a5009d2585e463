"""Run directories: where a run keeps its files, which run is the newest, and how its model is loaded.

A run directory holds `checkpoints/`, `config.yaml`, `tokenizer/`, TensorBoard events, `metrics.csv` and, after the end,
`summary.json`. This file does not import lightning, so that `generate` starts quickly.
"""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from tslm.errors import MissingFileError, UserError
from tslm.model import TransformerConfig, TransformerLM
from tslm.tokenizer import Tokenizer
from tslm.tokenizer.serialization import tokenizer_from_texts
from tslm.training.checkpoint import check_shapes, fit_part, is_intact, read_checkpoint
from tslm.training.llama import is_llama_folder
from tslm.training.saved_settings import read_architecture

RUNS = "lightning_logs"
CHECKPOINTS = "checkpoints"
SUMMARY = "summary.json"
FOLDER_FILE = "checkpoints.txt"  # in a run directory: names the folder of its checkpoints if the user chose another one
MODEL_PREFIX = "model."  # LanguageModule holds the TransformerLM under this name


class LoadedModel(NamedTuple):
    """A trained model with its tokenizer, and the file and the optimizer step that it comes from.

    `prefix` holds the ids that preceded documents in training; None in checkpoints of earlier versions.
    """

    model: TransformerLM
    tokenizer: Tokenizer
    path: Path
    step: int
    prefix: list[int] | None = None


def load_model(path: str | Path, *, ffn: str | None = None) -> LoadedModel:
    """Load the model and the tokenizer from a checkpoint of `fit`; the model is in evaluation mode on the CPU.

    A checkpoint may name the class of a feed-forward layer of one's own, `ffn`, only if the user does.

    Example:
        >>> model, tokenizer, path, step, prefix = load_model("lightning_logs/version_0/checkpoints/best.ckpt")

    Raises:
        MissingFileError: there is no such file.
        UserError: the file is damaged, is not a checkpoint of `fit`, has weights that are not finite, or was trained
            with another layer than `ffn`.
    """
    state = read_checkpoint(path)
    own = fit_part(state, path)
    if own.get("tokenizer") is None:
        raise UserError(f"{path} holds no tokenizer, because it was not trained on text: give another checkpoint")
    architecture = read_architecture(own, path, ffn=ffn)
    if ffn is not None and architecture["ffn"] != ffn:
        raise UserError(f"the feed-forward layer is given as {ffn!r}, but {path} was trained with "
                        f"{architecture['ffn']}: leave it out")
    model = TransformerLM(TransformerConfig(**architecture))
    weights = {k.removeprefix(MODEL_PREFIX): v for k, v in state["state_dict"].items() if k.startswith(MODEL_PREFIX)}
    check_shapes(weights, model.state_dict(), str(path))
    if bad := [name for name, weight in weights.items() if not weight.isfinite().all()]:
        raise UserError(f"{path} has weights in {bad[0]} that are not finite, because its training diverged or the "
                        "file is damaged: give an earlier checkpoint")
    model.load_state_dict(weights)
    tokenizer = tokenizer_from_texts(own["tokenizer"], str(path))
    return LoadedModel(model.eval(), tokenizer, Path(path), int(state["global_step"]), own.get("document_prefix"))


def continued_name(name: str) -> str | None:
    """Return the name of the run that a run of this name continues; None if the name says nothing of it."""
    found = re.fullmatch(r"(.+)-continued(-\d+)?", name)
    return found and found[1]


def find_checkpoint(wanted: str | None, *, prefer: str = "last", root: Path = Path()) -> tuple[Path, list[str]]:
    """Resolve `--ckpt_path`; also return notices for the user.

    Args:
        wanted: a file; a run directory or a folder of checkpoints; a folder with a Llama of Hugging Face; `last` or
            `best` of the newest run; or None, which means `prefer` of the newest run.
        prefer: `last` or `best`, for folders and None.
        root: folder that holds `lightning_logs`.

    Returns:
        The checkpoint file or Hugging Face's folder, and notices about skipped files and about which file was chosen.

    Raises:
        MissingFileError: nothing of that name exists, or no run has an intact checkpoint.
    """
    if wanted in (None, "last", "best"):
        return _find_in_runs(root / RUNS, wanted or prefer)
    path = Path(str(wanted))
    if is_llama_folder(path):
        return path, []
    if path.is_dir():
        is_run = (path / CHECKPOINTS).is_dir() or (path / FOLDER_FILE).is_file()
        folder = checkpoint_folder(path) if is_run else path
        found, bad = newest_intact(folder, prefer)
        if not found:
            raise MissingFileError(f"the folder {folder} has no {_missing(bad)}; give another checkpoint")
        return found, [*map(skip_notice, bad), f"Checkpoint: {found}"]
    if not path.is_file():
        raise MissingFileError(f"there is no checkpoint at {path}: name a .ckpt file, a run directory, or 'last' or "
                               "'best' for the newest run's")
    return path, []


def _find_in_runs(runs: Path, prefer: str) -> tuple[Path, list[str]]:
    """Return a checkpoint of the newest run that has an intact one, and notices."""
    notices: list[str] = []
    damaged: list[Path] = []
    lost = ""
    for run in runs_newest_first(runs):
        folder = checkpoint_folder(run)
        if not folder.is_dir() and (os.path.lexists(folder) or (run / FOLDER_FILE).exists()):
            lost += f", and {folder}, where {run} keeps its own, is not a folder"
        found, bad = newest_intact(folder, prefer)
        notices += map(skip_notice, bad)
        damaged += bad
        if found:
            return found, [*notices, f"Checkpoint: {found} ({run.name}'s {found.stem})"]
        notices.append(f"{run} has no intact checkpoint and is skipped.")
    raise MissingFileError(f"there is no run under {runs} with a {_missing(damaged)}{lost}; train with `python -m tslm "
                           "fit`, or give --ckpt_path")


def skip_notice(path: Path) -> str:
    """Say that a damaged checkpoint is not used."""
    return f"{path} is damaged or cannot be read, and is skipped."


def _missing(damaged: list[Path]) -> str:
    """Say which kind of checkpoint is missing: any, or a usable one."""
    if not damaged:
        return "checkpoint"
    return f"usable checkpoint, because these are damaged: {', '.join(map(str, damaged))}"


def newest_intact(folder: Path, prefer: str) -> tuple[Path | None, list[Path]]:
    """Return the best or the newest intact checkpoint of a folder, or None, and the damaged ones that come before it.

    If the best is preferred, `best.ckpt` comes first. The others follow by step, the latest first: it may be later than
    that of `last`, if a run was killed before `last` linked to it. Copying may change the times of files, so they count
    in one case only. A later step that is older than `last` was left by an earlier run, in a folder that the user
    chose, and comes at the end.
    """
    paths = sorted(folder.glob("*.ckpt"))
    best = [folder / "best.ckpt"] if prefer == "best" and (folder / "best.ckpt").exists() else []
    if best and is_intact(best[0]):
        return best[0], []
    steps = {path: _step_of(path) for path in paths}
    last = folder / "last.ckpt"

    def rank(path: Path) -> tuple[bool, float, bool, bool]:
        """Return the sorting key: whether an earlier run left the file, then the later step, then the names."""
        left = last in steps and steps[path] > steps[last] and _time_of(path) < _time_of(last)
        return left, -steps[path], path.stem != prefer, path.stem == "best"

    damaged: list[Path] = []
    for path in dict.fromkeys([*best, *sorted(paths, key=rank)]):
        if is_intact(path):
            return path, damaged
        damaged.append(path)
    return None, damaged


def _time_of(path: Path) -> int:
    """Return when a file was written, in nanoseconds; 0 if it is gone, because a run that trains has replaced it."""
    try:
        return path.lstat().st_mtime_ns
    except OSError:
        return 0


def _step_of(path: Path) -> float:
    """Return the optimizer step of a checkpoint; of a damaged one the step in its name, or infinity."""
    try:
        return int(read_checkpoint(path, mmap=True)["global_step"])
    except (UserError, LookupError, TypeError, ValueError):
        number = re.fullmatch(r"step-(\d+)", path.stem)
        return int(number[1]) if number else math.inf


def runs_newest_first(folder: Path) -> list[Path]:
    """List the run directories by the time of their last training; evaluation and prediction do not count."""

    def trained(run: Path) -> int:
        """Return when a run's training last wrote a file, in nanoseconds; 0 if that is not known."""
        try:
            files = [*run.glob("events.*"), *run.glob("metrics.csv"), *checkpoint_folder(run).glob("*.ckpt")]
        except OSError:  # the directory vanishes at this moment, or cannot be read
            return 0
        return max(map(_time_of, files), default=0)

    return sorted((path for path in folder.glob("*") if path.is_dir()), key=trained, reverse=True)


def run_of(checkpoint: Path, root: Path = Path()) -> Path:
    """Return the run directory of a checkpoint: a run in `root`, else the folder above `checkpoints`, else its own."""
    if checkpoint.is_dir():  # of Hugging Face
        return checkpoint
    folder = checkpoint.resolve().parent
    for run in runs_newest_first(root / RUNS):
        if checkpoint_folder(run).resolve() == folder:
            return run
    return checkpoint.parent.parent if checkpoint.parent.name == CHECKPOINTS else checkpoint.parent


def summary_of(checkpoint: Path) -> dict[str, Any]:
    """Return the content of `summary.json` of a checkpoint's run; empty if there is none, or a damaged one."""
    path = run_of(checkpoint) / SUMMARY
    try:
        summary = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return summary if isinstance(summary, dict) else {}


def checkpoint_folder(run: Path) -> Path:
    """Return where a run keeps its checkpoints: in its own directory, or in the folder that its user chose."""
    elsewhere = run / FOLDER_FILE
    named = os.fsdecode(elsewhere.read_bytes()).strip().replace("\0", "\ufffd") if elsewhere.is_file() else ""
    if len(named) > 1000 or any(len(os.fsencode(part)) > 255 for part in named.split("/")):  # damaged, and no path
        named = f"{named[:60]} …"
    return Path(named) if named else run / CHECKPOINTS
