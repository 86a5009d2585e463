"""Hash tables in numpy that look up whole arrays of words at a time.

A word is packed into one or two 64-bit integers, its key. Each key has exactly one slot, so every lookup takes the same
steps. A key whose slot is occupied by another must be stored elsewhere (see `word_table`).
"""

from __future__ import annotations

import contextlib

import numpy as np
import numpy.typing as npt

from tslm.fast.tokenizer.scanner import Mask, Positions

Keys = npt.NDArray[np.uint64]

PACKED_BYTES = 16  # the length of the longest word that has a key

# Mask n keeps the first n bytes of a little-endian 64-bit integer.
_MASKS = np.array([(1 << 8 * n) - 1 for n in range(9)], np.uint64)


def keep_freed_memory() -> None:
    """Let the C library keep the memory of freed arrays for the next ones.

    By default glibc returns blocks of more than 128 KiB to the system, and each 4 KiB of the next array cost a page
    fault. The threshold rises with the size of a freed block (mallopt(3), M_MMAP_THRESHOLD), up to 32 MiB. The array is
    never written, so it takes no memory. Measured: without it, encoding files takes a fifth longer.
    """
    with contextlib.suppress(MemoryError):  # where memory is limited (ulimit -v)
        np.empty(31 << 20, np.uint8)


def pack_short(chunks: Keys, bounds: Positions) -> Keys:
    """Return words of up to 8 bytes as integers with their last byte at the top, and 0 for longer words.

    Args:
        chunks: the text, 8 bytes at a time, little-endian, followed by two more chunks.
        bounds: the start of each word, and the end of the last one.
    """
    bits = bounds.view(np.uint64) << np.uint64(3)
    # The 8 bytes from a position on are parts of two chunks, because unaligned loads are slow in numpy.
    chunk = bounds[:-1] >> 3
    shift = bits[:-1] & np.uint64(56)
    keys: Keys = chunks.take(chunk, mode="clip")
    keys >>= shift
    upper = chunks[1:].take(chunk, mode="clip")
    upper <<= np.uint64(64) - shift
    keys |= upper
    # The bytes after the word are shifted out at the top. Words of more than 8 bytes are shifted out completely, since
    # the difference wraps and numpy defines a shift by 64 and more as 0.
    keys <<= bits[:-1] - bits[1:] + np.uint64(64)
    return keys


def pack_wide(chunks: Keys, starts: Positions, sizes: Positions) -> Keys:
    """Return the first 16 bytes of words as pairs of integers, filled with zeros.

    Args:
        chunks: the text, 8 bytes at a time, little-endian, followed by two more chunks.
        starts: the start of each word.
        sizes: the length of each word in bytes.
    """
    loads: Keys = np.ndarray(8 * len(chunks) - 7, "<u8", chunks, strides=(1,))  # 8 bytes from every position on
    keys = np.empty((len(starts), 2), np.uint64)
    np.bitwise_and(loads[starts], _MASKS.take(sizes, mode="clip"), out=keys[:, 0])
    np.bitwise_and(loads[starts + 8], _MASKS.take(np.maximum(sizes - 8, 0), mode="clip"), out=keys[:, 1])
    return keys


class ShortTable:
    """A table of single integers, each with a value beside it; the number of a key is its slot.

    Args:
        multiplier: of the hash: the product's top bits (Fibonacci hashing; Knuth, TAOCP 3, section 6.4).
        bits: the table has 2 ** bits slots; 16 bits take a megabyte, of which the frequent words use a part.
        extra: the number of values for words in other tables.

    Attributes:
        values: a value for each number, 0 at first. Values alternate with the keys, so numbers are even, and looking up
            a key brings its value into the cache. From `end` on there are only values, for words in other tables.
        end: one more than the largest number.
    """

    def __init__(self, multiplier: int, bits: int, extra: int = 0) -> None:
        self._multiplier = np.uint64(multiplier)
        self._shift = np.uint64(64 - bits - 1)
        self.end = 2 << bits
        self._allocate(self.end + extra)
        self.clear()

    def _allocate(self, size: int) -> None:
        self._cells: Keys = np.zeros(size + 1, np.uint64)
        self.values = self._cells[1:]

    def reserve_values(self, size: int) -> None:
        """Grow so that there are values for the numbers below `size`."""
        if size > len(self.values):
            cells = self._cells
            self._allocate(2 * size)
            self._cells[: len(cells)] = cells

    def clear(self) -> None:
        """Remove all keys and values."""
        self._cells.fill(0)
        self._cells[0] = 1  # a sentinel: slot 0 never holds key 0, which means "no word"

    def find(self, keys: Keys) -> tuple[Positions, Positions]:
        """Return the slot of each key, and the indices of the keys that are not there."""
        hashes = keys * self._multiplier
        hashes >>= self._shift
        hashes &= np.uint64(self.end - 2)
        slots = hashes.view(np.intp)
        return slots, np.flatnonzero(self._cells.take(slots, mode="clip") != keys)

    def insert(self, keys: Keys, slots: Positions) -> tuple[Mask, Positions]:
        """Store those keys whose slots are free; of several keys for one slot the first is stored.

        Returns:
            Whether each key is in the table now, and the indices of the distinct keys that are new.
        """
        is_stored = np.zeros(len(keys), np.bool_)
        candidates = np.flatnonzero(keys != 0)
        candidates = candidates[self._cells[slots[candidates]] == 0]
        new = _first_per_slot(self._cells, slots, candidates)
        self._cells[slots[new]] = keys[new]
        is_stored[candidates] = self._cells[slots[candidates]] == keys[candidates]
        return is_stored, new

    def items(self) -> tuple[Keys, Positions]:
        """Return all keys, as rows of one, and their numbers."""
        occupied = 2 * np.flatnonzero(self._cells[2 : self.end : 2]) + 2
        return self._cells[occupied][:, None], occupied


