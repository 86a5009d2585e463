"""Numbers the distinct words of a text, a block at a time, almost wholly in numpy.

A block of text that is cut into words of any kind comes in; for each word its number goes out, the same wherever the
word occurs. What is known about a word (its count, where its token ids are) is a value under its number.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple, TypeVar

import numpy as np

from tslm.tokenizer.pretokenize import Mask, Positions, sparse_nonzero
from tslm.tokenizer.tables import PACKED_BYTES, Keys, PlaceTable, WideTable, pack_short, pack_wide
from tslm.tokenizer.workspace import Workspace

# 2^64 / golden ratio, and other odd numbers
_MULTIPLIERS = (0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)
Word = TypeVar("Word", bound=Hashable)


class Words(NamedTuple):
    """Distinct words: their bytes one behind the other, and the size and the number of each."""

    text: bytes
    sizes: Positions
    numbers: Positions


class Missed(NamedTuple):
    """Words that are not in the first table: where they stand, and the words themselves."""

    packed_at: Positions
    keys: Keys
    others_at: Positions
    others: list[bytes]


class Lexicon:
    """Distinct words and their numbers.

    A word is looked up in a chain, each step for what the one before does not know:

    1. A word of up to 8 bytes is one 64-bit integer; its hash is its place in a small table, and that place its number.
       So nearly every word costs a few passes over arrays: two loads, shifts, a multiplication, a comparison.
    2. A word of up to 16 bytes is two integers, with a place in one of four wider tables, which grow. Here are also the
       short words that found their place in the first table taken: first come, first served, and the frequent words
       come first.
    3. Dictionaries have the rest: longer words, and the one in some thousands that found all its places taken.

    Args:
        place_bits: the first table has 2 ** place_bits places.
        wide_bits: the first of the wider ones begins with 2 ** wide_bits places, each of the others with a quarter of
            those of the one before.
        space: where to work.
    """

    def __init__(self, place_bits: int = 16, wide_bits: int = 14, space: Workspace | None = None) -> None:
        self.space = space or Workspace()
        self._short = PlaceTable(_MULTIPLIERS[0], place_bits, room=(1 << wide_bits) // 2)
        self._wide = [WideTable(factor, max(2, wide_bits - 2 * n)) for n, factor in enumerate(_MULTIPLIERS)]
        self._homeless: dict[tuple[int, int], int] = {}  # packed words whose places are all taken
        self._others: dict[bytes, int] = {}
        self._size = self._short.end

    def clear(self) -> None:
        """Forget all words."""
        self._short.clear()
        for table in self._wide:
            table.clear()
        self._homeless.clear()
        self._others.clear()
        self._size = self._short.end

    @property
    def values(self) -> Keys:
        """What is known about each word, under its number: the caller's own, 0 for a new word."""
        return self._short.values

    def number(self, text: bytes, borders: Positions) -> tuple[Positions, Positions]:
        """Return the number of each word of a text, and which of them are new.

        Args:
            text: a block of text, divided into words without a gap.
            borders: where each word begins, the first of them at 0, and where the last one ends.

        Returns:
            The numbers, which are good until the next call, and the indices among them at which a word stands that was
            never met before, each once.
        """
        numbers, fresh, missed = self.number_frequent(text, borders)
        numbers[missed.packed_at], new = self.number_packed(missed.keys)
        numbers[missed.others_at], new_others = self.number_others(missed.others)
        return numbers, np.concatenate([fresh, missed.packed_at[new], missed.others_at[new_others]])

    def number_frequent(self, text: bytes, borders: Positions) -> tuple[Positions, Positions, Missed]:
        """Do the first step of `number`: all words are looked up in the first table, and new ones get free places.

        Returns:
            The numbers, wrong for the words that are missed there; the indices of new words; the words that are missed.
        """
        chunks = self.space.array("chunks", len(text) // 8 + 4, np.uint64)
        chunks.view(np.uint8)[: len(text)] = np.frombuffer(text, np.uint8)
        keys = pack_short(chunks, borders, self.space)
        has_nul = _words_with_nul(text, borders) if b"\0" in text else None
        if has_nul is not None:
            keys[has_nul] = 0
        numbers, missed = self._short.find(keys, self.space)
        is_there, new = self._short.claim(keys[missed], numbers[missed])
        fresh, missed = missed[new], missed[~is_there]
        starts = borders[missed]
        sizes = borders[missed + 1] - starts
        is_packed = sizes <= PACKED_BYTES
        if has_nul is not None:
            is_packed &= ~has_nul[missed]
        packed = np.flatnonzero(is_packed)
        others = np.flatnonzero(~is_packed)
        return numbers, fresh, Missed(
            missed[packed],
            pack_wide(chunks, starts[packed], sizes[packed]),
            missed[others],
            [text[at : at + size] for at, size in zip(starts[others].tolist(), sizes[others].tolist(), strict=True)],
        )

    def number_packed(self, keys: Keys) -> tuple[Positions, Positions]:
        """Do the second step: return the number of each key, and the indices of those that are new, each once."""
        numbers = self._wide[0].find(keys)
        rest = sparse_nonzero(numbers < 0)
        for table in self._wide[1:]:
            if len(rest) and len(table):
                numbers[rest] = table.find(keys[rest])
                rest = rest[numbers[rest] < 0]
        fresh = [rest[:0]]
        for table in self._wide:
            if len(rest):
                if table.make_room(len(rest)):
                    self._rehouse(table)
                new = table.find_free(keys[rest])
                table.store(keys[rest[new]], np.arange(self._size, self._size + len(new)))
                self._grow(len(new))
                numbers[rest] = table.find(keys[rest])
                fresh.append(rest[new])
                rest = rest[numbers[rest] < 0]
        if len(rest):
            numbers[rest], new = self._number_by(self._homeless, [(low, high) for low, high in keys[rest].tolist()])
            fresh.append(rest[new])
        return numbers, np.concatenate(fresh)

    def _rehouse(self, table: WideTable) -> None:
        """Give places in a table that has grown to the homeless, so that those who stay so have no place anywhere."""
        if self._homeless:
            keys = np.array([*self._homeless], np.uint64)
            housed = table.find_free(keys)
            table.store(keys[housed], np.array([*self._homeless.values()], np.intp)[housed])
            for low, high in keys[housed].tolist():
                del self._homeless[low, high]

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
        self._short.make_values(self._size)

    def words(self) -> Words:
        """Return all words, in no particular order."""
        texts, sizes, numbers = [], [], []
        homeless = np.array([*self._homeless], np.uint64).reshape(-1, 2), np.array([*self._homeless.values()], np.intp)
        for keys, under in (self._short.items(), *(table.items() for table in self._wide), homeless):
            characters = keys.view(np.uint8)
            texts.append(characters[characters != 0].tobytes())  # no NUL is part of a word here, all are filling
            sizes.append(np.count_nonzero(characters, axis=1))
            numbers.append(under)
        texts += self._others
        sizes.append(np.fromiter(map(len, self._others), np.intp, len(self._others)))
        numbers.append(np.fromiter(self._others.values(), np.intp, len(self._others)))
        return Words(b"".join(texts), np.concatenate(sizes), np.concatenate(numbers))


def _words_with_nul(text: bytes, borders: Positions) -> Mask:
    """Return which words contain a NUL: packed, they would look like words without it."""
    has_nul = np.zeros(len(borders) - 1, np.bool_)
    has_nul[np.searchsorted(borders, np.flatnonzero(np.frombuffer(text, np.uint8) == 0), "right") - 1] = True
    return has_nul
