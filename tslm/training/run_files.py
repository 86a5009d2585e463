"""Prints a table of past runs, and checks every file that they have written."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from tslm.errors import MissingFileError, UserError
from tslm.files import is_locked
from tslm.model import TransformerConfig, TransformerLM
from tslm.tokenizer import Tokenizer
from tslm.tokenizer.serialization import tokenizer_from_texts
from tslm.training.checkpoint import check_shapes, fit_part, read_checkpoint
from tslm.training.parts import check_optimizer
from tslm.training.runs import CHECKPOINTS, FOLDER_FILE, MODEL_PREFIX, RUNS, checkpoint_folder, runs_newest_first
from tslm.training.saved_settings import read_architecture

HEADER = ("run", "steps", "tokens", "valid loss", "best checkpoint", "state")
Read = Callable[[Path], Any]


class RunFigures(NamedTuple):
    """One run in the table; what is not known is None. `state` is finished, interrupted, running or damaged."""

    name: str
    steps: int
    tokens: int | None
    valid_loss: float | None
    best_step: int | None
    state: str


def find_runs(folder: str | Path) -> list[Path]:
    """Return the run directories of a project, of a folder that holds runs, or of a run; the newest first.

    Raises:
        MissingFileError: there is none.
    """
    folder = Path(folder)
    inside = folder / RUNS if (folder / RUNS).is_dir() else folder
    runs = runs_newest_first(inside) if inside.is_dir() else []
    if inside.name != RUNS:
        runs = [inside] if _is_run(inside) else [run for run in runs if _is_run(run)]
    if not runs:
        raise MissingFileError(f"there is no run in {inside}: train with `python -m tslm fit`, or give another --dir")
    return runs


def _is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in (CHECKPOINTS, FOLDER_FILE, "config.yaml", "metrics.csv"))


def print_runs(folder: str | Path) -> None:
    """Print a table of the runs, newest first.

    Raises:
        MissingFileError: there is none.
    """
    rows = [HEADER]
    for name, steps, tokens, loss, best, state in map(run_figures, find_runs(folder)):
        rows.append((name, f"{steps:,}", "-" if tokens is None else f"{tokens:,}",
                     "-" if loss is None else f"{loss:.4f}", "-" if best is None else f"step {best:,}", state))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = zip(row, "<>>>><", widths, strict=True)
        print("  ".join(f"{cell:{side}{width}}" for cell, side, width in cells).rstrip())


def run_figures(run: Path) -> RunFigures:
    """Return the figures of a run, from its summary, or else its newest checkpoint and its last validation.

    Checkpoints are opened but not read in full, so a damaged weight is noticed by `verify_runs` only.
    """
    damaged = False

    def value(read: Read, path: Path) -> Any:
        """Read a file; None if it is absent or damaged."""
        nonlocal damaged
        try:
            return read(path)
        except FileNotFoundError:
            return None
        except Exception:  # the readers raise many types for damaged files
            damaged = True
            return None

    summary = value(_read_summary, run / "summary.json") or {}
    steps, tokens = value(_progress, checkpoint_folder(run) / "last.ckpt") or (0, None)
    best = value(_progress, checkpoint_folder(run) / "best.ckpt")
    losses = [float(row["valid/loss"]) for row in value(_read_metrics, run / "metrics.csv") or []
              if row.get("valid/loss")]
    state = ("running" if is_locked(run) else "damaged" if damaged
             else "finished" if summary and summary.get("finished", True) else "interrupted")
    return RunFigures(run.name, max(steps, summary.get("steps", 0)), summary.get("tokens_seen", tokens),
                      summary.get("valid_loss") or (losses[-1] if losses else None), best and best[0], state)


def _progress(path: Path) -> tuple[int, int | None]:
    """Return the optimizer steps and the tokens seen up to a checkpoint."""
    state = read_checkpoint(path, mmap=True)
    return int(state["global_step"]), state.get("callbacks", {}).get("StepMetrics", {}).get("tokens_seen")


def verify_runs(folder: str | Path, read_config: Read) -> None:
    """Check every file of every run, and print a line for each run.

    Args:
        folder: a project, a folder that holds runs, or a run.
        read_config: reads a YAML file and raises an error if it is damaged.

    Raises:
        MissingFileError: there is no run.
        UserError: files are damaged; the message names them.
    """
    bad: list[str] = []
    for run in tqdm(find_runs(folder), desc="verifying", unit=" runs", disable=None):
        number, damaged, leftovers = verify_run(run, read_config)
        line = f"{run.name}: {number} files, " + (f"{len(damaged)} of them damaged" if damaged else "all intact")
        if leftovers:
            line += f"; left by a killed process: {', '.join(leftovers)}"
        tqdm.write(line)
        bad += damaged
    if bad:
        raise UserError(f"{len(bad)} {'file is' if len(bad) == 1 else 'files are'} damaged: {'; '.join(bad)}")


def verify_run(run: Path, read_config: Read) -> tuple[int, list[str], list[str]]:
    """Check the files of a run.

    Returns:
        The number of files; a sentence for each damaged one; and the names of the temporary files of killed processes.
    """
    damaged, hashes, number = [], dict[str, Path](), 0
    for path, check in _checks(run, read_config):
        try:
            found = check(path)
        except Exception as error:  # the readers raise many types for damaged files
            if not path.exists() and is_locked(run):  # the run has replaced it since it was listed
                continue
            reason = " ".join(str(error).split()) or type(error).__name__
            damaged.append(reason if str(path) in reason else f"{path} ({reason})")
        else:
            if isinstance(found, str):
                hashes.setdefault(found, path)
        number += 1
    if len(hashes) > 1:
        (one, first), (other, second), *_ = hashes.items()
        damaged.append(f"{first} has the tokenizer {one[:12]}, but {second} has {other[:12]}")
    chosen = (run / FOLDER_FILE).exists()  # a folder elsewhere has a check of its own
    if (run / "summary.json").exists() and not chosen and not any(checkpoint_folder(run).glob("*.ckpt")):
        damaged.append(f"{run} has ended, but {checkpoint_folder(run)} has no checkpoint")
    leftovers = {path.name for place in (run, checkpoint_folder(run)) for path in place.glob(".*.new")
                 if not is_locked(path)}
    return number, damaged, sorted(leftovers)


def _checks(run: Path, read_config: Read) -> Iterator[tuple[Path, Read]]:
    """Yield the files of a run, each with its check, which returns the hash of the tokenizer if the file has one."""
    folder, seen = checkpoint_folder(run), set[tuple[int, int]]()
    if (run / FOLDER_FILE).exists():
        yield run / FOLDER_FILE, _check_folder
    for path in sorted(folder.glob("*.ckpt")):
        with suppress(FileNotFoundError):  # the run has replaced it since it was listed
            stat = path.stat()
            if (stat.st_dev, stat.st_ino) not in seen:  # `last` and `best` are other names of the file of a step
                seen.add((stat.st_dev, stat.st_ino))
                yield path, check_checkpoint
    if (run / "tokenizer").exists():
        yield run / "tokenizer", lambda path: Tokenizer.from_dir(path).hash
    for pattern, check in (("*.yaml", read_config), ("summary.json", _read_summary), ("metrics.csv", _read_metrics),
                           ("*.jsonl", _check_lines), ("events.*", _check_events)):
        yield from ((path, check) for path in sorted(run.glob(pattern)))


def check_checkpoint(path: Path) -> str | None:
    """Read a whole checkpoint of `fit`, check all its parts, and return the hash of its tokenizer, if it has one.

    Raises:
        UserError: the file is damaged; a part is missing or has another form; the parts do not belong together; or a
            weight is not finite.
    """
    state = read_checkpoint(path)
    own = fit_part(state, path, resume=True)
    with torch.device("meta"):  # only the shapes
        model = TransformerLM(TransformerConfig(**read_architecture(own, path)))
    weights = {name.removeprefix(MODEL_PREFIX): weight for name, weight in state["state_dict"].items()}
    check_shapes(weights, model.state_dict(), str(path))
    check_optimizer(state["optimizer_states"][0], model.parameters(), path)
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise UserError(f"{path} holds weights in {name} that are not finite")
    if own["tokenizer"] is None:
        return None
    found = tokenizer_from_texts(own["tokenizer"], str(path)).hash
    if found != (stated := own.get("fingerprints", {}).get("tokenizer", found)):
        raise UserError(f"{path} holds the tokenizer {found[:12]}, but its fingerprint is {stated[:12]}")
    return found


def _check_folder(path: Path) -> None:
    folder = path.read_text(encoding="utf-8").strip()
    if not Path(folder).is_dir():
        raise MissingFileError(f"{path} names the folder {folder}, which does not exist")


def _read_summary(path: Path) -> dict[str, Any]:
    summary = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(summary, dict) or not isinstance(summary.get("steps"), int):
        raise ValueError("it is no summary of a run")
    return summary


def _read_metrics(path: Path) -> list[dict[str, str]]:
    """Read metrics.csv; every cell is a number or empty, and every row ends with a line end."""
    text = path.read_text(encoding="utf-8")
    if text and not text.endswith("\n"):
        raise ValueError("its last line is cut")
    header, *rows = [*csv.reader(text.splitlines())] or [[]]
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise ValueError(f"line {number} has {len(row)} cells, the header {len(header)}")
        for cell in filter(None, row):
            float(cell)
    return [dict(zip(header, row, strict=True)) for row in rows]


def _check_lines(path: Path) -> None:
    for line in path.read_text(encoding="utf-8").splitlines():
        json.loads(line)


def _check_events(path: Path) -> None:
    """Check the checksums of TensorBoard's records. A killed process leaves the last record cut; this is no damage."""
    from tensorboard.compat.tensorflow_stub import errors  # type: ignore[import-untyped]
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New  # type: ignore[import-untyped]

    reader = PyRecordReader_New(str(path))
    try:
        while True:
            reader.GetNext()
    except errors.OutOfRangeError:
        return
    except errors.DataLossError as error:
        if "truncated" not in str(error):
            raise

