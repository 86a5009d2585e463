"""Hash tables in numpy, from words packed into 64-bit integers to numbers: all words of a batch at once.

Text as 64-bit integers with the borders of words comes in; keys, places and numbers go out. Both tables have one place
per key and no probing, so that a lookup is the same for all; whoever finds the place taken has to look elsewhere.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tslm.tokenizer.pretokenize import Mask, Positions, sparse_nonzero
from tslm.tokenizer.workspace import Workspace

Keys = npt.NDArray[np.uint64]

PACKED_BYTES = 16  # of the longest word with a key

# Mask n keeps the first n bytes of a little-endian 64-bit integer.
_MASKS = np.array([(1 << 8 * n) - 1 for n in range(9)], np.uint64)


def pack_short(chunks: Keys, borders: Positions, space: Workspace) -> Keys:
    """Return words of up to 8 bytes as integers, their last byte at the top, and 0 for longer ones.

    Args:
        chunks: the text, 8 bytes at a time, little-endian, with two more chunks behind its end.
        borders: where each word begins, and where the last one ends.
        space: where to work.
    """
    count = len(borders) - 1
    keys, upper, shift = (space.array(name, count, np.uint64) for name in ("keys", "upper", "shift"))
    bits = np.left_shift(borders.view(np.uint64), 3, out=space.array("bits", count + 1, np.uint64))
    # The 8 bytes from a place on are parts of two neighbouring chunks, as numpy is slow to load across their border.
    chunk = np.right_shift(borders[:-1], 3, out=space.array("chunk", count, np.intp))
    np.bitwise_and(bits[:-1], 56, out=shift)
    np.right_shift(chunks.take(chunk, mode="clip", out=keys), shift, out=keys)
    np.subtract(64, shift, out=shift)
    np.left_shift(chunks[1:].take(chunk, mode="clip", out=upper), shift, out=upper)
    np.bitwise_or(keys, upper, out=keys)
    # What lies behind the word is shifted out at the top, and so is all of a word of more than 8 bytes: 64 and more is
    # what numpy takes it for.
    np.add(np.subtract(bits[:-1], bits[1:], out=shift), 64, out=shift)
    return np.left_shift(keys, shift, out=keys)


def pack_wide(chunks: Keys, begin: Positions, sizes: Positions) -> Keys:
    """Return words as pairs of integers, the first 8 bytes and the next 8, filled up with zeros.

    Args:
        chunks: the text, 8 bytes at a time, little-endian, with two more chunks behind its end.
        begin: where each word begins.
        sizes: how many bytes it has; of more than 16 the first 16 count.
    """
    loads: Keys = np.ndarray(8 * len(chunks) - 7, "<u8", chunks, strides=(1,))  # 8 bytes from every position on
    keys = np.empty((len(begin), 2), np.uint64)
    np.bitwise_and(loads[begin], _MASKS.take(sizes, mode="clip"), out=keys[:, 0])
    np.bitwise_and(loads[begin + 8], _MASKS.take(np.maximum(sizes - 8, 0), mode="clip"), out=keys[:, 1])
    return keys


class PlaceTable:
    """A table of single integers, each with a value beside it; a key's place is its number.

    Args:
        multiplier: of the hash: the product's top bits (Fibonacci hashing; Knuth, TAOCP 3, section 6.4).
        bits: 2 ** bits places. With 16 they take a megabyte, of which the frequent words use a part.
        room: for so many values of words in other tables.

    Attributes:
        values: a value for each number, 0 at first, between the keys: numbers are even, and where a key is looked up
            its value has come into the cache along with it. From `end` on there are values only, for other tables.
        end: one more than the greatest number.
    """

    def __init__(self, multiplier: int, bits: int, room: int = 0) -> None:
        self._multiplier = np.uint64(multiplier)
        self._shift = np.uint64(64 - bits - 1)
        self.end = 2 << bits
        self._reserve(self.end + room)
        self.clear()

    def _reserve(self, size: int) -> None:
        self._cells: Keys = np.zeros(size + 1, np.uint64)
        self.values = self._cells[1:]

    def make_values(self, size: int) -> None:
        """See to it that there are values for numbers below `size`."""
        if size > len(self.values):
            cells = self._cells
            self._reserve(2 * size)
            self._cells[: len(cells)] = cells

    def clear(self) -> None:
        """Forget all keys and values."""
        self._cells.fill(0)
        self._cells[0] = 1  # no word's key: 0 stands for none, and is not to be found in its place, which is this one

    def find(self, keys: Keys, space: Workspace) -> tuple[Positions, Positions]:
        """Return the place of each key, and the indices of those that are missed there."""
        hashes = np.multiply(keys, self._multiplier, out=space.array("hashes", len(keys), np.uint64))
        np.right_shift(hashes, self._shift, out=hashes)
        places = np.bitwise_and(hashes, self.end - 2, out=hashes).view(np.intp)
        stored = self._cells.take(places, mode="clip", out=space.array("stored", len(keys), np.uint64))
        return places, sparse_nonzero(np.not_equal(stored, keys, out=space.array("missed", len(keys), np.bool_)))

    def claim(self, keys: Keys, places: Positions) -> tuple[Mask, Positions]:
        """Store keys that are not there yet, as far as their places are free: first come, first served.

        Returns:
            Whether each key is there now, and the indices of the distinct ones that are new.
        """
        is_there = np.zeros(len(keys), np.bool_)
        candidates = np.flatnonzero(keys != 0)
        candidates = candidates[self._cells[places[candidates]] == 0]
        new = _first_comers(self._cells, places, candidates)
        self._cells[places[new]] = keys[new]
        is_there[candidates] = self._cells[places[candidates]] == keys[candidates]
        return is_there, new

    def items(self) -> tuple[Keys, Positions]:
        """Return all keys, as rows of one, and their numbers."""
        taken = 2 * np.flatnonzero(self._cells[2 : self.end : 2]) + 2
        return self._cells[taken][:, None], taken


class WideTable:
    """A table from pairs of integers to numbers, which grows.

    Args:
        multiplier: of the hash.
        bits: 2 ** bits places at first.
    """

    def __init__(self, multiplier: int, bits: int) -> None:
        self._multiplier = np.uint64(multiplier)
        self._allocate(bits)

    def _allocate(self, bits: int) -> None:
        self._bits = bits
        self._taken = 0
        # Key, number + 1 and nothing, in one row, since a lookup waits for memory once a row; all 0 where nothing is.
        self._rows: Keys = np.zeros((1 << bits, 4), np.uint64)

    def clear(self) -> None:
        """Forget all keys, but keep the room."""
        self._taken = 0
        self._rows.fill(0)

    def __len__(self) -> int:
        return self._taken

    def find(self, keys: Keys) -> Positions:
        """Return the number of each key, -1 for those that are not there and for the key 0."""
        rows = self._rows.take(self._places(keys), axis=0, mode="clip")
        is_there = rows[:, 0] == keys[:, 0]
        is_there &= rows[:, 1] == keys[:, 1]
        rows[:, 2] *= is_there
        numbers: Positions = rows[:, 2].view(np.intp) - 1
        return numbers

    def find_free(self, keys: Keys) -> Positions:
        """Return the indices of distinct keys whose places are free, first come, first served; they must be stored."""
        places = self._places(keys)
        return _first_comers(self._rows[:, 2], places, np.flatnonzero(self._rows[places, 2] == 0))

    def store(self, keys: Keys, numbers: Positions) -> None:
        """Store keys, found free, under these numbers."""
        rows = np.zeros((len(keys), 4), np.uint64)
        rows[:, :2] = keys
        rows[:, 2] = numbers + 1
        self._rows[self._places(keys)] = rows
        self._taken += len(keys)

    def make_room(self, expected: int) -> bool:
        """Grow so that after `expected` more keys at most a quarter of the places is taken; tell if that was needed."""
        bits = self._bits
        while 4 * (self._taken + expected) > 1 << bits:
            bits += 1
        if bits == self._bits:
            return False
        rows = self._rows[self._rows[:, 2] != 0]
        self._allocate(bits)
        self._rows[self._places(rows)] = rows  # all in different places: a longer hash begins with the shorter one
        self._taken = len(rows)
        return True

    def items(self) -> tuple[Keys, Positions]:
        """Return all keys, as rows of two, and their numbers."""
        taken = self._rows[self._rows[:, 2] != 0]
        return np.ascontiguousarray(taken[:, :2]), taken[:, 2].view(np.intp) - 1

    def _places(self, keys: Keys) -> Positions:
        mixed = keys[:, 0] * self._multiplier
        mixed ^= mixed >> np.uint64(29)
        mixed ^= keys[:, 1]
        mixed *= self._multiplier
        mixed >>= np.uint64(64 - self._bits)
        return mixed.view(np.intp)


def _first_comers(column: Keys, places: Positions, candidates: Positions) -> Positions:
    """Return for each of the free places in a column the first of the candidates for it; leave a mark there."""
    wanted, marks = places[candidates], candidates.view(np.uint64) + np.uint64(1)
    column[wanted[::-1]] = marks[::-1]  # of several assignments to one place the last one stays
    first: Positions = candidates[column[wanted] == marks]
    return first
