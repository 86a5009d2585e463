"""Encodes blocks of text by table: each distinct pre-token goes through BPE once, the rest is numpy.

A block of UTF-8 that is cut at safe places comes in, an array of token ids goes out. What is remembered is bounded.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from tslm.tokenizer.lexicon import Lexicon
from tslm.tokenizer.pretokenize import pretoken_starts, special_pattern

Ids = npt.NDArray[np.uint32]
Scalar = TypeVar("Scalar", bound=np.generic)


class BlockEncoder:
    """Encodes blocks of text and remembers the ids of the pre-tokens that it has met.

    Args:
        encode_word: returns the ids of one pre-token or special token.
        special_tokens: strings that are one pre-token each.
        capacity: about how many distinct pre-tokens to remember, with seven ids and 32 bytes each on average; when it
            is reached, all are forgotten.
    """

    def __init__(
        self, encode_word: Callable[[bytes], list[int]], special_tokens: Sequence[bytes], capacity: int
    ) -> None:
        self._encode_word = encode_word
        self._specials = special_pattern(special_tokens)
        self._lock = threading.Lock()  # an executor may run its tasks in threads
        self._capacity = capacity
        self._lexicon = Lexicon(table_bits=(2 * capacity - 1).bit_length(), may_grow=False)
        self._ids: Ids = np.empty(8 * capacity, np.uint32)  # the ids of all known words, one word behind the other
        self._first = np.empty(capacity, np.intp)  # where a word's ids begin
        self._count = np.empty(capacity, np.intp)  # how many it has
        self._forget()

    def encode(self, block: bytes) -> Ids:
        """Return the ids of the tokens of a block.

        Raises:
            ValueError: the vocabulary lacks something that the text needs.
        """
        with self._lock:
            return self._encode(block)

    def _encode(self, block: bytes) -> Ids:
        if (
            len(self._lexicon) >= self._capacity
            or self._used > 7 * self._capacity
            or self._remembered_bytes > 32 * self._capacity
        ):
            self._forget()
        numbers, new_words = self._lexicon.number(block, pretoken_starts(block, self._specials))
        if new_words:
            try:
                self._learn(new_words)
            except ValueError:
                self._forget()  # the lexicon knows words now whose ids are not here
                raise
        first, count = self._first[numbers], self._count[numbers]
        ends = np.cumsum(count)
        if len(ends) == 0 or ends[-1] == len(ends):  # one id each
            return self._ids[first]
        places = np.arange(ends[-1])
        places += np.repeat(first - (ends - count), count)
        return self._ids[places]

    def _learn(self, words: list[bytes]) -> None:
        encoded = [self._encode_word(word) for word in words]
        counts = [len(ids) for ids in encoded]
        known, total = len(self._lexicon) - len(words), sum(counts)
        self._first = _with_room(self._first, known + len(words))
        self._count = _with_room(self._count, known + len(words))
        self._ids = _with_room(self._ids, self._used + total)
        self._count[known : known + len(words)] = counts
        self._first[known : known + len(words)] = self._used + np.cumsum([0, *counts[:-1]])
        self._ids[self._used : self._used + total] = [id_ for ids in encoded for id_ in ids]
        self._used += total
        self._remembered_bytes += sum(map(len, words))

    def _forget(self) -> None:
        self._lexicon.clear()
        self._used = 0  # ids in use
        self._remembered_bytes = 0


def _with_room(array: npt.NDArray[Scalar], size: int) -> npt.NDArray[Scalar]:
    """Return the array, or a copy with at least `size` places and the same beginning."""
    if size <= len(array):
        return array
    grown = np.empty(2 * size, array.dtype)
    grown[: len(array)] = array
    return grown
