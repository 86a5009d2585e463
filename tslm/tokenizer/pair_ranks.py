"""Looks up the ranks of pairs of symbols, whole arrays of them at a time.

The merges come in once, as numbers; then arrays of left and right symbols come in, and the ranks of their pairs go out.
The table never changes, so it can be made without collisions: a lookup is the same few steps for every pair, be it
there or not.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Symbols = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]

_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio (Fibonacci hashing)
_NO_KEY = np.uint64((1 << 64) - 1)


class PairRanks:
    """A perfect hash table from pairs of symbols to ranks, by "hash and displace".

    A key's bucket is one hash of it; the bucket has a multiplier of its own, with which each of its keys gets a place
    that no other key has. Such multipliers are found by trying, for the largest buckets first, while most places are
    free. (Belazzougui, Botelho and Dietzfelbinger 2009, "Hash, displace, and compress", without compressing; the
    hashes are multiplications, as in Knuth, TAOCP 3, section 6.4.)

    Args:
        left: the left part of each merge; its place is its rank.
        right: the right part.
        base: above every symbol's number.

    Attributes:
        never: the rank of a pair that is not merged, above all others.
    """

    def __init__(self, left: Symbols, right: Symbols, base: int) -> None:
        self.never = len(left)
        self._base = np.uint64(base)
        # Of a pair that is listed twice the first rank counts.
        keys, ranks = np.unique(self._keys(left, right), return_index=True)
        bits = max(1, (2 * len(keys) - 1).bit_length())  # at most half of the places are taken
        self._to_place = np.uint64(64 - bits)
        self._to_bucket = np.uint64(64 - max(1, bits - 2))  # up to two keys a bucket, on average
        self._cells: Keys = np.full(1 << bits, _NO_KEY)
        self._ranks = np.full(1 << bits, self.never, np.int64)
        self._multipliers: Keys = np.full(1 << max(1, bits - 2), _ODD)
        self._fill(keys, ranks)

    def _keys(self, left: Symbols, right: Symbols) -> Keys:
        # Never 0, which every multiplier would send to the same place.
        return (left.view(np.uint64) + np.uint64(1)) * self._base + right.view(np.uint64)

    def _fill(self, keys: Keys, ranks: Symbols) -> None:
        buckets = self._buckets(keys)
        sizes = np.bincount(buckets, minlength=len(self._multipliers))
        tried = 0
        for size in np.unique(sizes)[::-1].tolist():
            rest = np.flatnonzero(sizes[buckets] == size)  # keys without a place, in buckets of this size
            while len(rest):
                wanting = np.unique(buckets[rest])
                # An odd number for each bucket, another one in each round.
                numbers = np.arange(tried, tried + len(wanting)).view(np.uint64)
                self._multipliers[wanting] = (numbers * _ODD << np.uint64(1)) | np.uint64(1)
                tried += len(wanting)
                places = self._places(keys[rest], buckets[rest])
                claims = np.arange(len(rest))
                claimed_by = np.empty(len(self._cells), np.intp)
                claimed_by[places] = claims  # of several claims to one place the last one stays
                is_granted = (self._cells[places] == _NO_KEY) & (claimed_by[places] == claims)
                is_housed = np.bincount(buckets[rest], is_granted, len(sizes))[buckets[rest]] == size
                self._cells[places[is_housed]] = keys[rest[is_housed]]
                self._ranks[places[is_housed]] = ranks[rest[is_housed]]
                rest = rest[~is_housed]

    def _buckets(self, keys: Keys) -> Symbols:
        return (keys * _ODD >> self._to_bucket).view(np.int64)

    def _places(self, keys: Keys, buckets: Symbols) -> Symbols:
        return (keys * self._multipliers.take(buckets) >> self._to_place).view(np.int64)

    def find(self, left: Symbols, right: Symbols) -> Symbols:
        """Return the rank of each pair, `never` for those that are not merged."""
        keys = self._keys(left, right)
        places = self._places(keys, self._buckets(keys))
        return np.where(self._cells.take(places) == keys, self._ranks.take(places), self.never)
