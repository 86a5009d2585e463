"""Merges pairs in all words at once: the loop of BPE training.

`{pre-token: count}` comes in; the pairs that are merged go out, one after the other. The counts of pairs are never
taken anew: each merge changes them only where it changes a word.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from tslm.tokenizer.pair_queue import PairQueue

Places: TypeAlias = npt.NDArray[np.intc]

_BORDER = -1  # in place of a token, on either side of each word
_SWALLOWED = -2  # in place of a token that was joined with the one on its left
_MANY = 96  # places from which numpy is faster than a loop


def merged_pairs(counts: Mapping[bytes, int], tokens: list[bytes], wanted: int) -> Iterator[tuple[int, int]]:
    """Append up to `wanted` merged tokens to `tokens`, and yield the pair that each was made of.

    Args:
        counts: how often each word occurs.
        tokens: the 256 bytes.
        wanted: how many merges to make, if there are so many.
    """
    text = _Sequence([(word, count) for word, count in counts.items() if len(word) > 1 and count > 0], 256 + wanted)
    queue = PairQueue(text.pair_counts, tokens, text.base)
    for new in range(256, 256 + wanted):
        key = queue.pop()
        if key is None:
            return
        left, right = divmod(key, text.base)
        tokens.append(tokens[left] + tokens[right])
        queue.name_token(new)
        places = text.places.pop(key)
        # Where left and right are the same, as in a a a, a place can be spoiled by the one before it.
        if len(places) < _MANY or left == right:
            born = text.merge_few(places, left, right, new)
        else:
            born = text.merge_many(places, left, right, new)
        del text.pair_counts[key]
        for pair in born:
            queue.add(pair)
        yield left, right


class _Sequence:
    """All words in one sequence of tokens, with a border on either side of each.

    `after` and `before` link a token to its neighbours. Where a pair occurs is written down when it comes to be, and
    not erased: an entry is stale when the pair no longer stands there. Merging s t in `best` (5 times) and `west` (2
    times) changes nothing but what stands around its places:

        sequence    | b e s t | w e s t |    becomes    | b e st . | w e st . |     with | a border, . swallowed
        links       from e to s to t to |    becomes    from e to st to |
        counts      e s: 7, s t: 7           becomes    e st: 7

    Args:
        words: words of two and more bytes, with their counts.
        base: above every token's number; the pair (a, b) has the key a * base + b.

    Attributes:
        pair_counts: the count of each pair, under its key.
        places: where a pair occurs, or did: the positions of its left tokens, in ascending order.
    """

    def __init__(self, words: list[tuple[bytes, int]], base: int) -> None:
        self.base = base
        sizes = np.array([len(word) for word, _ in words], np.int64)
        text = np.frombuffer(b"\0".join(word for word, _ in words), np.uint8)
        token = np.full(len(text) + 2, _BORDER, np.intc)
        token[1:-1] = text
        token[np.cumsum(sizes + 1)[:-1] if len(words) else []] = _BORDER
        weight = np.zeros(len(token), np.int64)
        weight[1 : 1 + len(text)] = np.repeat(np.array([count for _, count in words], np.int64), sizes + 1)[:-1]
        # Each twice, as one memory: a loop is faster on Python's arrays.
        self._token, self._weight = array("i", token.tobytes()), array("q", weight.tobytes())
        positions = np.arange(-1, len(token) + 1, dtype=np.intc)
        self._before, self._after = array("i", positions[:-2].tobytes()), array("i", positions[2:].tobytes())
        self._tokens = np.frombuffer(self._token, np.intc)
        self._weights = np.frombuffer(self._weight, np.int64)
        self._befores, self._afters = np.frombuffer(self._before, np.intc), np.frombuffer(self._after, np.intc)
        self.pair_counts: dict[int, int] = {}
        self.places: dict[int, Places | list[int]] = {}
        places = np.flatnonzero((self._tokens[:-1] >= 0) & (self._tokens[1:] >= 0)).astype(np.intc)
        bytes_of_pairs = self._tokens[places] << 8 | self._tokens[places + 1]
        for pair, count, where in self._grouped(bytes_of_pairs, places, self._weights[places]):
            key = (pair >> 8) * base + (pair & 0xFF)
            self.pair_counts[key], self.places[key] = count, where

    @staticmethod
    def _grouped(
        keys: Places, places: Places, weights: npt.NDArray[np.int64]
    ) -> Iterator[tuple[int, int, Places]]:
        """Yield each distinct key with the sum of its weights and its places."""
        # Numbers of 16 bits are sorted by radix, in a fifth of the time.
        order = np.argsort(keys.astype(np.uint16) if keys.max(initial=0) < 1 << 16 else keys, kind="stable")
        keys, places = keys[order], places[order]
        if len(keys):
            first = np.append(0, np.flatnonzero(keys[1:] != keys[:-1]) + 1)
            sums = np.add.reduceat(weights[order], first).tolist()
            borders = [*first.tolist(), len(keys)]
            for index, key in enumerate(keys[first].tolist()):
                yield key, sums[index], places[borders[index] : borders[index + 1]]

    def merge_many(self, places: Places | list[int], left: int, right: int, new: int) -> list[int]:
        """Merge a pair of different tokens at all its places; return the new pairs.

        In `left right left right` the second occurrence accounts for what is between the two.
        """
        tokens, before, after = self._tokens, self._befores, self._afters
        at = np.asarray(places)
        at = at[(tokens[at] == left) & (tokens[after[at]] == right)]
        swallowed = after[at]
        following, preceding, weights = after[swallowed], before[at], self._weights[at]
        tokens[at], tokens[swallowed] = new, _SWALLOWED
        after[at], before[following] = following, at

        is_second = tokens[preceding] == _SWALLOWED
        preceding = np.where(is_second, before[preceding], preceding)
        in_front, behind = tokens[preceding], tokens[following]
        counts, base = self.pair_counts, self.base
        if is_second.any():
            counts[right * base + left] -= int(weights[is_second].sum())
        born = []
        inside = in_front >= 0
        for token, count, where in self._grouped(in_front[inside], preceding[inside], weights[inside]):
            if token != new:
                counts[token * base + left] -= count
            pair = token * base + new
            counts[pair], self.places[pair] = count, where
            born.append(pair)
        inside = (behind >= 0) & (behind != new)
        for token, count, where in self._grouped(behind[inside], at[inside], weights[inside]):
            counts[right * base + token] -= count
            pair = new * base + token
            counts[pair], self.places[pair] = count, where
            born.append(pair)
        return born

    def merge_few(self, places: Places | list[int], left: int, right: int, new: int) -> list[int]:
        """Do what `merge_many` does, place by place."""
        token, weight, before, after = self._token, self._weight, self._before, self._after
        counts, base = self.pair_counts, self.base
        born: dict[int, list[int]] = {}
        for place in places if isinstance(places, list) else places.tolist():
            swallowed = after[place]
            if token[place] != left or token[swallowed] != right:
                continue
            following, preceding = after[swallowed], before[place]
            token[place], token[swallowed] = new, _SWALLOWED
            after[place] = following
            before[following] = place
            count = weight[place]
            neighbour = token[preceding]
            if neighbour >= 0:
                counts[neighbour * base + left] -= count
                pair = neighbour * base + new
                if pair in born:
                    born[pair].append(preceding)
                    counts[pair] += count
                else:
                    born[pair] = [preceding]
                    counts[pair] = count
            neighbour = token[following]
            if neighbour >= 0:
                counts[right * base + neighbour] -= count
                pair = new * base + neighbour
                if pair in born:
                    born[pair].append(place)
                    counts[pair] += count
                else:
                    born[pair] = [place]
                    counts[pair] = count
        for pair in [pair for pair in born if counts[pair] == 0]:
            del born[pair], counts[pair]  # (new, left) in `left right left right`: gone when its second half was merged
        self.places.update(born)
        return list(born)
