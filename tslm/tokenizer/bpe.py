"""Byte-pair encoding as one would explain it: read this first.

`merge_pairs` is training: from the counts of pre-tokens to the merges. `encode` is the other direction: it applies the
merges to one pre-token. `encode_pretokens` and `encode_block` apply `encode` to many pre-tokens and to a whole text.
Pre-tokens are the pieces of text that no merge crosses; `pretokenize` defines them.

Source: Sennrich, Haddow and Birch 2016, "Neural Machine Translation of Rare Words with Subword Units", algorithm 1
(https://arxiv.org/abs/1508.07909), applied to bytes as in GPT-2 (Radford et al. 2019).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from tslm.fast import replaceable
from tslm.tokenizer.pretokenize import GPT2, find_pretokens, special_pattern, split_specials

Pair: TypeAlias = tuple[bytes, bytes]
Ids: TypeAlias = npt.NDArray[np.uint32]


@replaceable
def merge_pairs(counts: Mapping[bytes, int], max_merges: int) -> Iterator[Pair]:
    """Yield the merges of BPE training in the order in which they are made.

    The rule: count all pairs of neighbouring tokens, merge the most frequent pair everywhere, repeat. Among equally
    frequent pairs, the greater pair of byte strings is merged. All pairs are counted again for each merge; the
    substitutes update only the counts that a merge changes. `{b"low": 5, b"lower": 2}` gives four merges:

        l o w × 5    l o w e r × 2     l o: 7, o w: 7, w e: 2, e r: 2     merge o w, which is greater than l o
        l ow  × 5    l ow e r  × 2     l ow: 7, ow e: 2, e r: 2           merge l ow
        low   × 5    low e r   × 2     low e: 2, e r: 2                   merge low e
        low   × 5    lowe r    × 2     lowe r: 2                          merge lowe r; then no pair is left

    Args:
        counts: how often each pre-token occurs.
        max_merges: the largest number of merges; fewer are made when no pair is left.
    """
    words = [([bytes([byte]) for byte in word], count) for word, count in counts.items() if count > 0]
    for _ in range(max_merges):
        pairs: Counter[Pair] = Counter()
        for word, count in words:
            for pair in pairwise(word):
                pairs[pair] += count
        if not pairs:
            return
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        yield best
        words = [(_merge_all(word, best), count) for word, count in words]


def _merge_all(word: list[bytes], pair: Pair) -> list[bytes]:
    """Merge each occurrence of a pair, from left to right: in a a a the first two."""
    merged: list[bytes] = []
    at = 0
    while at < len(word):
        width = 2 if tuple(word[at : at + 2]) == pair else 1
        merged.append(b"".join(word[at : at + width]))
        at += width
    return merged


def rank_merges(merges: Sequence[Pair]) -> dict[Pair, int]:
    """Return the rank of each pair, which is its position in the merges. The lowest rank is merged first.

    A pair that is listed twice has its first position as its rank.
    """
    return {pair: rank for rank, pair in reversed([*enumerate(merges)])}


def encode(pretoken: bytes, ranks: Mapping[Pair, int]) -> list[bytes]:
    """Return the tokens of a pre-token.

    The rule: start with single bytes; of all pairs of neighbours merge the one with the lowest rank, the leftmost of
    several; repeat until no pair has a rank.

    Example:
        >>> ranks = rank_merges([(b"o", b"w"), (b"e", b"r"), (b"e", b"w"), (b"w", b"er"), (b"n", b"e")])
        >>> encode(b"newer", ranks)
        [b'n', b'ew', b'er']

        `e r` is merged first. `e w` precedes `w er`. After that there is no `n e` left.
    """
    for step in replay(pretoken, ranks):
        tokens = step.tokens
    return tokens


class MergeStep(NamedTuple):
    """The tokens of a pre-token, and the merge that is applied to them next."""

    tokens: list[bytes]
    rank: int | None  # the rank of the merge; None in the last step
    at: int | None  # the index in `tokens` of the merge's left part


def replay(pretoken: bytes, ranks: Mapping[Pair, int]) -> Iterator[MergeStep]:
    """Yield the steps of `encode`, from single bytes to the result.

    Example:
        >>> for step in replay(b"aab", {(b"a", b"b"): 0, (b"a", b"a"): 1}):
        ...     print(*step)
        [b'a', b'a', b'b'] 0 1
        [b'a', b'ab'] None None
    """
    tokens = [bytes([byte]) for byte in pretoken]
    while mergeable := [(ranks[pair], at) for at, pair in enumerate(pairwise(tokens)) if pair in ranks]:
        rank, at = min(mergeable)
        yield MergeStep(tokens, rank, at)
        tokens = [*tokens[:at], tokens[at] + tokens[at + 1], *tokens[at + 2 :]]
    yield MergeStep(tokens, None, None)


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """What encoding looks up. Two vocabularies are equal only if they are the same object.

    Attributes:
        ids: the id of each token.
        ranks: the rank of each pair that is merged.
        special_ids: the id of each special token: a string of bytes that is one token wherever it occurs.
        pattern: the pattern of pre-tokens.
    """

    ids: Mapping[bytes, int]
    ranks: Mapping[Pair, int]
    special_ids: Mapping[bytes, int]
    pattern: str = GPT2


@replaceable
def encode_pretokens(pretokens: Sequence[bytes], vocabulary: Vocabulary) -> list[tuple[int, ...]]:
    """Return the ids of the tokens of each pre-token.

    Raises:
        KeyError: the vocabulary lacks a token of the result; the token is the argument of the error.
    """
    return [tuple(vocabulary.ids[token] for token in encode(each, vocabulary.ranks)) for each in pretokens]


@replaceable
def encode_block(block: bytes, vocabulary: Vocabulary) -> Ids:
    """Return the ids of the tokens of a text: special tokens first, then the pre-tokens between them.

    Args:
        block: the text in UTF-8, apart from special tokens, which may hold any bytes.
        vocabulary: the tokens, merges and special tokens.

    Raises:
        KeyError: the vocabulary lacks a token of the result; the token is the argument of the error.
    """
    known: dict[str, tuple[int, ...]] = {
        token.decode(errors="surrogateescape"): (id_,) for token, id_ in vocabulary.special_ids.items()
    }
    words: list[str] = []  # pre-tokens and special tokens; none is both
    for piece, is_special in split_specials(block, special_pattern(vocabulary.special_ids)):
        if is_special:
            words.append(piece.decode(errors="surrogateescape"))
        else:
            words += find_pretokens(piece.decode(), vocabulary.pattern)
    new = [word for word in dict.fromkeys(words) if word not in known]  # most pre-tokens of a text occur often
    known |= zip(new, encode_pretokens([word.encode() for word in new], vocabulary), strict=True)
    return np.fromiter(chain.from_iterable(map(known.__getitem__, words)), np.uint32)
