"""The sequence of tokens in which BPE training merges pairs, with the count and the places of each pair."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from functools import cache
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Places: TypeAlias = npt.NDArray[np.intc]
Weights: TypeAlias = npt.NDArray[np.signedinteger]
Numbers: TypeAlias = npt.NDArray[np.signedinteger]

_BOUNDARY = -1  # a sentinel before and after each word
_MERGED = -2  # marks a token that was merged into its left neighbour
_PART = 1 << 22  # places that are grouped by pair at a time
LARGE = 1 << 21  # tokens; leaving out rare pairs takes more time for most smaller texts
_HUGE = 1 << 23  # tokens; from here on, memory counts for more than time
# Pairs that occur so many times less often than the most frequent one are left out for the time being. Measured with
# 10,000 entries: 5 MB of base64 take 1.8 s with 128 and 3.1 s with all pairs; 30 MB of random letters in one word take
# 38 s and 2.3 GB with 128, 21 s and 1.4 GB with 32.
_RARER, _RARER_IN_HUGE = 128, 32


class TokenSequence:
    """All words in one sequence of tokens, with a boundary on either side of each.

    `after` and `before` link a token to its neighbours. The places of a pair are recorded when the pair is created, and
    never erased: an entry is stale if the pair no longer occurs there. Merging s t in `best` (5 times) and `west` (2
    times) changes only the neighbourhood of its places:

        sequence    | b e s t | w e s t |    becomes    | b e st . | w e st . |     with | a boundary, . merged away
        links       from e to s to t to |    becomes    from e to st to |
        counts      e s: 7, s t: 7           becomes    e st: 7

    In a large sequence, pairs that are too rare to be merged soon are left out, to save memory: a text of random
    letters has millions of them. A count never increases after the pair is created, so a pair that is left out stays
    below `least`. When no other pair is left, a new sequence is made of the `remaining` tokens.

    Args:
        tokens: the tokens of all words, with a boundary after each word.
        weights: how often the word of each token occurs.
        base: larger than every token's number; the pair (a, b) has the key a * base + b.
        large: a sequence of at least so many tokens leaves out rare pairs.

    Attributes:
        least: only pairs with at least this count are known.
        pair_counts: the count of each known pair, by its key.
        places: the positions of the left tokens of each known pair, in ascending order; some may be stale.
    """

    def __init__(self, tokens: Places, weights: Weights, base: int, large: int = LARGE) -> None:
        self.base = base
        size = len(tokens) + 1
        # Each array has two views of the same memory, since a loop is faster on Python's arrays.
        self._token, self._before, self._after = (array("i", [_BOUNDARY]) * size for _ in range(3))
        self._weight = array(weights.dtype.char, [0]) * size
        self._tokens, self._befores, self._afters = (
            np.frombuffer(each, np.intc) for each in (self._token, self._before, self._after)
        )
        self._weights = np.frombuffer(self._weight, weights.dtype)
        self._tokens[1:], self._weights[1:] = tokens, weights
        self._befores[1:] = np.arange(size - 1, dtype=np.intc)
        self._afters[:-1] = np.arange(1, size, dtype=np.intc)

        parts = range(0, size, _PART)  # the arrays that group the pairs of a part are several times larger than it
        pairs = self._pairs if len(parts) > 1 else cache(self._pairs)
        keys = np.concatenate([pairs(part).keys for part in parts])
        every = _group(keys, keys, np.concatenate([pairs(part).counts for part in parts]))
        rarer = _RARER if size < _HUGE else _RARER_IN_HUGE
        self.least = 1 if size < large else max(1, int(every.counts.max(initial=0)) // rarer)
        known = every.counts >= self.least
        pair_counts = zip(every.keys[known].tolist(), every.counts[known].tolist(), strict=True)
        self.pair_counts: dict[int, int] = dict(pair_counts)
        found: dict[int, list[Places]] = {key: [] for key in self.pair_counts}
        for part in map(pairs, parts):
            for key, where in part.places_of(np.isin(part.keys, every.keys[known])):
                found[key].append(where)
        self.places: dict[int, Places | array[int]] = {key: np.concatenate(found.pop(key)) for key in self.pair_counts}

    def _pairs(self, start: int) -> _Groups:
        """Return the pairs of a part of the sequence."""
        tokens = self._tokens[start : start + _PART + 1]
        places = (start + np.flatnonzero((tokens[:-1] >= 0) & (tokens[1:] >= 0))).astype(np.intc)
        keys = self._tokens[places].astype(np.int64) * self.base + self._tokens[places + 1]
        return _group(keys, places, self._weights[places])

    def remaining(self) -> tuple[Places, Weights]:
        """Return the tokens that are left and their weights, as the arguments of a new sequence."""
        left = np.flatnonzero(self._tokens[1:] != _MERGED) + 1
        return self._tokens[left], self._weights[left]

    def merge_many(self, places: Places | array[int], left: int, right: int, new: int) -> list[int]:
        """Merge a pair at all its places; return the new pairs.

        In `left right left right` the pair between the two occurrences is counted with the second one. In `a a a`, a
        run of two places of the pair a a, the second place is skipped, since its left token is merged already.
        """
        tokens, before, after = self._tokens, self._befores, self._afters
        at = np.asarray(places)
        at = at[(tokens[at] == left) & (tokens[after[at]] == right)]
        if left == right:
            number = np.arange(len(at))
            continues = np.append(False, after[at[:-1]] == at[1:])
            at = at[(number - np.maximum.accumulate(np.where(continues, 0, number))) % 2 == 0]
        merged = after[at]
        following, preceding, weights = after[merged], before[at], self._weights[at]
        tokens[at], tokens[merged] = new, _MERGED
        after[at], before[following] = following, at

        is_second = tokens[preceding] == _MERGED
        preceding = np.where(is_second, before[preceding], preceding)
        token_before, token_after = tokens[preceding], tokens[following]
        between = right * self.base + left
        if between in self.pair_counts:
            self.pair_counts[between] -= int(weights[is_second].sum())
        inside = token_before >= 0
        created = self._replace(token_before[inside], preceding[inside], weights[inside], self.base, left, new)
        inside = (token_after >= 0) & (token_after != new)
        return created + self._replace(
            token_after[inside], at[inside], weights[inside], 1, right * self.base, new * self.base
        )

    def _replace(
        self, tokens: Places, places: Places, weights: Weights, factor: int, old: int, new: int
    ) -> list[int]:
        """Replace pairs of merged places and their neighbours; return the new pairs.

        Args:
            tokens: the neighbours of the merged places, all on one side.
            places: the places of the pairs.
            weights: how often each of them occurs.
            factor: the key of a pair is `factor` times the number of the neighbour plus a constant.
            old: this constant before the merge.
            new: this constant after the merge.
        """
        groups, counts = _group(tokens, places, weights), self.pair_counts
        keys = groups.keys.astype(np.int64) * factor
        for pair, count in zip((keys + old).tolist(), groups.counts.tolist(), strict=True):
            if pair in counts:
                counts[pair] -= count
        known = groups.counts >= self.least
        created: list[int] = (keys[known] + new).tolist()
        counts.update(zip(created, groups.counts[known].tolist(), strict=True))
        for pair, (_, where) in zip(created, groups.places_of(known), strict=True):
            self.places[pair] = where.copy()
        return created

    def merge_few(self, places: Places | array[int], left: int, right: int, new: int) -> list[int]:
        """Merge a pair at all its places, one after the other; return the new pairs."""
        token, weight, before, after = self._token, self._weight, self._before, self._after
        counts, base = self.pair_counts, self.base
        created: dict[int, array[int]] = {}
        for place in places.tolist():
            merged = after[place]
            if token[place] != left or token[merged] != right:
                continue
            following, preceding = after[merged], before[place]
            token[place], token[merged] = new, _MERGED
            after[place] = following
            before[following] = place
            count = weight[place]
            neighbour = token[preceding]
            if neighbour >= 0:
                if (pair := neighbour * base + left) in counts:
                    counts[pair] -= count
                pair = neighbour * base + new
                if pair in created:
                    created[pair].append(preceding)
                    counts[pair] += count
                else:
                    created[pair] = array("i", (preceding,))
                    counts[pair] = count
            neighbour = token[following]
            if neighbour >= 0:
                if (pair := right * base + neighbour) in counts:
                    counts[pair] -= count
                pair = new * base + neighbour
                if pair in created:
                    created[pair].append(place)
                    counts[pair] += count
                else:
                    created[pair] = array("i", (place,))
                    counts[pair] = count
        # Rare pairs; and (new, left) in `left right left right`, which the second merge removed.
        for pair in [pair for pair in created if counts[pair] < self.least]:
            del created[pair], counts[pair]
        self.places.update(created)
        return list(created)


def join_words(counts: Mapping[bytes, int]) -> tuple[Places, Weights]:
    """Return the bytes of all words of two bytes or more with a boundary after each, and each byte's weight."""
    words = [(word, count) for word, count in counts.items() if len(word) > 1 and count > 0]
    sizes = np.array([len(word) + 1 for word, _ in words], np.int64)
    tokens = np.frombuffer(b"".join(word + b"\0" for word, _ in words), np.uint8).astype(np.intc)
    tokens[np.cumsum(sizes) - 1] = _BOUNDARY
    numbers = np.array([count for _, count in words], np.int64)
    return tokens, np.repeat(numbers.astype(np.intc) if numbers.max(initial=0) < 1 << 31 else numbers, sizes)


