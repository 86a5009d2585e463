"""Counts pre-tokens with hash tables: for `count_blocks` and `add_counts` of `tokenizer.train`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TypeAlias

import numpy as np

from tslm.fast.cpu.words import WORTH_LOADING, CompiledWordTable, find_bounds, is_available
from tslm.fast.door import Case, Substitute
from tslm.fast.tokenizer.probes import PROBE_SPECIALS, PROBE_TEXTS, example_words
from tslm.fast.tokenizer.scanner import Positions, pretoken_bounds, special_pattern
from tslm.fast.tokenizer.segments import divide_specials, segment_bounds
from tslm.fast.tokenizer.word_table import Values, WordTable, bounds_of, keep_freed_memory

PackedCounts: TypeAlias = tuple[bytes, Positions, Values]  # joined words, their sizes and their counts


def count_blocks(blocks: Iterable[bytes], special_tokens: Sequence[bytes], pattern: str = "gpt2") -> PackedCounts:
    """Count the pre-tokens of blocks of text: in prose by way of its segments (see `segments`), elsewhere directly."""
    keep_freed_memory()
    specials = special_pattern(special_tokens)
    within_segments, across_segments = divide_specials(special_tokens)
    blocks = iter(blocks)
    first = next(blocks, b"")
    segments, pretokens = _new_table(len(first)), _new_table(len(first))
    find = find_bounds if isinstance(segments, CompiledWordTable) else None
    for block in chain([first], blocks):
        bounds = segment_bounds(block, across_segments, find) if block else None
        if bounds is None:
            pretokens.count(block, pretoken_bounds(block, specials))
        else:
            segments.count(block, bounds)
    text, sizes, counts = _packed(segments)
    bounds = pretoken_bounds(text, within_segments)
    pretokens.count(text, bounds, counts[np.searchsorted(np.cumsum(sizes), bounds[:-1], "right")])
    for token in special_tokens:
        numbers = pretokens.number(token, np.array([0, len(token)]))
        pretokens.values[numbers] = 0
    return _packed(pretokens)


def add_counts(parts: Iterable[PackedCounts]) -> dict[bytes, int]:
    """Return the sum of the counts of several parts of a text."""
    parts = iter(parts)
    first = next(parts, (b"", np.empty(0, np.intp), np.empty(0, np.uint64)))
    total = _new_table(8 * len(first[0]))  # about as large was the text
    for text, sizes, counts in chain([first], parts):
        total.count(text, bounds_of(sizes), counts)
    return _unpacked(_packed(total))


def _new_table(size: int) -> CompiledWordTable | WordTable:
    """Return a table for the words of texts of about this size."""
    return CompiledWordTable() if size >= WORTH_LOADING and is_available() else WordTable()


def _packed(table: CompiledWordTable | WordTable) -> PackedCounts:
    """Return the words of a table whose values are their counts, without words of count 0."""
    (text, sizes), counts = table.words(), table.values
    kept = counts > 0
    return np.frombuffer(text, np.uint8)[np.repeat(kept, sizes)].tobytes(), sizes[kept], counts[kept]


def _supports(blocks: object, special_tokens: object, pattern: str = "gpt2") -> str | None:
    return "table" if pattern == "gpt2" else None  # the pattern of `scanner`


def _unpacked(packed: PackedCounts) -> dict[bytes, int]:
    text, sizes, counts = packed
    ends = np.cumsum(sizes).tolist()
    return {text[end - size : end]: n for size, end, n in zip(sizes.tolist(), ends, counts.tolist(), strict=True)}


def _probes(key: object) -> list[Case]:
    return [Case(([*PROBE_TEXTS, b" joined\xffby \xff\xff"], PROBE_SPECIALS), finish=_unpacked)]


def _sum_probes(key: object) -> list[Case]:
    parts = [(b"lowlower\0", [3, 5, 1], [5, 2, 1]), (b"", [], []), (b"lower and\0", [5, 4, 1], [1 << 40, 7, 1])]
    return [Case(([(text, np.array(sizes, np.intp), np.array(counts, np.uint64)) for text, sizes, counts in parts],))]


def _example(key: object) -> Case:
    return Case(([b"".join(example_words(5000, 30_000)) for _ in range(5)], []))


def _sum_example(key: object) -> Case:
    return Case(([count_blocks([b"".join(example_words(20_000, 60_000))], [])] * 3,))


COUNT_BLOCKS = Substitute(
    count_blocks, _supports, _probes, tolerance=lambda key: 0, examples=_example, keys=lambda: ["table"]
)
ADD_COUNTS = Substitute(
    add_counts, lambda parts: "table", _sum_probes, tolerance=lambda key: 0, examples=_sum_example,
    keys=lambda: ["table"],
)
