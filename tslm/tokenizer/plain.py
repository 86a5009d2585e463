"""Byte-pair encoding in its plainest form: read this first.

Counts of pre-tokens come in and merges go out; then merges and one pre-token come in and its tokens go out. `train` and
`pieces` compute the same, fast enough for gigabytes; the tests hold them against the functions here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from tslm.tokenizer.pretokenize import encode_specials


def merge_pretokens_plainly(
    counts: Mapping[bytes, int], vocab_size: int, special_tokens: Sequence[str]
) -> tuple[dict[int, bytes], list[tuple[bytes, bytes]]]:
    """Do what `merge_pretokens` does, counting all pairs anew before each merge (Sennrich et al. 2016, algorithm 1).

    The most frequent pair of neighbours becomes one token, everywhere; among equally frequent pairs it is the greater
    one as a pair of byte strings. So `{b"low": 5, b"lower": 2}` gives

        l o w × 5    l o w e r × 2     l o: 7, o w: 7, w e: 2, e r: 2     merge o w, which is greater than l o
        l ow  × 5    l ow e r  × 2     l ow: 7, ow e: 2, e r: 2           merge l ow
        low   × 5    low e r   × 2     low e: 2, e r: 2                   merge low e
        low   × 5    lowe r    × 2     lowe r: 2                          merge lowe r; then no pair is left

    Args:
        counts: how often each pre-token occurs.
        vocab_size: the greatest number of entries, at least 256 plus the number of special tokens.
        special_tokens: strings that are one token each; they come first in the vocabulary.

    Returns:
        The vocabulary (id to bytes) and the merges.
    """
    tokens = encode_specials(special_tokens) + [bytes([byte]) for byte in range(256)]
    words = [([bytes([byte]) for byte in word], count) for word, count in counts.items() if count > 0]
    merges: list[tuple[bytes, bytes]] = []
    while len(tokens) < vocab_size:
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for word, count in words:
            for pair in pairwise(word):
                pairs[pair] += count
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        tokens.append(best[0] + best[1])
        words = [(_replace(word, best), count) for word, count in words]
    return dict(enumerate(tokens)), merges


def encode_plainly(pretoken: bytes, merges: Sequence[tuple[bytes, bytes]]) -> list[bytes]:
    """Cut a pre-token into tokens: join, again and again, the leftmost of the pairs that were merged first in training.

    Example:
        >>> encode_plainly(b"newer", [(b"o", b"w"), (b"e", b"r"), (b"e", b"w"), (b"w", b"er"), (b"n", b"e")])
        [b'n', b'ew', b'er']

        `e r` goes first; of `e w` and `w er` the first was merged earlier, and leaves no `n e`.
    """
    *_, last = replay_merges(pretoken, merges)
    return last.tokens


class MergeStep(NamedTuple):
    """The tokens of a pre-token, and the merge that is applied to them next."""

    tokens: list[bytes]
    rank: int | None  # of the merge, its place in the merges; None in the last step
    at: int | None  # where in `tokens` its left half stands


def replay_merges(pretoken: bytes, merges: Sequence[tuple[bytes, bytes]]) -> Iterator[MergeStep]:
    """Yield what `encode_plainly` does, step by step, from the single bytes to the result.

    Example:
        >>> for step in replay_merges(b"aab", [(b"a", b"b"), (b"a", b"a")]):
        ...     print(*step)
        [b'a', b'a', b'b'] 0 1
        [b'a', b'ab'] None None
    """
    ranks = {pair: rank for rank, pair in reversed([*enumerate(merges)])}  # of a pair that is listed twice, the first
    tokens = [bytes([byte]) for byte in pretoken]
    while mergeable := [(ranks[pair], at) for at, pair in enumerate(pairwise(tokens)) if pair in ranks]:
        rank, at = min(mergeable)
        yield MergeStep(tokens, rank, at)
        tokens = [*tokens[:at], tokens[at] + tokens[at + 1], *tokens[at + 2 :]]
    yield MergeStep(tokens, None, None)


def _replace(word: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    """Join each occurrence of a pair, from left to right: in a a a the first two."""
    joined: list[bytes] = []
    at = 0
    while at < len(word):
        width = 2 if tuple(word[at : at + 2]) == pair else 1
        joined.append(b"".join(word[at : at + width]))
        at += width
    return joined
