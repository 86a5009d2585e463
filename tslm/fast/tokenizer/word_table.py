"""Numbers the distinct words of a text in numpy: `fast.cpu.words` without a compiler, and for short texts."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from itertools import count, islice

import numpy as np
import numpy.typing as npt

from tslm.fast.tokenizer.scanner import Positions

Values = npt.NDArray[np.uint64]

_BITS = 16
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio (Fibonacci hashing; Knuth, TAOCP 3, section 6.4)
_FIRST_BYTES = np.array([(1 << 8 * n) - 1 for n in range(9)], np.uint64)  # [n] keeps the first n bytes of an integer


class WordTable:
    """Distinct words and their numbers.

    A word is any piece of text that is not empty: a segment or a pre-token. Its number counts the words in the order in
    which they arrived. A dictionary holds all words. In front of it, a table looks up all words of a text at once: a
    word of up to 16 bytes is a pair of integers, its key, with one slot, which the first key to arrive keeps. Frequent
    words arrive early. Measured on 8 MB of TinyStories: counting with the dictionary alone takes 2.5 times as long.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Remove all words."""
        self._numbers: defaultdict[bytes, int] = defaultdict(count().__next__)
        self._values: Values = np.zeros(0, np.uint64)
        self._slots = np.zeros((1 << _BITS, 4), np.uint64)  # a key, its number + 1, and padding; 0 in free slots

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def values(self) -> Values:
        """The value of each word, by its number; 0 for a new word. The array is valid until words are added."""
        if len(self) > len(self._values):
            self._values = np.append(self._values, np.zeros(2 * len(self), np.uint64))
        return self._values[: len(self)]

    def count(self, text: bytes, bounds: Positions, times: Values | None = None) -> None:
        """Add to the value of each word of a text its entry of `times`, or 1; the arguments are those of `number`."""
        numbers = self.number(text, bounds)
        np.add.at(self.values, numbers, np.uint64(1) if times is None else times)

    def number(self, text: bytes, bounds: Positions) -> Positions:
        """Return the number of each word of a text.

        Args:
            text: a block of text that consists of words without gaps.
            bounds: the start of each word, 0 for the first, and the end of the last one.
        """
        keys = _keys_of(text, bounds)
        mixed = keys[:, 0] * _FACTOR
        mixed ^= mixed >> np.uint64(29)
        mixed ^= keys[:, 1]
        mixed *= _FACTOR
        slots = (mixed >> np.uint64(64 - _BITS)).view(np.intp)
        found = self._slots.take(slots, axis=0)
        numbers: Positions = found[:, 2].view(np.intp) - 1
        rest = np.flatnonzero((found[:, 0] != keys[:, 0]) | (found[:, 1] != keys[:, 1]) | (numbers < 0))
        numbers[rest] = [self._numbers[text[start:stop]] for start, stop in
                         zip(bounds[rest].tolist(), bounds[rest + 1].tolist(), strict=True)]
        free = rest[(found[rest, 2] == 0) & (keys[rest, 0] != 0)]
        self._slots[slots[free], :2] = keys[free]  # the last of several assignments to one slot remains
        self._slots[slots[free], 2] = numbers[free] + 1
        return numbers

    def words(self, first: int = 0) -> tuple[bytes, Positions]:
        """Return the words from number `first` on: joined, and the size of each."""
        words = [*islice(reversed(self._numbers), len(self) - first)][::-1]
        return b"".join(words), np.array([*map(len, words)], np.intp)


def _keys_of(text: bytes, bounds: Positions) -> Values:
    """Return words of up to 16 bytes as pairs of integers, filled with zeros, and 0 for others.

    A word that ends with NUL gets 0, too, since its key would be that of a shorter word.
    """
    data = np.zeros(len(text) + 16, np.uint8)
    data[: len(text)] = np.frombuffer(text, np.uint8)
    loads = np.ndarray(len(text) + 9, "<u8", data, strides=(1,))  # 8 bytes from every position on
    starts, sizes = bounds[:-1], np.diff(bounds)
    keys = np.empty((len(sizes), 2), np.uint64)
    np.bitwise_and(loads[starts], _FIRST_BYTES.take(sizes, mode="clip"), out=keys[:, 0])
    np.bitwise_and(loads[starts + 8], _FIRST_BYTES.take(np.maximum(sizes - 8, 0), mode="clip"), out=keys[:, 1])
    keys[(sizes > 16) | (data[bounds[1:] - 1] == 0)] = 0
    return keys


def bounds_of(sizes: npt.ArrayLike) -> Positions:
    """Return the start of each of some joined words, and the end of the last one."""
    return np.append(np.intp(0), np.cumsum(sizes, dtype=np.intp))


def keep_freed_memory() -> None:
    """Let the C library keep the memory of freed arrays for the next ones.

    By default glibc returns blocks of more than 128 KiB to the system, and each 4 KiB of the next array cost a page
    fault. The threshold rises with the size of a freed block (mallopt(3), M_MMAP_THRESHOLD), up to 32 MiB. The array is
    never written, so it takes no memory. Measured: without it, encoding files takes a fifth longer.
    """
    with contextlib.suppress(MemoryError):  # where memory is limited (ulimit -v)
        np.empty(31 << 20, np.uint8)
