"""Applies the merges of BPE to one pre-token: its bytes come in, the ids of its tokens go out.

`plain.encode_plainly` is the same rule without the heap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import pairwise

import numpy as np

from tslm.tokenizer.whole import made_whole

_SHORT = 32  # bytes; to look through so many pairs costs less than to keep a heap
_NEVER = 1 << 62  # the rank of a pair that is not merged
_GONE = -1  # in place of a token that was swallowed by the one on its left


class PieceEncoder:
    """Encodes single pre-tokens with a vocabulary and its merges.

    Args:
        ids: the id of each token.
        merges: pairs of tokens, the first of which takes precedence.
    """

    def __init__(self, ids: Mapping[bytes, int], merges: Sequence[tuple[bytes, bytes]]) -> None:
        # Symbols number the tokens of the merges, with all 256 bytes first. Not every symbol needs an id: it may be
        # merged away before the end.
        symbols = {bytes([byte]): byte for byte in range(256)}
        for left, right in merges:
            for token in (left, right, left + right):
                symbols.setdefault(token, len(symbols))
        self._tokens = list(symbols)
        self._ids = [ids.get(token, -1) for token in symbols]
        self._merged = [symbols[left + right] for left, right in merges]
        is_whole = made_whole(
            np.array([symbols[left] for left, _ in merges], np.int64),
            np.array([symbols[right] for _, right in merges], np.int64),
            np.array(self._merged, np.int64),
            len(symbols),
        )
        self._whole = {token: id_ for token, id_ in zip(symbols, self._ids, strict=True) if is_whole[symbols[token]]}
        # Reversed, so that of a pair that is listed twice the first rank stays.
        self._ranks = {
            (symbols[left], symbols[right]): rank for rank, (left, right) in reversed(list(enumerate(merges)))
        }

    def encode(self, piece: bytes) -> list[int]:
        """Merge, again and again, the leftmost occurrence of the pair that comes first in the merges.

        In a long piece the tokens form a linked list and the pairs a heap, so that n bytes take O(n log n).

        Raises:
            ValueError: the vocabulary lacks a byte or another token of the result; the sentence names it.
        """
        whole = self._whole.get(piece, -1)
        if whole >= 0:
            return [whole]
        symbols = list(piece)
        if len(symbols) <= _SHORT:
            self._merge_short(symbols)
        else:
            self._merge_long(symbols)
        ids = [self._ids[symbol] for symbol in symbols if symbol != _GONE]
        if min(ids, default=0) < 0:
            lacking = next(self._tokens[symbol] for symbol in symbols if symbol != _GONE and self._ids[symbol] < 0)
            name = f"byte 0x{lacking.hex()}" if len(lacking) == 1 else "token"
            raise ValueError(
                f"the vocabulary lacks the {name} ({lacking!r}), which the text needs; "
                "add it to the vocabulary or remove it from the text"
            )
        return ids

    def _merge_short(self, symbols: list[int]) -> None:
        """Merge in place, looking through all pairs for each merge: quadratic, and the faster way for a word."""
        rank_of, merged = self._ranks.get, self._merged
        ranks = [rank_of(pair, _NEVER) for pair in pairwise(symbols)]
        while ranks:
            rank = min(ranks)
            if rank == _NEVER:
                return
            at = ranks.index(rank)
            symbols[at] = symbol = merged[rank]
            del symbols[at + 1], ranks[at]
            if at:
                ranks[at - 1] = rank_of((symbols[at - 1], symbol), _NEVER)
            if at < len(ranks):
                ranks[at] = rank_of((symbol, symbols[at + 1]), _NEVER)

    def _merge_long(self, symbols: list[int]) -> None:
        """Merge in place, leaving gaps, with a heap of pairs and links between neighbours."""
        size = len(symbols)
        ranks, merged = self._ranks, self._merged
        # A heap entry is rank * size + position: smaller for the earlier merge, then for the position further left.
        heap = [
            rank * size + position
            for position, pair in enumerate(pairwise(symbols))
            if (rank := ranks.get(pair)) is not None
        ]
        heapify(heap)
        after = list(range(1, size + 1))
        before = list(range(-1, size - 1))
        while heap:
            rank, position = divmod(heappop(heap), size)
            right = after[position]
            if right == size or ranks.get((symbols[position], symbols[right])) != rank:
                continue  # one of the two has been merged since
            symbols[position] = merged[rank]
            symbols[right] = _GONE
            after[position] = following = after[right]
            if following < size:
                before[following] = position
                fresh = ranks.get((symbols[position], symbols[following]))
                if fresh is not None:
                    heappush(heap, fresh * size + position)
            preceding = before[position]
            if preceding >= 0:
                fresh = ranks.get((symbols[preceding], symbols[position]))
                if fresh is not None:
                    heappush(heap, fresh * size + preceding)
