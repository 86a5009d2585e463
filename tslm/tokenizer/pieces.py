"""Applies the merges of BPE to pre-tokens: their bytes come in, the ids of their tokens go out.

`plain.encode_plainly` is the same rule without the heap, `lockstep` the same for many words at once, `rounds` for very
long ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from heapq import heapify, heappop, heappush
from itertools import chain, pairwise

import numpy as np
import numpy.typing as npt

from tslm.tokenizer.lockstep import LONGEST, LockstepEncoder, Part, in_order
from tslm.tokenizer.pair_ranks import PairRanks, Symbols
from tslm.tokenizer.pretokenize import Positions
from tslm.tokenizer.rounds import merge_in_rounds
from tslm.tokenizer.whole import made_whole

Ids = npt.NDArray[np.uint32]

_SHORT = 32  # bytes; to look through so many pairs costs less than to keep a heap
_VERY_LONG = 1 << 12  # bytes from which it is worth trying whether one merge can be made at many places
_NEVER = 1 << 62  # the rank of a pair that is not merged
_GONE = -1  # in place of a token that was swallowed by the one on its left
_MANY = 256  # words from which going in lockstep is faster: its steps take as long for a hundred words as for one


class PieceEncoder:
    """Encodes pre-tokens with a vocabulary and its merges.

    Args:
        ids: the id of each token.
        merges: pairs of tokens, the first of which takes precedence.
        special_ids: words that are one token whatever the merges say, and their ids.
    """

    def __init__(
        self, ids: Mapping[bytes, int], merges: Sequence[tuple[bytes, bytes]], special_ids: Mapping[bytes, int]
    ) -> None:
        # Symbols number the tokens of the merges, with all 256 bytes first. Not every symbol needs an id: it may be
        # merged away before the end.
        symbols = {bytes([byte]): byte for byte in range(256)}
        for left, right in merges:
            for token in (left, right, left + right):
                symbols.setdefault(token, len(symbols))
        self._tokens = list(symbols)
        self._ids = [ids.get(token, -1) for token in symbols]
        self._merged = [symbols[left + right] for left, right in merges]
        self._parts = (
            np.array([symbols[left] for left, _ in merges], np.int64),
            np.array([symbols[right] for _, right in merges], np.int64),
            np.array(self._merged, np.int64),
        )
        is_whole = made_whole(*self._parts, len(symbols)).tolist()
        self._whole = {token: id_ for token, id_, whole in zip(symbols, self._ids, is_whole, strict=True) if whole}
        self._whole |= special_ids
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
            if len(symbols) >= _VERY_LONG:
                symbols = merge_in_rounds(np.array(symbols), self._pair_ranks, self._parts[2]).tolist()
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

    def encode_all(self, text: bytes, borders: Positions, frugal: bool = False) -> tuple[Ids, Positions]:
        """Return the ids of all words of a text, one word behind the other, and how many each has.

        Args:
            text: words without a gap between them.
            borders: where each word begins, and where the last one ends.
            frugal: whether to go word by word, however many they are: in lockstep takes a megabyte.

        Raises:
            ValueError: as in `encode`.
        """
        sizes = np.diff(borders)
        words = [text[start:stop] for start, stop in pairwise(borders.tolist())]
        firsts = np.array([self._whole.get(word, -1) for word in words], np.int64)
        whole, others = np.flatnonzero(firsts >= 0), np.flatnonzero(firsts < 0)
        parts = [Part(whole, firsts[whole], np.ones(len(whole), np.intp))]
        is_short = sizes[others] <= LONGEST
        if not frugal and np.count_nonzero(is_short) >= _MANY:
            together, others = others[is_short], others[~is_short]
            symbols, counts = self._lockstep.encode(np.frombuffer(text, np.uint8), borders[together], sizes[together])
            ids = self._id_array.take(symbols)
            if ids.min(initial=0) < 0:
                lacking = np.searchsorted(np.cumsum(counts), ids.argmin(), "right")
                self.encode(words[together[lacking]])  # raises, and says what is lacking
            parts.append(Part(together, ids, counts))
        found = [self.encode(words[number]) for number in others.tolist()]
        ids = np.array([*chain.from_iterable(found)], np.int64)
        parts.append(Part(others, ids, np.array([*map(len, found)], np.intp)))
        ids, counts = in_order(parts, len(words))
        return ids.astype(np.uint32), counts

    @cached_property
    def _pair_ranks(self) -> PairRanks:
        left, right, _ = self._parts
        return PairRanks(left, right, len(self._tokens) + 1)

    @cached_property
    def _lockstep(self) -> LockstepEncoder:
        return LockstepEncoder(self._pair_ranks, self._parts[2], border=len(self._tokens))

    @cached_property
    def _id_array(self) -> Symbols:
        return np.array(self._ids, np.int64)

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
