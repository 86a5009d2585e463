"""A table of past runs, as text or as JSON lines."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from datetime import datetime
from operator import attrgetter
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple

from tslm.errors import MissingFileError, UserError
from tslm.files import is_locked
from tslm.model import TransformerConfig
from tslm.training.checkpoint import fit_part, read_checkpoint
from tslm.training.runs import (
    CHECKPOINTS,
    FOLDER_FILE,
    RUNS,
    SUMMARY,
    checkpoint_folder,
    continued_name,
    runs_newest_first,
)
from tslm.training.saved_settings import read_architecture, read_settings

Read = Callable[[Path], Any]


class RunFigures(NamedTuple):
    """One run in the table; what is not known is None.

    Attributes:
        name: the run's directory.
        when: the start of the run, in local time.
        corpus: the training text: `toy`, `tinystories`, or its files.
        parameters: the parameters of the model.
        steps: optimizer steps taken.
        tokens: tokens seen.
        seconds: the duration; of a run without a summary, from the first to the last file that it wrote.
        valid_loss: the last validation loss in nats per token.
        floor_gap: the relative distance to the exact floor.
        state: `running`; `finished`; `stopped`, by a signal or a limit; `died`, without a summary; or `damaged`.
        best_step: the step of the best checkpoint.
        continues: the run that was resumed.
    """

    name: str
    when: datetime | None
    corpus: str | None
    parameters: int | None
    steps: int
    tokens: int | None
    seconds: float | None
    valid_loss: float | None
    floor_gap: float | None
    state: str
    best_step: int | None
    continues: str | None


COLUMNS: dict[str, Callable[[Any], str]] = {
    "name": str,
    "when": lambda when: f"{when:%Y-%m-%d %H:%M}",
    "corpus": lambda corpus: corpus if len(corpus) <= 30 else f"{corpus[:29]}…",
    "parameters": "{:,}".format,
    "tokens": "{:,}".format,
    "seconds": "{:,.0f}".format,
    "valid_loss": "{:.4f}".format,
    "floor_gap": "{:.2%}".format,
    "state": str,
}
_TEXTS = ("name", "when", "corpus", "state")  # aligned to the left


def find_runs(folder: str | Path) -> list[Path]:
    """Return the run directories of a project, of a folder that holds runs, or of a run; the newest first.

    Raises:
        MissingFileError: there is none.
    """
    folder = Path(folder)
    inside = folder / RUNS if (folder / RUNS).is_dir() else folder
    runs = runs_newest_first(inside) if inside.is_dir() else []
    runs = [inside] if is_run(inside) else [run for run in runs if is_run(run) or is_locked(run)]  # a new one is empty
    if not runs:
        raise MissingFileError(f"there is no run in {inside}: train with `python -m tslm fit`, or give another --dir")
    return runs


def is_run(folder: Path) -> bool:
    """Return whether a folder is a run directory."""
    return any((folder / name).exists() for name in (CHECKPOINTS, FOLDER_FILE, SUMMARY, "config.yaml", "metrics.csv"))


def list_runs(folder: str | Path, sort: str | None = None, contains: str = "") -> list[RunFigures]:
    """Return the runs of a folder, newest first.

    Args:
        folder: a project, a folder that holds runs, or a run.
        sort: the column to sort by, in ascending order; unknown values come last.
        contains: only runs whose name, corpus or state contains this.

    Raises:
        MissingFileError: there is no run.
        UserError: there is no such column.
    """
    sort = sort and sort.replace("/", "_")  # valid/loss, as it is called in metrics.csv
    if sort is not None and sort not in COLUMNS:
        raise UserError(f"there is no column {sort!r} to sort by: give --sort one of {', '.join(COLUMNS)}")
    runs = [run_figures(run) for run in find_runs(folder)]
    runs = [run for run in runs if any(contains in (text or "") for text in (run.name, run.corpus, run.state))]
    if sort is not None:
        known, unknown = list[RunFigures](), list[RunFigures]()
        for run in runs:  # a loss that is not a number equals nothing, itself neither
            value = getattr(run, sort)
            (unknown if value is None or value != value else known).append(run)
        runs = sorted(known, key=attrgetter(sort)) + unknown
    return runs


def table(runs: list[RunFigures]) -> str:
    """Return the runs as a table for a person."""
    rows = [list(COLUMNS)]
    for run in runs:
        values = [getattr(run, column) for column in COLUMNS]
        rows.append(["-" if value is None else form(value)
                     for form, value in zip(COLUMNS.values(), values, strict=True)])
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    sides = ["<" if column in _TEXTS else ">" for column in COLUMNS]
    lines = ("  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True))
             for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def json_lines(runs: list[RunFigures]) -> str:
    """Return one JSON object a line for each run."""
    def plain(value: Any) -> Any:
        """Return what JSON can express."""
        if isinstance(value, datetime):
            return value.isoformat()
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return "\n".join(json.dumps({name: plain(value) for name, value in run._asdict().items()}, ensure_ascii=False)
                     for run in runs)


def run_figures(run: Path) -> RunFigures:
    """Return the figures of a run, from its summary, or else its newest checkpoint and its last validation.

    Checkpoints are opened but not read in full, so a damaged weight is noticed by `runs --verify` only.
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

    summary = value(read_summary, run / "summary.json") or {}
    last = value(_read_progress, checkpoint_folder(run) / "last.ckpt") or {}
    best = value(_read_progress, checkpoint_folder(run) / "best.ckpt") or {}
    losses = [float(row["valid/loss"]) for row in value(read_metrics, run / "metrics.csv") or []
              if row.get("valid/loss")]
    state = ("running" if is_locked(run) else "damaged" if damaged else "died" if not summary
             else "finished" if summary.get("finished", True) else "stopped")
    start, seconds = _duration(run)
    return RunFigures(
        name=run.name, when=start, corpus=summary.get("corpus") or last.get("corpus"),
        parameters=last.get("parameters"), steps=max(last.get("steps", 0), summary.get("steps", 0)),
        tokens=summary.get("tokens_seen", last.get("tokens")), seconds=summary.get("seconds", seconds),
        valid_loss=loss if (loss := summary.get("valid_loss")) is not None else losses[-1] if losses else None,
        floor_gap=summary.get("floor_gap"),
        state=state, best_step=best.get("steps"), continues=summary.get("continues") or continued_name(run.name),
    )


