"""Numbers the distinct words of a text, a block at a time, in numpy.

A word is any piece of text: a segment or a pre-token. Its number is the index of its value, such as its count or the
position of its token ids.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple, TypeVar

import numpy as np

from tslm.fast.tokenizer.hash_tables import PACKED_BYTES, Keys, ShortTable, WideTable, pack_short, pack_wide
from tslm.fast.tokenizer.scanner import Mask, Positions

# 2^64 / golden ratio, and other odd numbers
_MULTIPLIERS = (0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)
_BATCH = 1 << 14  # words that `WordTable.count` looks up in the wider tables at a time
Word = TypeVar("Word", bound=Hashable)


class Words(NamedTuple):
    """Distinct words: their joined bytes, and the size and the number of each."""

    text: bytes
    sizes: Positions
    numbers: Positions


class Misses(NamedTuple):
    """Words that are not in the short table: their indices, and the words themselves."""

    packed_at: Positions
    keys: Keys
    others_at: Positions
    others: list[bytes]


class WordTable:
    """Distinct words and their numbers.

    A word is looked up in up to three steps:

    1. A word of up to 8 bytes is one 64-bit integer. Its hash is its slot in a small table, and the slot is its number.
       Nearly all words end here, after a few passes over arrays: two loads, shifts, a multiplication, a comparison.
    2. A word of up to 16 bytes is two integers, with one slot in each of four wider tables, which grow. These tables
       also hold the short words whose slots in the small table were occupied. Since the first word to arrive gets the
       slot, and frequent words arrive early, these short words are rare.
       With a dictionary in their place, counting 30 MB of TinyStories takes 0.24 s instead of 0.14 s.
    3. Dictionaries hold the rest: longer words, and one word in some thousands whose slots are all occupied.

    Args:
        short_bits: the small table has 2 ** short_bits slots.
        wide_bits: the first of the wider tables has 2 ** wide_bits slots at first, each further one a quarter of those
            of the one before.
    """

    def __init__(self, short_bits: int = 16, wide_bits: int = 14) -> None:
        self._short = ShortTable(_MULTIPLIERS[0], short_bits, extra=(1 << wide_bits) // 2)
        self._wide = [WideTable(factor, max(2, wide_bits - 2 * n)) for n, factor in enumerate(_MULTIPLIERS)]
        self._overflow: dict[tuple[int, int], int] = {}  # packed words whose slots are all occupied
        self._others: dict[bytes, int] = {}
        self._size = self._short.end
        self._waiting: list[Keys] = []  # words that `count` has not looked up in the wider tables yet
        self._waiting_count = 0

    def clear(self) -> None:
        """Remove all words."""
        self._short.clear()
        for table in self._wide:
            table.clear()
        self._overflow.clear()
        self._others.clear()
        self._size = self._short.end
        self._waiting, self._waiting_count = [], 0

    @property
    def values(self) -> Keys:
        """The value of each word, by its number; 0 for a new word. The caller defines its meaning."""
        return self._short.values

    def count(self, text: bytes, bounds: Positions, times: Keys | None = None) -> None:
        """Add to the value of each word of a text its entry of `times`, or 1; the arguments are those of `number`.

        The values are complete after the next call of `number` or `words`.
        """
        if times is not None:
            numbers, _ = self.number(text, bounds)
            np.add.at(self.values, numbers, times)
            return
        numbers, _, misses = self.number_frequent(text, bounds)
        np.add.at(self.values, numbers, np.uint64(1))
        for wrong in (misses.packed_at, misses.others_at):
            np.subtract.at(self.values, numbers[wrong], np.uint64(1))
        others, _ = self.number_others(misses.others)
        np.add.at(self.values, others, np.uint64(1))
        self._waiting.append(misses.keys)
        self._waiting_count += len(misses.keys)
        if self._waiting_count > _BATCH:
            self._count_waiting()

    def _count_waiting(self) -> None:
        if self._waiting:
            numbers, _ = self.number_packed(np.concatenate(self._waiting))
            np.add.at(self.values, numbers, np.uint64(1))
            self._waiting, self._waiting_count = [], 0

    def number(self, text: bytes, bounds: Positions) -> tuple[Positions, Positions]:
        """Return the number of each word of a text, and which of them are new.

        Args:
            text: a block of text that consists of words without gaps.
            bounds: the start of each word, 0 for the first, and the end of the last one.

        Returns:
            The numbers, valid until the next call, and the indices of the words that are new, each word once.
        """
        self._count_waiting()
        numbers, fresh, misses = self.number_frequent(text, bounds)
        numbers[misses.packed_at], new = self.number_packed(misses.keys)
        numbers[misses.others_at], new_others = self.number_others(misses.others)
        return numbers, np.concatenate([fresh, misses.packed_at[new], misses.others_at[new_others]])

    def number_frequent(self, text: bytes, bounds: Positions) -> tuple[Positions, Positions, Misses]:
        """Do the first step of `number`: look up all words in the small table, and store new ones in free slots.

        Returns:
            The numbers, which are wrong for the misses; the indices of new words; the misses.
        """
        chunks = np.empty(len(text) // 8 + 4, np.uint64)
        chunks.view(np.uint8)[: len(text)] = np.frombuffer(text, np.uint8)
        keys = pack_short(chunks, bounds)
        has_nul = _words_with_nul(text, bounds) if b"\0" in text else None
        if has_nul is not None:
            keys[has_nul] = 0
        numbers, misses = self._short.find(keys)
        is_stored, new = self._short.insert(keys[misses], numbers[misses])
        fresh, misses = misses[new], misses[~is_stored]
        starts = bounds[misses]
        sizes = bounds[misses + 1] - starts
        is_packed = sizes <= PACKED_BYTES
        if has_nul is not None:
            is_packed &= ~has_nul[misses]
        packed = np.flatnonzero(is_packed)
        others = np.flatnonzero(~is_packed)
        return numbers, fresh, Misses(
            misses[packed],
            pack_wide(chunks, starts[packed], sizes[packed]),
            misses[others],
            [text[at : at + size] for at, size in zip(starts[others].tolist(), sizes[others].tolist(), strict=True)],
        )

    def number_packed(self, keys: Keys) -> tuple[Positions, Positions]:
        """Do the second step: return the number of each key, and the indices of those that are new, each once."""
        numbers = self._wide[0].find(keys)
        rest = np.flatnonzero(numbers < 0)
        for table in self._wide[1:]:
            if len(rest) and len(table):
                numbers[rest] = table.find(keys[rest])
                rest = rest[numbers[rest] < 0]
        fresh = [rest[:0]]
        for table in self._wide:
            if len(rest):
                if table.reserve(len(rest)):
                    self._move_overflow(table)
                new = table.find_free(keys[rest])
                table.store(keys[rest[new]], np.arange(self._size, self._size + len(new)))
                self._grow(len(new))
                numbers[rest] = table.find(keys[rest])
                fresh.append(rest[new])
                rest = rest[numbers[rest] < 0]
        if len(rest):
            numbers[rest], new = self._number_by(self._overflow, [(low, high) for low, high in keys[rest].tolist()])
            fresh.append(rest[new])
        return numbers, np.concatenate(fresh)

    def _move_overflow(self, table: WideTable) -> None:
        """Move words from the overflow into a table that has grown. The others still have no free slot anywhere."""
        if self._overflow:
            keys = np.array([*self._overflow], np.uint64)
            moved = table.find_free(keys)
            table.store(keys[moved], np.array([*self._overflow.values()], np.intp)[moved])
            for low, high in keys[moved].tolist():
                del self._overflow[low, high]

    def number_others(self, words: list[bytes]) -> tuple[Positions, Positions]:
        """Do the third step: return the number of each word, and the indices of those that are new, each once."""
        return self._number_by(self._others, words)

    def _number_by(self, known: dict[Word, int], words: list[Word]) -> tuple[Positions, Positions]:
        size, before = len(known), self._size
        numbers = np.array([known.setdefault(word, before + len(known) - size) for word in words], np.intp)
        self._grow(len(known) - size)
        highest = np.maximum.accumulate(np.append(before - 1, numbers))[:-1]
        return numbers, np.flatnonzero(numbers > highest)

    def _grow(self, new_words: int) -> None:
        self._size += new_words
        self._short.reserve_values(self._size)

    def words(self) -> Words:
        """Return all words, in no particular order."""
        self._count_waiting()
        texts, sizes, numbers = [], [], []
        overflow = np.array([*self._overflow], np.uint64).reshape(-1, 2), np.array([*self._overflow.values()], np.intp)
        for keys, under in (self._short.items(), *(table.items() for table in self._wide), overflow):
            characters = keys.view(np.uint8)
            texts.append(characters[characters != 0].tobytes())  # packed words hold no NUL, so every zero is padding
            sizes.append(np.count_nonzero(characters, axis=1))
            numbers.append(under)
        texts += self._others
        sizes.append(np.fromiter(map(len, self._others), np.intp, len(self._others)))
        numbers.append(np.fromiter(self._others.values(), np.intp, len(self._others)))
        return Words(b"".join(texts), np.concatenate(sizes), np.concatenate(numbers))


def _words_with_nul(text: bytes, bounds: Positions) -> Mask:
    """Return which words contain a NUL. Their keys would equal those of shorter words."""
    has_nul = np.zeros(len(bounds) - 1, np.bool_)
    has_nul[np.searchsorted(bounds, np.flatnonzero(np.frombuffer(text, np.uint8) == 0), "right") - 1] = True
    return has_nul
