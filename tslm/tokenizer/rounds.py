"""Applies the merges of BPE to one long piece in rounds: a pair is merged at all its places at once, in numpy.

Symbols come in, fewer of them go out. It pays while pairs have many places, as in a run of one character; the rest is
left to `pieces.PieceEncoder`.
"""

from __future__ import annotations

import numpy as np

from tslm.tokenizer.pair_ranks import PairRanks, Symbols

_SHARE = 64  # a round costs as much as so many merges one by one cost for each symbol


def merge_in_rounds(symbols: Symbols, ranks: PairRanks, merged: Symbols) -> Symbols:
    """Merge the pair that comes first at all its places, again and again, while it has many.

    One by one, from left to right, would end the same, unless a pair that comes even earlier appears between two of
    those merges. It would be one of those that stand there after the round, or of the new symbol with the left part of
    the next place. So a round in which there is one is not made.

    Args:
        symbols: of one piece.
        ranks: the ranks of pairs.
        merged: what becomes of the pair of each rank.
    """
    turns = ranks.find(symbols[:-1], symbols[1:])
    while len(turns):
        rank = turns.min()
        at = np.flatnonzero(turns == rank)
        if rank == ranks.never or len(at) * _SHARE < len(symbols):
            break
        left, right, new = symbols[at[0]], symbols[at[0] + 1], merged[rank]
        if left == right:  # in a a a a the places overlap: every other one of a run counts, from its first on
            first = np.flatnonzero(np.diff(at, prepend=-2) != 1)
            in_run = np.arange(len(at)) - np.repeat(first, np.diff(first, append=len(at)))
            at = at[in_run % 2 == 0]
        shorter = symbols.copy()
        shorter[at] = new
        shorter = np.delete(shorter, at + 1)
        fresh = ranks.find(shorter[:-1], shorter[1:])
        if min(fresh.min(initial=ranks.never), ranks.find(np.array([new]), np.array([left]))[0]) < rank:
            break
        symbols, turns = shorter, fresh
    return symbols
