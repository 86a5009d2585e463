"""Prints a comparison of runs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from tslm.errors import UserError
from tslm.studies.comparison import (
    curve_table,
    differing_settings,
    measure,
    open_side,
    plot_curves,
    trained_alike,
    verdict,
)
from tslm.studies.layout import check_plot
from tslm.tokenizer.corpus import Corpus


def print_comparison(runs: Sequence[str], to: Sequence[str], corpus: Corpus | None, plot: str | None,
                     max_documents: int, ffns: Sequence[str] = ()) -> None:
    """Print settings, curves, losses and a verdict.

    The arguments are the options of `compare`; without a corpus, the text is the first run's for validation.

    Raises:
        UserError: there is nothing to compare, a run is damaged, or the plot cannot be drawn.
    """
    if len(runs) + len(to) < 2:
        raise UserError("one run alone is named: give a second one to compare it with, as in `compare A B`")
    if max_documents < 1:
        raise UserError(f"max_documents is {max_documents}: give at least 1")
    check_plot(plot)
    sides = [open_side(path, ffns) for path in [*runs, *to]]
    names = [f"A{n}" for n in range(1, len(runs) + 1)] + [f"B{n}" for n in range(1, len(to) + 1)]
    if not to:
        names = [chr(ord("A") + n) if n < 26 else f"run{n + 1}" for n in range(len(runs))]
    for name, side in zip(names, sides, strict=True):
        print(f"{name:<4}{side.path} ({side.loaded.path.name}, step {side.loaded.step:,})")
    print("\nSettings that differ:")
    rows = differing_settings(sides)
    _print_settings(rows, names)
    print(f"\n{curve_table(sides, names)}\n")
    if plot is not None:
        plot_curves(sides, names, Path(plot))
        print(f"The curves are in {plot}.\n")
    losses = measure(sides, corpus, max_documents)
    print(f"Losses on {losses.text}:")
    for name, mean in zip(names, losses.means, strict=True):
        print(f"  {name:<4}{mean:.4f} {losses.unit}")
    if not trained_alike(sides):
        print("The runs were not trained on the same files: one of them may have been trained on this text.")
    print()
    if to:
        first, second = range(len(runs)), range(len(runs), len(sides))
        print(f"{verdict(losses.difference(first, second), 'A', 'B', losses.unit)} (the mean of these models, on texts "
              "like this; it knows nothing of other seeds)")
        if len(runs) < 2 or len(to) < 2:
            print("Over seeds nothing can be said: give two runs or more on each side.")
            return
        if same := losses.repeated(first) or losses.repeated(second):
            pair = " and ".join(names[n] for n in same)
            print(f"Over seeds nothing can be said: {pair} are the same model. Give runs of other seeds.")
            return
        print(f"Over seeds: {verdict(losses.over_seeds(first, second), 'A', 'B', losses.unit)}")
        return
    for one, other in combinations(range(len(sides)), 2):
        if one == 0 or len(sides) <= 3:
            print(f"{verdict(losses.difference([one], [other]), names[one], names[other], losses.unit)} (these two "
                  "models, on texts like this; it knows nothing of other seeds)")


def _print_settings(rows: Sequence[tuple[str, list[Any]]], names: Sequence[str]) -> None:
    if not rows:
        print("  none")
        return
    width = max(len(key) for key, _ in rows)
    for key, values in rows:
        cells = "  ".join(f"{name}: {value!s:.40}" for name, value in zip(names, values, strict=True))
        print(f"  {key:<{width}}  {cells}")