class _Groups(NamedTuple):
    """Places that are grouped by a key.

    Attributes:
        keys: the distinct keys in ascending order.
        counts: the sum of the weights of each key's places.
        places: the places, ordered by their key.
        bounds: where in `places` each key begins, and at last their number.
    """

    keys: Numbers
    counts: Numbers
    places: Numbers
    bounds: Numbers

    def places_of(self, chosen: npt.NDArray[np.bool_]) -> Iterator[tuple[int, Places]]:
        """Yield the chosen keys with their places, which are a part of `places` and not a copy."""
        keys, bounds = self.keys.tolist(), self.bounds.tolist()
        for index in np.flatnonzero(chosen).tolist():
            yield keys[index], self.places[bounds[index] : bounds[index + 1]]


def _group(keys: Numbers, places: Numbers, weights: Numbers) -> _Groups:
    """Group places by their keys, which are below 2⁴⁸."""
    if not len(keys):
        return _Groups(keys, np.zeros(0, np.int64), places, np.zeros(1, np.int64))
    # Numbers of 16 bits are sorted by radix, in a fifth of the time.
    shifts = (0, 16, 32) if keys.max() >= 1 << 16 else (0,)
    order = np.lexsort([(keys >> shift).astype(np.uint16) for shift in shifts])
    keys = keys[order]
    bounds = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1], [True])))
    counts = np.add.reduceat(weights[order], bounds[:-1], dtype=np.int64)
    return _Groups(keys[bounds[:-1]], counts, places[order], bounds)
