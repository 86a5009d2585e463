"""Format plain-text pages of 100 columns: titles, paragraphs and tables on the standard output; and save plots."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tslm.errors import MissingFileError, UserError
from tslm.files import atomic_write, check_outputs

WIDTH = 100


def print_title(text: str) -> None:
    """Print an underlined title after an empty line."""
    print(f"\n{text}\n{'-' * len(text)}")


def print_note(text: str) -> None:
    """Print a paragraph, wrapped at the width of the page."""
    print(textwrap.fill(text, WIDTH, break_on_hyphens=False))


def print_table(rows: Sequence[Sequence[str]], alignment: str) -> None:
    """Print a table; each column is as wide as its widest cell, and two spaces separate columns.

    Args:
        rows: the cells, including the header row.
        alignment: `<` or `>` for each column. If the last one is `<`, its long cells wrap onto further lines.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    wraps = alignment[-1] == "<"
    if wraps:
        widths[-1] = 0
    for row in rows:
        *first, last = [f"{cell:{align}{width}}" for cell, align, width in zip(row, alignment, widths, strict=True)]
        before = "".join(f"{cell}  " for cell in first)
        if not wraps:
            print((before + last).rstrip())
            continue
        wrapped = textwrap.fill(last, WIDTH, initial_indent=before, subsequent_indent=" " * len(before),
                                break_on_hyphens=False)
        print(wrapped or before.rstrip())


def check_plot(path: str | None) -> None:
    """Check that a plot can be drawn and written, before anything is measured.

    Raises:
        MissingFileError: its folder does not exist.
        UserError: the name does not end in .png, the file may not be written, or matplotlib is not installed.
    """
    if path is None:
        return
    check_outputs([path])
    if not path.lower().endswith(".png"):
        raise UserError(f"the plot {path} does not end in .png: give --plot a name that does")
    if not Path(path).parent.is_dir():
        raise MissingFileError(f"the folder of the plot {path} does not exist: give --plot a file in one that does")
    new_figure()


def new_figure(**options: Any) -> Any:  # noqa: ANN401 - of a module without types
    """Return a figure of matplotlib; pyplot would look for a screen.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("no plot can be drawn, because matplotlib is not installed: `pip install 'tslm[plot]'`, or "
                        "give --plot null") from None
    return Figure(layout="constrained", **options)


def save_plot(figure: Any, path: Path) -> None:  # noqa: ANN401 - of a module without types
    """Write a figure as a PNG."""
    with atomic_write(path) as file:
        figure.savefig(file, dpi=120, format="png")