def _duration(run: Path) -> tuple[datetime | None, float | None]:
    """Return when the first file was written that still is as it was then, and the seconds to the last file."""
    times = [path.lstat().st_mtime for path in [*run.glob("*"), *checkpoint_folder(run).glob("*.ckpt")]
             if path.is_file() and path.name != "predictions.jsonl"]
    if not times:
        return None, None
    return datetime.fromtimestamp(min(times)), round(max(times) - min(times), 1)


def _read_progress(path: Path) -> dict[str, Any]:
    """Return what a checkpoint says of its run."""
    state = read_checkpoint(path, mmap=True)
    figures = {"steps": int(state["global_step"]),
               "tokens": state.get("callbacks", {}).get("StepMetrics", {}).get("tokens_seen")}
    own = fit_part(state, path)
    settings = read_settings(own).allowed
    names = settings.get("data.train_files")
    figures["parameters"] = TransformerConfig(**read_architecture(own, path, for_sizes=True)).num_parameters
    figures["corpus"] = ", ".join(names) if names else settings.get("data.corpus") or ("toy" if settings else None)
    return figures


_IN_SUMMARY: dict[str, type | UnionType] = {
    "corpus": str, "tokens_seen": int, "seconds": int | float, "valid_loss": int | float, "floor_gap": int | float,
    "finished": bool, "continues": str,
}  # fmt: skip


def read_summary(path: Path) -> dict[str, Any]:
    """Read `summary.json`.

    Raises:
        ValueError: it is no summary of a run.
    """
    summary = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(summary, dict) or not isinstance(summary.get("steps"), int):
        raise ValueError("it is no summary of a run")
    for name, type_ in _IN_SUMMARY.items():
        if not isinstance(value := summary.get(name), type_ | None):
            raise ValueError(f"its {name} is {value!r:.40}")
    return summary


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Read metrics.csv; every cell is a number or empty, and every row ends with a line end.

    Raises:
        ValueError: the file is damaged.
    """
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
