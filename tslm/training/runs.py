"""Run directories: where a run keeps what, which one is the newest, and its model ready for use.

A run directory holds `checkpoints/`, `config.yaml`, `tokenizer/`, TensorBoard events, `metrics.csv` and, at the
end, `summary.json`. This file needs torch only, so that text comes without waiting for lightning.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from tslm.model import TransformerConfig, TransformerLM
from tslm.tokenizer import Tokenizer
from tslm.tokenizer.serialization import tokenizer_from_texts
from tslm.training.checkpoint import check_shapes, fit_part, is_intact, read_checkpoint
from tslm.training.saved_settings import read_architecture

RUNS = "lightning_logs"
CHECKPOINTS = "checkpoints"
ELSEWHERE = "checkpoints.txt"  # names the folder, where it is one of the user's choice
MODEL_PREFIX = "model."  # LanguageModule holds the TransformerLM under this name


class LoadedModel(NamedTuple):
    """A trained model with its tokenizer."""

    model: TransformerLM
    tokenizer: Tokenizer
    path: Path
    step: int


def load_model(path: str | Path) -> LoadedModel:
    """Load the model and the tokenizer that a checkpoint of `fit` holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or is no checkpoint of `fit`.
    """
    state = read_checkpoint(path)
    own = fit_part(state, path)
    if own["tokenizer"] is None:
        raise ValueError(f"{path} holds no tokenizer: it was trained on something else than text")
    model = TransformerLM(TransformerConfig(**read_architecture(own, path)))
    weights = {k.removeprefix(MODEL_PREFIX): v for k, v in state["state_dict"].items() if k.startswith(MODEL_PREFIX)}
    check_shapes(weights, model.state_dict(), str(path))
    model.load_state_dict(weights)
    return LoadedModel(model.eval(), tokenizer_from_texts(own["tokenizer"]), Path(path), int(state["global_step"]))


def find_checkpoint(wanted: str | None, *, prefer: str = "last", root: Path = Path()) -> tuple[Path, list[str]]:
    """Say which checkpoint file is meant, with remarks that the user should read.

    Args:
        wanted: a file; a run directory or a folder of checkpoints; `last` or `best` of the newest run; or None,
            which means `prefer` of the newest run.
        prefer: `last` or `best`, for folders and None.
        root: folder that holds `lightning_logs`.

    Raises:
        FileNotFoundError: nothing of that name exists, or no run has an intact checkpoint.
    """
    if wanted in (None, "last", "best"):
        prefer = wanted or prefer
        passed_over: list[str] = []
        for run in runs_newest_first(root / RUNS):
            found, remarks = newest_intact(checkpoint_folder(run), prefer)
            passed_over += remarks
            if found:
                return found, [*passed_over, f"Checkpoint: {found} ({run.name}'s {found.stem})"]
            passed_over.append(f"{run} has no intact checkpoint and is passed over.")
        raise FileNotFoundError(
            f"no run under {root / RUNS} has a checkpoint yet: train with `python -m tslm fit`, or give --ckpt_path"
        )
    path = Path(str(wanted))
    if path.is_dir():
        is_run = (path / CHECKPOINTS).is_dir() or (path / ELSEWHERE).is_file()
        folder = checkpoint_folder(path) if is_run else path
        found, remarks = newest_intact(folder, prefer)
        if not found:
            raise FileNotFoundError(f"the folder {path} holds no intact checkpoint (*.ckpt): give another --ckpt_path")
        return found, [*remarks, f"Checkpoint: {found}"]
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no checkpoint at {path}: give --ckpt_path a .ckpt file, a run directory, or 'last' or 'best' "
            "for the newest run's"
        )
    return path, []


def newest_intact(folder: Path, prefer: str) -> tuple[Path | None, list[str]]:
    """Return the preferred checkpoint of a folder, or the newest intact one, and what was passed over on the way.

    `last` is tried first only as long as no file is newer: a run that was killed between writing a checkpoint and
    naming it has lost the name and not the checkpoint.
    """

    def written(path: Path) -> tuple[int, bool, str]:
        return path.stat().st_mtime_ns, path.stem == prefer, path.stem

    newest_first = sorted(folder.glob("*.ckpt"), key=written, reverse=True)
    best = [folder / "best.ckpt"] if prefer == "best" and (folder / "best.ckpt").exists() else []
    remarks: list[str] = []
    for path in dict.fromkeys([*best, *newest_first]):
        if is_intact(path):
            return path, remarks
        remarks.append(f"{path} is damaged and passed over.")
    return None, remarks


def runs_newest_first(folder: Path) -> list[Path]:
    """List the run directories, the one that trained last first; what is only read or predicted from does not count."""

    def trained(run: Path) -> int:
        files = [*run.glob("events.*"), *run.glob("metrics.csv"), *checkpoint_folder(run).glob("*.ckpt")]
        return max((file.stat().st_mtime_ns for file in files), default=0)

    return sorted((path for path in folder.glob("*") if path.is_dir()), key=trained, reverse=True)


def run_of(checkpoint: Path, root: Path = Path()) -> Path:
    """Return the run directory that a checkpoint belongs to; the checkpoint's own folder where no run claims it."""
    folder = checkpoint.resolve().parent
    for run in runs_newest_first(root / RUNS):
        if checkpoint_folder(run).resolve() == folder:
            return run
    return checkpoint.parent.parent if checkpoint.parent.name == CHECKPOINTS else checkpoint.parent


def checkpoint_folder(run: Path) -> Path:
    """Return where a run keeps its checkpoints: in itself, unless it says that the user chose another folder."""
    elsewhere = run / ELSEWHERE
    return Path(elsewhere.read_text(encoding="utf-8").strip()) if elsewhere.is_file() else run / CHECKPOINTS
