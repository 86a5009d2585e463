"""Encodes blocks of text by table: each distinct pre-token goes through BPE once, the rest is numpy.

A block of UTF-8 that is cut at safe places comes in, an array of token ids goes out. What is remembered is bounded.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from tslm.tokenizer.lexicon import Lexicon
from tslm.tokenizer.pieces import Ids, PieceEncoder
from tslm.tokenizer.pretokenize import Positions, pretoken_borders, special_pattern
from tslm.tokenizer.stretches import divide_specials, stretch_borders
from tslm.tokenizer.workspace import Workspace

_COUNT_BITS = 32
_COUNT_MASK = (1 << _COUNT_BITS) - 1


class BlockEncoder:
    """Encodes blocks of text, remembering the ids of the stretches and of the pre-tokens that it has met.

    In prose a block is looked up stretch by stretch (see `stretches`); only new stretches are cut into pre-tokens, and
    only new pre-tokens go through BPE.

    Args:
        pieces: encodes pre-tokens.
        special_tokens: strings that are one pre-token each.
        capacity: about how many distinct stretches and how many pre-tokens to remember, with eight ids and 32 bytes
            each on average; when it is reached, all are forgotten.
        frugal: whether to do without what takes more memory: stretches, of which a text has several times as many as of
            pre-tokens, and encoding many words in lockstep.
    """

    def __init__(
        self,
        pieces: PieceEncoder,
        special_tokens: Sequence[bytes],
        capacity: int,
        frugal: bool = False,
    ) -> None:
        self._specials = special_pattern(special_tokens)
        self._within_stretches, self._across_stretches = divide_specials(special_tokens)
        self._space = Workspace()
        # Each with a workspace of its own, as one asks the other.
        encode_pretokens = partial(pieces.encode_all, frugal=frugal)
        self._pretokens = _Memory(encode_pretokens, capacity, Workspace(), reserve=frugal)
        self._stretches = None if frugal else _Memory(self._encode_stretches, capacity, self._space)
        self._lock = threading.Lock()  # an executor may run its tasks in threads

    def encode(self, block: bytes) -> Ids:
        """Return the ids of the tokens of a block.

        Raises:
            ValueError: the vocabulary lacks something that the text needs.
        """
        if not block:
            return np.empty(0, np.uint32)
        with self._lock:
            if self._stretches is not None:
                borders = stretch_borders(block, self._across_stretches, self._space)
                if borders is not None:
                    return self._stretches.recall(block, borders)[0]
            return self._pretokens.recall(block, pretoken_borders(block, self._specials))[0]

    def _encode_stretches(self, text: bytes, borders: Positions) -> tuple[Ids, Positions]:
        """Return the ids of stretches, one behind the other, and how many each has."""
        pretokens = pretoken_borders(text, self._within_stretches)
        ids, counts = self._pretokens.recall(text, pretokens)
        return ids, np.add.reduceat(counts, np.searchsorted(pretokens, borders[:-1]))


class _Memory:
    """The ids of words of one kind, under their numbers in a lexicon.

    Args:
        encode: returns the ids of words that stand in a text without a gap, and how many each has.
        capacity: about how many words to remember.
        space: where to work.
        reserve: whether to make room for all of them at once.
    """

    def __init__(
        self,
        encode: Callable[[bytes, Positions], tuple[Ids, Positions]],
        capacity: int,
        space: Workspace,
        reserve: bool = False,
    ) -> None:
        self._encode = encode
        self._capacity = capacity
        # The value of a word: where its ids begin, times 2 ** _COUNT_BITS, plus how many it has.
        place_bits = min(capacity.bit_length(), 16)
        self._lexicon = Lexicon(place_bits, place_bits if reserve else place_bits - 2, space)
        self._ids: Ids = np.empty(8 * capacity, np.uint32)  # the ids of all known words, one word behind the other
        self._forget()

    def recall(self, text: bytes, borders: Positions) -> tuple[Ids, Positions]:
        """Return the ids of the words of a text, one behind the other, and how many each has.

        Raises:
            ValueError: the vocabulary lacks something that the text needs.
        """
        if self._words >= self._capacity or max(self._used, self._bytes // 4) >= 8 * self._capacity:
            self._forget()
        numbers, fresh = self._lexicon.number(text, borders)
        if len(fresh):
            try:
                self._learn(text, borders, numbers, fresh)
            except ValueError:
                self._forget()  # the lexicon knows words now whose ids are not here
                raise
        values = self._lexicon.values.take(numbers)
        counts = (values & _COUNT_MASK).view(np.intp)
        ends = np.cumsum(counts)
        places = np.arange(ends[-1])
        places += np.repeat((values >> _COUNT_BITS).view(np.intp) - (ends - counts), counts)
        return self._ids.take(places), counts

    def _learn(self, text: bytes, borders: Positions, numbers: Positions, fresh: Positions) -> None:
        """Encode the words that are new, and note their ids."""
        starts, stops = borders[fresh], borders[fresh + 1]
        words = [text[start:stop] for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)]
        ids, counts = self._encode(b"".join(words), np.append(0, np.cumsum(stops - starts)))
        self._lexicon.values[numbers[fresh]] = (self._used + np.cumsum(counts) - counts) << _COUNT_BITS | counts
        if self._used + len(ids) > len(self._ids):
            self._ids = np.concatenate([self._ids, np.empty(self._used + len(ids), np.uint32)])
        self._ids[self._used : self._used + len(ids)] = ids
        self._used += len(ids)
        self._words += len(words)
        self._bytes += int((stops - starts).sum())

    def _forget(self) -> None:
        self._lexicon.clear()
        self._words = self._used = self._bytes = 0  # words, their ids, their bytes

