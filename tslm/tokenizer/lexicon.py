"""Numbers the distinct pre-tokens of a text, block by block, almost wholly in numpy.

A block of text with the positions of its pre-tokens comes in; for each pre-token the number of its word goes out: 0 for
the first distinct word, 1 for the next, and so on. Counting and encoding both stand on it: what is known about a word
(its count, its token ids) lies in arrays under its number.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tslm.tokenizer.pretokenize import Positions

Keys = npt.NDArray[np.uint64]

_COLUMNS = (1, 2, 4)  # words of up to 8, 16 and 32 bytes are packed into so many 64-bit integers
_PADDING = 8 * _COLUMNS[-1]
# Mask n keeps the first n bytes of a little-endian 64-bit integer.
_MASKS = np.array([(1 << 8 * n) - 1 for n in range(9)], np.uint64)
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: Fibonacci hashing (Knuth, TAOCP 3, section 6.4)


class Lexicon:
    """Distinct words and their numbers.

    A word of up to 32 bytes is packed into integers and looked up in a flat table, all words of a block at once. A
    dictionary holds the rest: the longer words, and those whose place in the table is taken.

    Args:
        table_bits: each table begins with 2 ** table_bits places; it grows when a quarter of them is taken.
        may_grow: whether it may; if not, a full table sends more and more words to the dictionary.
    """

    def __init__(self, table_bits: int = 16, may_grow: bool = True) -> None:
        self._may_grow = may_grow
        self._tables = [_Table(columns, table_bits) for columns in _COLUMNS]
        self._others: dict[bytes, int] = {}
        self._size = 0

    def clear(self) -> None:
        """Forget all words; the next one gets the number 0."""
        for table in self._tables:
            table.clear()
        self._others.clear()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def number(self, text: bytes, starts: Positions) -> tuple[Positions, list[bytes]]:
        """Return the number of each word of a text, and the words that are new, in the order of their numbers.

        Args:
            text: a block of text, divided into words without a gap.
            starts: the position of each word's first byte, in ascending order, the first of them 0.
        """
        sizes = np.diff(starts, append=len(text))
        padded = text + bytes(_PADDING)
        loads: Keys = np.ndarray(len(text) + _PADDING - 7, "<u8", padded, strides=(1,))  # 8 bytes from every position
        packed_sizes = sizes
        if b"\0" in text:  # packed, a word that ends in NUL would look like the one without it
            ends_in_nul = np.frombuffer(text, np.uint8)[starts + sizes - 1] == 0
            packed_sizes = np.where(ends_in_nul, _PADDING + 1, sizes)

        keys = loads[starts] & np.take(_MASKS, packed_sizes, mode="clip")
        keys[packed_sizes > 8] = 0  # the key of an empty place, under which nothing is found
        numbers = self._tables[0].find([keys])
        for table in self._tables[1:]:
            rest = np.flatnonzero((numbers < 0) & table.fits(packed_sizes))
            if len(rest):
                numbers[rest] = table.find(_pack(loads, starts[rest], sizes[rest], table.columns))
        missed = np.flatnonzero(numbers < 0)
        if len(missed) == 0:
            return numbers, []

        fresh: dict[bytes, int] = {}
        first_seen: list[int] = []
        answers: list[int] = []
        others, known = self._others, self._size
        for index, start, size in zip(missed.tolist(), starts[missed].tolist(), sizes[missed].tolist(), strict=True):
            word = text[start : start + size]
            found = others.get(word, -1)
            if found < 0:
                found = fresh.get(word, -1)
                if found < 0:
                    found = fresh[word] = known + len(fresh)
                    first_seen.append(index)
            answers.append(found)
        numbers[missed] = answers
        self._size += len(fresh)
        self._store(list(fresh), loads, starts, packed_sizes, np.array(first_seen, np.intp), numbers)
        return numbers, list(fresh)

    def _store(
        self, words: list[bytes], loads: Keys, starts: Positions, sizes: Positions, at: Positions, numbers: Positions
    ) -> None:
        """Put new words, first seen `at` these indices, into the tables, or without room there into the dictionary."""
        first_new = self._size - len(words)
        for table in self._tables:
            fitting = at[table.fits(sizes[at])]
            keys = _pack(loads, starts[fitting], sizes[fitting], table.columns)
            if self._may_grow:
                table.make_room(len(fitting))
            homeless = fitting[~table.claim(keys, numbers[fitting])]
            self._others.update((words[n - first_new], n) for n in numbers[homeless].tolist())
        self._others.update((words[n - first_new], n) for n in numbers[at[sizes[at] > _PADDING]].tolist())


class _Table:
    """A flat hash table from keys of a fixed number of 64-bit integers to numbers; one place per hash, no probing."""

    def __init__(self, columns: int, bits: int) -> None:
        self.columns = columns
        self._allocate(bits)

    def _allocate(self, bits: int) -> None:
        self._bits = bits
        self._taken = 0
        self._keys = [np.zeros(1 << bits, np.uint64) for _ in range(self.columns)]
        self._numbers = np.full(1 << bits, -1, np.intp)

    def clear(self) -> None:
        """Forget all keys, but keep the room."""
        self._taken = 0
        self._numbers.fill(-1)
        for own in self._keys:
            own.fill(0)

    def fits(self, sizes: Positions) -> npt.NDArray[np.bool_]:
        """Return which words of these sizes belong here: those that half the columns would not hold."""
        return (sizes > 8 * (self.columns // 2)) & (sizes <= 8 * self.columns)

    def find(self, keys: list[Keys]) -> Positions:
        """Return the number of each key, -1 for those that are not here."""
        places = self._places(keys)
        same = self._keys[0][places] == keys[0]
        for own, key in zip(self._keys[1:], keys[1:], strict=True):
            same &= own[places] == key
        numbers = self._numbers[places]
        numbers[~same] = -1
        return numbers

    def claim(self, keys: list[Keys], numbers: Positions) -> npt.NDArray[np.bool_]:
        """Store keys that are not here yet; return which of them found their place free."""
        places = self._places(keys)
        free = self._numbers[places] < 0
        # Where two of the new keys want one place, the first, which is the more frequent as a rule, gets it.
        self._numbers[places[free][::-1]] = numbers[free][::-1]
        won: npt.NDArray[np.bool_] = self._numbers[places] == numbers
        for own, key in zip(self._keys, keys, strict=True):
            own[places[won]] = key[won]
        self._taken += int(won.sum())
        return won

    def make_room(self, expected: int) -> None:
        """Grow so that after `expected` more keys at most about a quarter of the places is taken."""
        bits = self._bits
        while 4 * (self._taken + expected) > 1 << bits:
            bits += 2
        if bits > self._bits:
            used = np.flatnonzero(self._numbers >= 0)
            keys, numbers = [own[used] for own in self._keys], self._numbers[used]
            self._allocate(bits)
            self.claim(keys, numbers)  # all find room: the top bits, which told them apart, are part of the longer hash

    def _places(self, keys: list[Keys]) -> Positions:
        mixed = keys[0] * _MULTIPLIER
        for key in keys[1:]:
            mixed = (mixed ^ (mixed >> np.uint64(29)) ^ key) * _MULTIPLIER
        return (mixed >> np.uint64(64 - self._bits)).astype(np.intp)


def _pack(loads: Keys, starts: Positions, sizes: Positions, columns: int) -> list[Keys]:
    """Return words as columns of 64-bit integers, filled up with zeros."""
    return [
        loads[starts + 8 * column] & np.take(_MASKS, np.maximum(sizes - 8 * column, 0), mode="clip")
        for column in range(columns)
    ]
