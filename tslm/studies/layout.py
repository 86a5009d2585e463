"""Format plain-text pages of 100 columns: titles, paragraphs and tables on the standard output."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

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
