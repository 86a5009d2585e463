"""`compare`: what differs between runs, in their settings, their curves, and their losses on one text."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import yaml

from tslm.commands.options import leaves
from tslm.data.datamodule import TextDataModule
from tslm.data.prepare import prepare
from tslm.data.texts import Texts
from tslm.errors import MissingFileError, UserError
from tslm.generation.text import default_prefix
from tslm.studies.layout import new_figure, save_plot
from tslm.studies.statistics import Interval, group_interval, in_blocks, ratio_interval
from tslm.tokenizer import TokenFile
from tslm.tokenizer.corpus import Corpus
from tslm.training.checkpoint import fit_part, read_checkpoint
from tslm.training.run_table import is_run, read_metrics
from tslm.training.runs import LoadedModel, find_checkpoint, load_model, run_of
from tslm.training.saved_settings import read_settings
from tslm.training.score_report import documents_of
from tslm.training.scoring import token_log_probs

LAST = ("seed", "dir", "path", "name", "prompts", "init_from", "logger")  # settings that say little are shown last
POINTS = 8  # rows of the table of curves


class Side(NamedTuple):
    """One run: its directory, its settings, its curves and its model."""

    path: Path
    settings: dict[str, Any]
    metrics: list[dict[str, str]]
    loaded: LoadedModel


class Losses(NamedTuple):
    """The loss of each run on each unit of one text.

    Attributes:
        nats: (runs, units), the sum of -log p over the unit.
        sizes: (units,), the tokens of each unit, or its bytes if the tokenizers differ.
        unit: "nats per token" or "nats per byte".
        text: what was measured, for the user.
    """

    nats: npt.NDArray[np.float64]
    sizes: npt.NDArray[np.float64]
    unit: str
    text: str

    @property
    def means(self) -> list[float]:
        """The loss of each run."""
        return [float(nats.sum() / self.sizes.sum()) for nats in self.nats]

    def difference(self, first: Sequence[int], second: Sequence[int]) -> Interval:
        """Return the difference of the means of two groups of these models, as it may vary with the text."""
        sums = self.nats[list(first)].mean(0) - self.nats[list(second)].mean(0)
        sums, sizes = in_blocks(sums, self.sizes)
        return ratio_interval(sums, sizes)

    def repeated(self, group: Sequence[int]) -> tuple[int, int] | None:
        """Return two models of a group that are the same, as their losses are equal on every unit; None if none are."""
        return next((pair for pair in combinations(group, 2) if np.array_equal(*self.nats[list(pair)])), None)

    def over_seeds(self, first: Sequence[int], second: Sequence[int]) -> Interval:
        """Return the difference of the means of two groups of runs, as it may vary with the seed."""
        means = self.means
        return group_interval([means[n] for n in first], [means[n] for n in second])


def open_side(path: str, ffns: Sequence[str] = ()) -> Side:
    """Open a run directory, or a checkpoint, whose model may have one of the feed-forward layers that the user states.

    Raises:
        MissingFileError: there is no such run.
        UserError: its checkpoint or its metrics.csv is damaged.
    """
    if not Path(path).exists() and (Path("lightning_logs") / path).is_dir():
        path = str(Path("lightning_logs") / path)  # the name of a run suffices
    checkpoint, notices = find_checkpoint(path, prefer="best")
    print(*notices[:-1], sep="\n", end="\n" * bool(notices[:-1]))  # about skipped files; the last names the checkpoint
    run = Path(path) if is_run(Path(path)) else run_of(checkpoint)
    try:
        metrics = read_metrics(run / "metrics.csv") if (run / "metrics.csv").is_file() else []
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        config = None
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{run} has a damaged file ({' '.join(str(error).split())}): see `runs --verify`") from error
    own = fit_part(read_checkpoint(checkpoint, mmap=True), checkpoint)
    settings = dict(leaves(config)) if isinstance(config, dict) else read_settings(own).allowed
    ffn = next((name for name in ffns if name == own["architecture"].get("ffn")), None)
    return Side(run, settings, metrics, load_model(checkpoint, ffn=ffn))


def differing_settings(sides: Sequence[Side]) -> list[tuple[str, list[Any]]]:
    """Return each setting that differs and its value in each run; seeds and paths come last."""
    keys = dict.fromkeys(key for side in sides for key in side.settings)
    rows = [(key, [side.settings.get(key) for side in sides]) for key in keys]
    rows = [row for row in rows if any(value != row[1][0] for value in row[1])]
    return sorted(rows, key=lambda row: any(word in row[0] for word in LAST))


class Curve(NamedTuple):
    """The curve of one run; the seconds are those of training, without validation."""

    steps: list[float]
    tokens: list[float]
    seconds: list[float]
    losses: list[float]


def curve(side: Side, column: str) -> Curve:
    """Return the curve of `train/loss` or `valid/loss`."""
    rows = [row for row in side.metrics if row.get("train/tokens_seen") and row.get("train/tokens_per_second")]
    steps, tokens = ([float(row[name]) for row in rows] for name in ("step", "train/tokens_seen"))
    rates = [max(float(row["train/tokens_per_second"]), 1e-9) for row in rows]
    new = np.maximum(np.diff(tokens, prepend=0), 0).tolist()
    seconds = list(accumulate(number / rate for number, rate in zip(new, rates, strict=True)))
    points = [(float(row["step"]), float(row[column])) for row in side.metrics if row.get(column)]
    at = [step for step, _ in points]
    if not steps:
        return Curve(at, [np.nan] * len(at), [np.nan] * len(at), [loss for _, loss in points])
    return Curve(at, np.interp(at, steps, tokens).tolist(), np.interp(at, steps, seconds).tolist(),
                 [loss for _, loss in points])


def curve_table(sides: Sequence[Side], names: Sequence[str]) -> str:
    """Return the curves at common steps as a table: tokens, seconds and losses of each run; of many only losses."""
    trains, valids = ([curve(side, f"{kind}/loss") for side in sides] for kind in ("train", "valid"))
    ends = [each.steps[-1] for each in trains if each.steps]
    if not ends:
        return "no curves: no run has a metrics.csv with steps"
    points = sorted({round(end) for end in np.linspace(0, max(ends), POINTS + 1)[1:]} | {round(end) for end in ends})
    kinds = ("tokens", "seconds", "train", "valid")[0 if len(sides) < 3 else 2 :]
    rows = [["step", *(f"{name} {kind}" for name in names for kind in kinds)]]
    for step in points:
        row = [f"{step:,}"]
        for train, valid in zip(trains, valids, strict=True):
            if not train.steps or not train.steps[0] <= step <= train.steps[-1]:
                row += ["-"] * len(kinds)
                continue
            is_validated = valid.steps and step >= valid.steps[0]
            cells = [f"{np.interp(step, train.steps, train.tokens):,.0f}",
                     f"{np.interp(step, train.steps, train.seconds):,.0f}",
                     f"{np.interp(step, train.steps, train.losses):.4f}",
                     f"{np.interp(step, valid.steps, valid.losses):.4f}" if is_validated else "-"]
            row += cells[-len(kinds) :]
        rows.append(row)
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def plot_curves(sides: Sequence[Side], names: Sequence[str], path: Path) -> None:
    """Draw the curves over steps, tokens and seconds into a PNG.

    Raises:
        UserError: matplotlib is not installed.
    """
    figure = new_figure(figsize=(15, 5))
    for axes, unit in zip(figure.subplots(1, 3, sharey=True), ("steps", "tokens", "seconds"), strict=True):
        for side, name in zip(sides, names, strict=True):
            color = f"C{(ord(name[0]) - ord('A')) % 10}"  # the runs of a group share a color
            for kind, style in (("train", ":"), ("valid", "-")):
                each = curve(side, f"{kind}/loss")
                axes.plot(getattr(each, unit), each.losses, style, color=color, label=f"{name}, {kind}")
        axes.set(xlabel=unit, ylabel="loss in nats per token" if unit == "steps" else None, yscale="log")
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    save_plot(figure, path)


def measure(sides: Sequence[Side], corpus: Corpus | None, most: int) -> Losses:
    """Measure the loss of every run on one text.

    Each document is scored from its beginning to the separator after it, as the runs were trained. The units are the
    documents, of which long ones are divided into windows of the first run's context.

    Without a corpus, the text is the first run's for validation. Of more than `most` documents so many are taken,
    evenly spaced.

    Raises:
        UserError: the text of the first run is not here, or is empty.
    """
    if corpus is None:
        corpus, text = _validation_text(sides[0])
    else:
        text = ", ".join(span.label for span in corpus.spans[:3]) + ", …" * (len(corpus.spans) > 3)
    documents = [(document, corpus.allows_special(span))
                 for span in corpus.spans for document in documents_of(span, sides[0].loaded)]
    corpus.check_unchanged()
    if not documents:
        raise UserError(f"{text} holds no document: give another text with --input")
    places = np.linspace(0, len(documents) - 1, min(len(documents), most)).round()
    documents = [documents[int(place)] for place in np.unique(places)]
    losses = [_document_losses(side.loaded, documents) for side in sides]
    if len({side.loaded.tokenizer.hash for side in sides}) == 1:
        window = sides[0].loaded.model.config.context_length
        units = [[values[start : start + window] for values in each for start in range(0, len(values), window)]
                 for each in losses]
        nats = [[float(unit.sum(dtype=np.float64)) for unit in each] for each in units]
        sizes = np.array([len(unit) for unit in units[0]], np.float64)
        unit, size = "nats per token", f"{int(sizes.sum()):,} tokens"
    else:
        nats = [[float(values.sum(dtype=np.float64)) for values in each] for each in losses]
        sizes = np.array([len(document.encode()) for document, _ in documents], np.float64)
        unit, size = "nats per byte", f"{int(sizes.sum()):,} bytes (the tokenizers differ)"
    return Losses(np.array(nats), sizes, unit, f"{text}: {len(documents):,} documents, {size}")


def _document_losses(loaded: LoadedModel, documents: Sequence[tuple[str, bool]]) -> list[npt.NDArray[np.float32]]:
    """Return -log p of each token of each document, and of the separator after it.

    Each document comes with whether special tokens are recognized in it.
    """
    front = default_prefix(loaded.tokenizer) if loaded.prefix is None else loaded.prefix
    end = [] if loaded.tokenizer.separator is None or not front else [loaded.tokenizer.separator]
    sequences = [np.array([*front, *loaded.tokenizer.encode(document, allow_special=allow_special), *end], np.int64)
                 for document, allow_special in documents]
    return [-values[max(len(front) - 1, 0) :] for values in token_log_probs(loaded.model, sequences, progress=True)]


def _validation_text(side: Side) -> tuple[Corpus, str]:
    """Return the validation text of a run, and what it is; also whether it has changed since."""
    own = fit_part(read_checkpoint(side.loaded.path, mmap=True), side.loaded.path)
    saved = read_settings(own).allowed
    options = {key.removeprefix("data."): value for key, value in saved.items() if key.startswith("data.")}
    if not options:
        raise UserError(f"{side.path} does not say which text it was validated on: give --input")
    data = TextDataModule(**options)
    data.tokenizer = side.loaded.tokenizer
    try:
        with data.cache.lock():
            spans = data.find_texts(evaluating=True).valid
            prepared = prepare(Texts((), spans), data.cache, vocab_size=data.vocab_size, special_tokens=[],
                               tokenizer=data.tokenizer, num_workers=data.num_workers, reading=data.reading)
    except MissingFileError as error:
        raise MissingFileError(f"{error}; or give another text with --input") from None
    now = TokenFile.open(prepared.valid).sha256
    is_changed = own.get("fingerprints", {}).get("validation text", now) != now
    change = " (it has changed since the training, which may have seen a part of it)" if is_changed else ""
    return Corpus(spans, allow_special=data.reading.allow_special), data.valid_name + change


def trained_alike(sides: Sequence[Side]) -> bool:
    """Return whether all runs were trained on the same files."""
    names = ("corpus", "train_files", "valid_files", "toy_stories", "toy_seed", "text_field", "errors")
    return len({repr([side.settings.get(f"data.{name}") for name in names]) for side in sides}) == 1


def verdict(difference: Interval, first: str, second: str, unit: str) -> str:
    """Return one sentence; the difference is the loss of the first minus that of the second."""
    if not difference.excludes_zero:
        return f"No difference seen: the loss of {first} minus that of {second} is {difference} {unit}."
    better = second if difference.mean > 0 else first
    return f"{better} is better by {Interval(abs(difference.mean), difference.half)} {unit}."