class WideTable:
    """A table from pairs of integers to numbers, which grows.

    Args:
        multiplier: of the hash.
        bits: the table has 2 ** bits slots at first.
    """

    def __init__(self, multiplier: int, bits: int) -> None:
        self._multiplier = np.uint64(multiplier)
        self._allocate(bits)

    def _allocate(self, bits: int) -> None:
        self._bits = bits
        self._size = 0
        # A row holds a key, its number + 1 and padding, since a lookup waits for memory once a row. Free rows are 0.
        self._rows: Keys = np.zeros((1 << bits, 4), np.uint64)

    def clear(self) -> None:
        """Remove all keys."""
        self._size = 0
        self._rows.fill(0)

    def __len__(self) -> int:
        return self._size

    def find(self, keys: Keys) -> Positions:
        """Return the number of each key, or -1 if it is not there, also for the key 0."""
        rows = self._rows.take(self._slots(keys), axis=0, mode="clip")
        is_there = rows[:, 0] == keys[:, 0]
        is_there &= rows[:, 1] == keys[:, 1]
        rows[:, 2] *= is_there
        numbers: Positions = rows[:, 2].view(np.intp) - 1
        return numbers

    def find_free(self, keys: Keys) -> Positions:
        """Return the indices of distinct keys whose slots are free, the first key for each slot; store them next."""
        slots = self._slots(keys)
        return _first_per_slot(self._rows[:, 2], slots, np.flatnonzero(self._rows[slots, 2] == 0))

    def store(self, keys: Keys, numbers: Positions) -> None:
        """Store keys that `find_free` returned under these numbers."""
        rows = np.zeros((len(keys), 4), np.uint64)
        rows[:, :2] = keys
        rows[:, 2] = numbers + 1
        self._rows[self._slots(keys)] = rows
        self._size += len(keys)

    def reserve(self, expected: int) -> bool:
        """Grow so that at most a quarter of the slots is occupied after `expected` more keys; return whether so."""
        bits = self._bits
        while 4 * (self._size + expected) > 1 << bits:
            bits += 1
        if bits == self._bits:
            return False
        rows = self._rows[self._rows[:, 2] != 0]
        self._allocate(bits)
        self._rows[self._slots(rows)] = rows  # all in different slots, since a longer hash starts with the shorter one
        self._size = len(rows)
        return True

    def items(self) -> tuple[Keys, Positions]:
        """Return all keys, as rows of two, and their numbers."""
        occupied = self._rows[self._rows[:, 2] != 0]
        return np.ascontiguousarray(occupied[:, :2]), occupied[:, 2].view(np.intp) - 1

    def _slots(self, keys: Keys) -> Positions:
        mixed = keys[:, 0] * self._multiplier
        mixed ^= mixed >> np.uint64(29)
        mixed ^= keys[:, 1]
        mixed *= self._multiplier
        mixed >>= np.uint64(64 - self._bits)
        return mixed.view(np.intp)


def _first_per_slot(column: Keys, slots: Positions, candidates: Positions) -> Positions:
    """Return the first candidate for each of the free slots in a column, and write a mark there."""
    wanted, marks = slots[candidates], candidates.view(np.uint64) + np.uint64(1)
    column[wanted[::-1]] = marks[::-1]  # the last of several assignments to one slot remains
    first: Positions = candidates[column[wanted] == marks]
    return first
