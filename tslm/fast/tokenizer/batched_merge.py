"""Merges many words at once in numpy: in each step, every word makes its next merge.

Measured: a word takes 7 µs in the loop of `encode_words`, and 1 µs here in a batch of thousands.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tslm.fast.tokenizer.pair_ranks import PairRanks, Symbols
from tslm.fast.tokenizer.scanner import Bytes, Positions

LONGEST = 32  # bytes; a word takes as many steps as the longest word of its group
_GROUPS = (8, 16, LONGEST)  # words of up to so many bytes form a group
_WIDTH = 1 << 12  # words at a time, so that their arrays fit the cache
_NEVER = (1 << 63) - 1
_GONE = -1  # marks a token that was merged into its left neighbour


class Part(NamedTuple):
    """Some of the words: their indices, their joined symbols, and how many symbols each has."""

    members: Positions
    symbols: Symbols
    counts: Positions


class BatchedMerge:
    """Merges many words of up to `LONGEST` bytes at once.

    Args:
        ranks: the ranks of pairs of symbols; the symbols 0 to 255 are the bytes.
        merged: the symbol that the pair of each rank becomes.
        boundary: a symbol that is part of no pair.
    """

    def __init__(self, ranks: PairRanks, merged: Symbols, boundary: int) -> None:
        self._ranks, self._merged, self._boundary = ranks, merged, boundary

    def encode(self, text: Bytes, starts: Positions, sizes: Positions) -> tuple[Symbols, Positions]:
        """Merge in each word, again and again, the leftmost pair of the lowest rank.

        Args:
            text: the text that holds the words.
            starts: the start of each word.
            sizes: the length of each word in bytes, 1 to `LONGEST`.

        Returns:
            The joined symbols of the words, and how many each has.
        """
        parts = []
        shortest = 0
        for longest in _GROUPS:
            group = np.flatnonzero((sizes > shortest) & (sizes <= longest))
            for first in range(0, len(group), _WIDTH):
                members = group[first : first + _WIDTH]
                parts.append(Part(members, *self._merge(text, starts[members], sizes[members])))
            shortest = longest
        return in_order(parts, len(starts))

    def _merge(self, text: Bytes, starts: Positions, sizes: Positions) -> tuple[Symbols, Positions]:
        """Merge words of similar sizes: a word is a column, a byte is a row, with a boundary above and below."""
        width, height = len(starts), int(sizes.max()) + 2
        row = np.arange(-1, height - 1)[:, None]
        symbols = text.take(starts + row, mode="clip").astype(np.int64)
        symbols[(row < 0) | (row >= sizes)] = self._boundary
        symbols = symbols.ravel()  # positions below are indices of this array, row by row
        after, before = np.arange(width, len(symbols) + width), np.arange(-width, len(symbols) - width)
        # The order of merges, as one number: the rank in the upper bits, the position in the lower ones.
        bits = np.int64(len(symbols).bit_length())
        orders = np.full(len(symbols), _NEVER)

        def queue(position: Positions, left: Symbols, right: Symbols) -> None:
            ranks = self._ranks.find(left, right)
            orders[position] = np.where(ranks < self._ranks.never, (ranks << bits) | position, _NEVER)

        inside = np.flatnonzero(symbols[: len(symbols) - width] != self._boundary)
        queue(inside, symbols[inside], symbols[inside + width])
        while True:
            order = orders.reshape(height, width).min(axis=0)
            order = order[order != _NEVER]
            if not len(order):
                break
            at = order & ((1 << bits) - 1)
            right = after[at]
            following, preceding, new = after[right], before[at], self._merged[order >> bits]
            symbols[at], symbols[right], orders[right] = new, _GONE, _NEVER
            after[at], before[following] = following, at
            queue(
                np.concatenate([at, preceding]),
                np.concatenate([new, symbols[preceding]]),
                np.concatenate([symbols[following], new]),
            )
        table = symbols.reshape(height, width).T
        is_there = (table != self._boundary) & (table != _GONE)
        return table[is_there], is_there.sum(axis=1)


def in_order(parts: Sequence[Part], count: int) -> tuple[Symbols, Positions]:
    """Join the words of all parts, `count` in total, in the order of their indices."""
    counts = np.empty(count, np.intp)
    for part in parts:
        counts[part.members] = part.counts
    ends = np.cumsum(counts)
    symbols = np.empty(ends[-1] if count else 0, np.int64)
    for members, own, sizes in parts:
        symbols[np.repeat(ends[members] - np.cumsum(sizes), sizes) + np.arange(len(own))] = own
    return symbols, counts
