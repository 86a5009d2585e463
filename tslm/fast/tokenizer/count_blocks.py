"""Counts pre-tokens with hash tables in numpy: substitutes for `count_blocks` and `add_counts` of `tokenizer.train`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np

from tslm.fast.door import Case, Substitute
from tslm.fast.tokenizer.hash_tables import Keys, keep_freed_memory
from tslm.fast.tokenizer.probes import PROBE_SPECIALS, PROBE_TEXTS, example_words
from tslm.fast.tokenizer.scanner import Positions, pretoken_bounds, special_pattern
from tslm.fast.tokenizer.segments import divide_specials, segment_bounds
from tslm.fast.tokenizer.word_table import WordTable

_BATCH = 1 << 14  # words that are looked up in the wider tables at a time


PackedCounts: TypeAlias = tuple[bytes, Positions, Keys]  # joined words, their sizes and their counts


def count_blocks(blocks: Iterable[bytes], special_tokens: Sequence[bytes], pattern: str = "gpt2") -> PackedCounts:
    """Count the pre-tokens of blocks of text: in prose by way of its segments (see `segments`), elsewhere directly."""
    keep_freed_memory()
    specials = special_pattern(special_tokens)
    within_segments, across_segments = divide_specials(special_tokens)
    segments, pretokens = _Tally(), _Tally()
    for block in blocks:
        bounds = segment_bounds(block, across_segments) if block else None
        if bounds is None:
            pretokens.add(block, pretoken_bounds(block, specials))
        else:
            segments.add(block, bounds)
    text, sizes, counts = segments.words()
    bounds = pretoken_bounds(text, within_segments)
    pretokens.add_times(text, bounds, counts[np.searchsorted(np.cumsum(sizes), bounds[:-1], "right")])
    for token in special_tokens:
        pretokens.remove(token)
    return pretokens.words()


def add_counts(parts: Iterable[PackedCounts]) -> dict[bytes, int]:
    """Return the sum of the counts of several parts of a text."""
    total = _Tally()
    for text, sizes, counts in parts:
        total.add_times(text, np.append(0, np.cumsum(sizes)), counts)
    return _unpacked(total.words())


class _Tally:
    """The count of each word."""

    def __init__(self) -> None:
        self._table = WordTable()
        self._waiting: list[Keys] = []  # words to look up in the wider tables
        self._waiting_count = 0

    def add(self, text: bytes, bounds: Positions) -> None:
        """Count each word of a text once."""
        numbers, _, misses = self._table.number_frequent(text, bounds)
        np.add.at(self._table.values, numbers, np.uint64(1))
        for wrong in (misses.packed_at, misses.others_at):
            np.subtract.at(self._table.values, numbers[wrong], np.uint64(1))
        others, _ = self._table.number_others(misses.others)
        np.add.at(self._table.values, others, np.uint64(1))
        self._waiting.append(misses.keys)
        self._waiting_count += len(misses.keys)
        if self._waiting_count > _BATCH:
            self._flush()

    def add_times(self, text: bytes, bounds: Positions, times: Keys) -> None:
        """Count each word of a text so many times."""
        numbers, _ = self._table.number(text, bounds)
        np.add.at(self._table.values, numbers, times)

    def _flush(self) -> None:
        if self._waiting:
            numbers, _ = self._table.number_packed(np.concatenate(self._waiting))
            np.add.at(self._table.values, numbers, np.uint64(1))
            self._waiting, self._waiting_count = [], 0

    def remove(self, word: bytes) -> None:
        """Set the count of a word to 0."""
        self._flush()
        numbers, _ = self._table.number(word, np.array([0, len(word)]))
        self._table.values[numbers] = 0

    def words(self) -> PackedCounts:
        """Return the joined distinct words, their sizes and their counts, without words of count 0."""
        self._flush()
        text, sizes, numbers = self._table.words()
        counts = self._table.values[numbers]
        kept = counts > 0
        text = np.frombuffer(text, np.uint8)[np.repeat(kept, sizes)].tobytes()
        return text, sizes[kept], counts[kept]


def _supports(blocks: object, special_tokens: object, pattern: str = "gpt2") -> str | None:
    return "numpy" if sys.byteorder == "little" and pattern == "gpt2" else None  # the pattern of `scanner`


def _sum_supports(parts: object) -> str | None:
    return "numpy" if sys.byteorder == "little" else None


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
    count_blocks, _supports, _probes, tolerance=lambda key: 0, examples=_example, keys=lambda: ["numpy"]
)
ADD_COUNTS = Substitute(
    add_counts, _sum_supports, _sum_probes, tolerance=lambda key: 0, examples=_sum_example, keys=lambda: ["numpy"]
)
