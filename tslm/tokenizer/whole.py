"""Finds the tokens that BPE makes of their own bytes, so that a word that is one of them needs no merging.

The merges come in, as numbers; which tokens they make whole goes out. That a vocabulary has an entry does not mean that
its merges lead there: of (a b), (b c), (a bc) the last never happens, since `abc` becomes `ab c`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Symbols = npt.NDArray[np.int64]


def made_whole(left: Symbols, right: Symbols, merged: Symbols, count: int) -> npt.NDArray[np.bool_]:
    """Return for each symbol whether merging its bytes ends with it alone.

    The bytes of a + b, merged at rank r, become a b and then ab if a and b are made whole themselves, and if nothing is
    merged across the border between them before. So the two tokens at the border are followed backwards, from a and b
    to single bytes, taking apart the one that was made later; the pair that stood there must not have had its turn by
    then. Of pairs of one rank the leftmost has its turn first.

    Args:
        left: the left part of each merge; its place is its rank.
        right: the right part.
        merged: what becomes of them.
        count: the number of symbols; the first 256 are the bytes.
    """
    is_whole = np.zeros(count, np.bool_)
    is_whole[:256] = True
    ranks = np.arange(len(left))
    never = len(left)
    made_at = np.full(count, -1)  # the rank of the merge that makes a symbol: -1 for bytes
    made_at[merged[::-1]] = ranks[::-1]
    is_good = made_at[merged] == ranks  # what several merges make is left to them
    is_good &= (made_at[left] < ranks) & (made_at[right] < ranks)

    keys = left * count + right
    order = np.argsort(keys, kind="stable")  # of a pair that is listed twice the first rank counts
    keys = keys[order]
    open_ = np.flatnonzero(is_good)
    at_left, at_right, ended = left[open_], right[open_], ranks[open_]
    while len(open_):
        wanted = at_left * count + at_right
        found = np.minimum(np.searchsorted(keys, wanted), never - 1)
        turn = np.where(keys[found] == wanted, order[found], never)
        made_left, made_right = made_at[at_left], made_at[at_right]
        is_good[open_[turn < ended]] = False
        goes_on = (turn >= ended) & ((made_left >= 0) | (made_right >= 0))
        open_, at_left, at_right = open_[goes_on], at_left[goes_on], at_right[goes_on]
        made_left, made_right = made_left[goes_on], made_right[goes_on]
        # The right one was made later where both are the same token, and its pair must wait for a turn after that.
        takes_left = made_left > made_right
        at_left = np.where(takes_left, right[made_left], at_left)
        at_right = np.where(takes_left, at_right, left[made_right])
        ended = np.where(takes_left, made_left, made_right + 1)
    for rank in np.flatnonzero(is_good).tolist():
        is_whole[merged[rank]] = is_whole[left[rank]] and is_whole[right[rank]]
    return is_whole
