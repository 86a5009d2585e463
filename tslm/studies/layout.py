"""Plain-text pages of 100 columns: titles, tables and notes. Text goes in, lines on the standard output come out."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

WIDTH = 100


def print_title(text: str) -> None:
    """Print a title, set apart from what stands above it."""
    print(f"\n{text}\n{'-' * len(text)}")


def print_note(text: str) -> None:
    """Print a paragraph."""
    print(textwrap.fill(text, WIDTH, break_on_hyphens=False))


def print_table(rows: Sequence[Sequence[str]], alignment: str) -> None:
    """Print cells in columns as wide as the widest of them, two spaces apart.

    Args:
        rows: the lines of the table, its heading among them.
        alignment: `<` or `>` for each column. In the last one, which may hold anything, long text goes on below itself.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if alignment[-1] == "<":
        widths[-1] = 0
    for row in rows:
        *first, last = [f"{cell:{align}{width}}" for cell, align, width in zip(row, alignment, widths, strict=True)]
        before = "".join(f"{cell}  " for cell in first)
        wrapped = textwrap.fill(last, WIDTH, initial_indent=before, subsequent_indent=" " * len(before),
                                break_on_hyphens=False)
        print(wrapped or before.rstrip())
