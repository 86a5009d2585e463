"""Counts pre-tokens in blocks of text with hash tables in numpy: a substitute for `tokenizer.train.count_blocks`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

import numpy as np

from tslm.fast.door import Case, Substitute
from tslm.fast.tokenizer.hash_tables import Keys, keep_freed_memory
from tslm.fast.tokenizer.probes import PROBE_SPECIALS, PROBE_TEXTS, example_words
from tslm.fast.tokenizer.scanner import Positions, pretoken_bounds, special_pattern
from tslm.fast.tokenizer.segments import divide_specials, segment_bounds
from tslm.fast.tokenizer.word_table import WordTable

_BATCH = 1 << 14  # words that are looked up in the wider tables at a time


def count_blocks(blocks: Iterable[bytes], special_tokens: Sequence[bytes]) -> dict[bytes, int]:
    """Count the pre-tokens of blocks of text: in prose by way of its segments (see `segments`), elsewhere directly."""
    keep_freed_memory()
    pattern = special_pattern(special_tokens)
    within_segments, across_segments = divide_specials(special_tokens)
    segments, pretokens = _Tally(), _Tally()
    for block in blocks:
        bounds = segment_bounds(block, across_segments) if block else None
        if bounds is None:
            pretokens.add(block, pretoken_bounds(block, pattern))
        else:
            segments.add(block, bounds)
    text, sizes, counts = segments.words()
    bounds = pretoken_bounds(text, within_segments)
    pretokens.add_times(text, bounds, counts[np.searchsorted(np.cumsum(sizes), bounds[:-1], "right")])
    return pretokens.as_dict(without=special_tokens)


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

    def words(self) -> tuple[bytes, Positions, Keys]:
        """Return the joined distinct words, their sizes and their counts."""
        self._flush()
        words = self._table.words()
        return words.text, words.sizes, self._table.values[words.numbers]

    def as_dict(self, without: Iterable[bytes]) -> dict[bytes, int]:
        """Return the count of each word, except those in `without`."""
        text, sizes, counts = self.words()
        ends = np.cumsum(sizes)
        counted = {
            text[start:end]: count
            for start, end, count in zip((ends - sizes).tolist(), ends.tolist(), counts.tolist(), strict=True)
        }
        for word in without:
            counted.pop(word, None)
        return counted


def _supports(blocks: object, special_tokens: object) -> str | None:
    return "numpy" if sys.byteorder == "little" else None


def _probes(key: object) -> list[Case]:
    return [Case(([*PROBE_TEXTS, b" joined\xffby \xff\xff"], PROBE_SPECIALS))]


def _example(key: object) -> Case:
    return Case(([b"".join(example_words(5000, 30_000)) for _ in range(5)], []))


COUNT_BLOCKS = Substitute(
    count_blocks, _supports, _probes, tolerance=lambda key: 0, examples=_example, keys=lambda: ["numpy"]
)
