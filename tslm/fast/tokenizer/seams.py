"""Cuts long pre-tokens where two characters meet that are neighbours in no token, so that the parts repeat.

In scripts without spaces a pre-token is a whole clause and hardly ever occurs twice, but its words do. A cut is right
if the last token before it and the first one after it are the encoding of their own bytes, because whether a merge
crosses the boundary between two tokens depends on these two alone (`tokenizer.joining` gives the reason). Wrong cuts
are undone. So the result is exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from tslm.fast.tokenizer.batched_merge import PairRanks, Symbols
from tslm.fast.tokenizer.scanner import Mask, Positions

_CHARACTERS = 0x110000
_NEVER = np.iinfo(np.int64).max
_CACHE_BITS = 17
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


class Seams:
    """Finds cuts within pre-tokens, and tells whether they are right.

    Args:
        tokens: the token of each symbol, the 256 bytes first.
        lefts: the left part of each merge, as a symbol.
        rights: the right part.
        merged: the symbol that it becomes.
        ranks: its rank.
        pair_ranks: the ranks of pairs of symbols.
        ids: the id of each token.
        special_tokens: they are never cut.

    Attributes:
        symbol_of: the symbol of each id.
        is_usable: whether each symbol has one merge at most, of a higher rank than those of its parts, as after
            training. Then the merges within a token are made in the order of their ranks.
    """

    def __init__(
        self,
        tokens: Sequence[bytes],
        lefts: Symbols,
        rights: Symbols,
        merged: Symbols,
        ranks: Symbols,
        pair_ranks: PairRanks,
        ids: Mapping[bytes, int],
        special_tokens: Iterable[bytes],
    ) -> None:
        self._pair_ranks = pair_ranks
        self._left, self._right, self._rank = (np.full(len(tokens), -1, np.int64) for _ in range(3))
        self._left[merged], self._right[merged], self._rank[merged] = lefts, rights, ranks
        highest = max(ids.values(), default=0)
        self.is_usable = (
            int(np.bincount(merged).max(initial=0)) < 2
            and bool((merged >= 256).all())
            and bool((np.maximum(self._rank[lefts], self._rank[rights]) < ranks).all())
            and highest < 4 * len(ids) + 1024
        )
        if not self.is_usable:
            return
        self.symbol_of = np.full(highest + 1, -1, np.int64)
        for symbol, token in enumerate(tokens):
            if token in ids:
                self.symbol_of[ids[token]] = symbol
        texts = "\0".join(token.decode(errors="ignore") for token in (*tokens, *special_tokens))
        characters = np.frombuffer(texts.encode("utf-32-le"), "<u4").astype(np.int64)
        pairs = np.sort(characters[:-1] * _CHARACTERS + characters[1:])
        pairs = pairs[np.diff(pairs, prepend=-1) > 0]
        self._neighbours = PairRanks(
            pairs // _CHARACTERS, pairs % _CHARACTERS, np.arange(len(pairs), dtype=np.int64), _CHARACTERS
        )
        self._valid = np.full(1 << _CACHE_BITS, _NEVER)  # pairs that were found valid

    def cut(self, text: bytes, bounds: Positions) -> Positions:
        """Add cuts to the bounds of the pre-tokens of a text."""
        if text.isascii():
            return bounds
        try:
            characters = text.replace(b"\xff", b"\0").decode().encode("utf-32-le")
        except UnicodeDecodeError:  # a special token
            return bounds
        codes = np.frombuffer(characters, "<u4").astype(np.int64)
        is_wide = codes >= 0x80
        at = np.flatnonzero(is_wide[1:] & is_wide[:-1])
        at = at[self._neighbours.find(codes[at], codes[at + 1]) == self._neighbours.never] + 1
        starts = np.flatnonzero((np.frombuffer(text, np.uint8) & 0xC0) != 0x80)
        is_bound = np.zeros(len(text) + 1, np.bool_)
        is_bound[bounds] = True
        is_bound[starts[at]] = True
        return np.flatnonzero(is_bound)

    def wrong(self, left: Symbols, right: Symbols) -> Mask:
        """Return for which pairs of symbols a merge crosses the boundary between the two tokens."""
        keys = (left << 32) | right
        slots = (keys.view(np.uint64) * _MULTIPLIER >> np.uint64(64 - _CACHE_BITS)).view(np.int64)
        unknown = np.flatnonzero(self._valid[slots] != keys)
        crosses = self._crosses(left[unknown], right[unknown])
        valid = unknown[~crosses]
        self._valid[slots[valid]] = keys[valid]
        wrong = np.zeros(len(keys), np.bool_)
        wrong[unknown[crosses]] = True
        return wrong

    def _crosses(self, left: Symbols, right: Symbols) -> Mask:
        """Undo the merges of both tokens, the last one first, and look for a merge of the two ends in between.

        Such a merge is made if its rank is below that of the merge that changes the left end next, and not above that
        of the merge that changes the right end: of equal ranks the merge further left is made first.
        """
        crosses = np.zeros(len(left), np.bool_)
        members = np.arange(len(left))
        until_left, until_right = np.full(len(left), _NEVER), np.full(len(left), _NEVER)
        while len(members):
            rank = self._pair_ranks.find(left, right)
            found = (rank < self._pair_ranks.never) & (rank < until_left) & (rank <= until_right)
            crosses[members[found]] = True
            left_rank, right_rank = self._rank[left], self._rank[right]
            rest = np.flatnonzero(~found & ((left_rank >= 0) | (right_rank >= 0)))
            members, left, right, until_left, until_right, left_rank, right_rank = (
                each[rest] for each in (members, left, right, until_left, until_right, left_rank, right_rank)
            )
            is_left = left_rank > right_rank
            until_left = np.where(is_left, left_rank, until_left)
            until_right = np.where(is_left, until_right, right_rank)
            left = np.where(is_left, self._right[left], left)
            right = np.where(is_left, right, self._left[right])
        return crosses
