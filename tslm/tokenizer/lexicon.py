"""Numbers the distinct words of a text, a block at a time, almost wholly in numpy.

A block of text that is cut into words of any kind comes in; for each word its number goes out, the same wherever the
word occurs. What is known about a word (its count, its token ids) lies in arrays under its number.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tslm.tokenizer.pretokenize import Mask, Positions, sparse_nonzero
from tslm.tokenizer.tables import PACKED_BYTES, PlaceTable, WideTable, pack_short, pack_wide
from tslm.tokenizer.workspace import Workspace

# 2^64 / golden ratio, and other odd numbers
_MULTIPLIERS = (0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)


class Words(NamedTuple):
    """Distinct words: their bytes one behind the other, and the size and the number of each."""

    text: bytes
    sizes: Positions
    numbers: Positions


class Lexicon:
    """Distinct words and their numbers.

    A word is looked up in a chain, each step for what the one before does not know:

    1. A word of up to 8 bytes is one 64-bit integer; its hash is its place in a small table, and that place its number.
       So nearly every word costs a few passes over arrays: two loads, shifts, a multiplication, a comparison.
    2. A word of up to 16 bytes is two integers, with a place in one of four wider tables, which grow. Here are also the
       short words that found their place in the first table taken: first come, first served, and the frequent words
       come first.
    3. A dictionary has the rest: longer words, and the one in some 100,000 that found all its places taken.

    Args:
        place_bits: the first table has 2 ** place_bits places; the wider ones begin with a quarter of that.
        space: where to work.
    """

    def __init__(self, place_bits: int = 16, space: Workspace | None = None) -> None:
        self.space = space or Workspace()
        self._short = PlaceTable(_MULTIPLIERS[0], place_bits)
        self._wide = [WideTable(multiplier, place_bits - 2) for multiplier in _MULTIPLIERS]
        self._others: dict[bytes, int] = {}
        self._has_homeless = False  # packed words in the dictionary
        self._size = self._short.places

    def clear(self) -> None:
        """Forget all words."""
        self._short.clear()
        for table in self._wide:
            table.clear()
        self._others.clear()
        self._has_homeless = False
        self._size = self._short.places

    def __len__(self) -> int:
        """One more than the greatest number of a word."""
        return self._size

    def number(self, text: bytes, borders: Positions) -> tuple[Positions, Positions]:
        """Return the number of each word of a text, and which of them are new.

        Args:
            text: a block of text, divided into words without a gap.
            borders: where each word begins, the first of them at 0, and where the last one ends.

        Returns:
            The numbers, which are good until the next call, and the indices among them at which a word stands that was
            never met before, each once.
        """
        chunks = self.space.array("chunks", len(text) // 8 + 4, np.uint64)
        chunks.view(np.uint8)[: len(text)] = np.frombuffer(text, np.uint8)
        keys = pack_short(chunks, borders, self.space)
        has_nul = _words_with_nul(text, borders) if b"\0" in text else None
        if has_nul is not None:
            keys[has_nul] = 0
        numbers, missed = self._short.find(keys, self.space)
        if len(missed) == 0:
            return numbers, missed
        housed, new = self._short.claim(keys[missed], numbers[missed])
        fresh = missed[new]
        missed = np.delete(missed, housed)
        if len(missed):
            begin = borders[missed]
            sizes = borders[missed + 1] - begin
            is_packed = sizes <= PACKED_BYTES
            if has_nul is not None:
                is_packed &= ~has_nul[missed]
            numbers[missed], new = self._number_missed(text, chunks, begin, sizes, is_packed)
            fresh = np.concatenate([fresh, missed[new]])
        return numbers, fresh

    def _number_missed(
        self,
        text: bytes,
        chunks: npt.NDArray[np.uint64],
        begin: Positions,
        sizes: Positions,
        is_packed: Mask,
    ) -> tuple[Positions, Positions]:
        """Number words that the first table does not have; return the numbers, and the indices of those that are new.

        Args:
            text: the block.
            chunks: the same as integers.
            begin: where each word begins.
            sizes: how many bytes it has.
            is_packed: whether it can be packed into integers.
        """
        keys = pack_wide(chunks, begin, sizes)
        keys[~is_packed] = 0
        numbers = self._wide[0].find(keys)
        rest = sparse_nonzero(numbers < 0)
        for table in self._wide[1:]:
            if len(rest) and len(table):
                numbers[rest] = table.find(keys[rest])
                rest = rest[numbers[rest] < 0]
        if len(rest) == 0:
            return numbers, rest
        if self._has_homeless:  # whose places may be free by now, in a table that has grown
            for index in rest[is_packed[rest]].tolist():
                numbers[index] = self._others.get(text[begin[index] : begin[index] + sizes[index]], -1)
            rest = rest[numbers[rest] < 0]
        fresh = []
        for table in self._wide:
            candidates = rest[is_packed[rest]]
            if len(candidates):
                numbers[candidates], new = table.claim(keys[candidates], self._size)
                self._size += len(new)
                fresh.append(candidates[new])
                rest = rest[numbers[rest] < 0]
        self._has_homeless |= bool(is_packed[rest].any())
        unpacked = []
        for index, start, size in zip(rest.tolist(), begin[rest].tolist(), sizes[rest].tolist(), strict=True):
            word = text[start : start + size]
            number = self._others.get(word)
            if number is None:
                number = self._others[word] = self._size
                self._size += 1
                unpacked.append(index)
            numbers[index] = number
        return numbers, np.concatenate([*fresh, np.array(unpacked, np.intp)])

    def words(self) -> Words:
        """Return all words, in no particular order."""
        texts, sizes, numbers = [], [], []
        for keys, under in (self._short.items(), *(table.items() for table in self._wide)):
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
