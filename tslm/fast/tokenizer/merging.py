"""BPE training that updates pair counts where a merge changes them: a substitute for `tokenizer.bpe.merge_pairs`.

`fast.cpu.make_merges` does the same in C; this form is for machines without a compiler, and for few words.
"""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from heapq import heapify, heappop, heappush

from tslm.fast.door import Case, Substitute
from tslm.fast.tokenizer.probes import example_words

_BOUNDARY = -1  # a sentinel before and after each word
_MERGED = -2  # marks a token that was merged into its left neighbour


def merge_pairs(counts: Mapping[bytes, int], max_merges: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the merges of BPE training in the order in which they are made.

    Args:
        counts: how often each pre-token occurs.
        max_merges: the largest number of merges.
    """
    tokens = [bytes([byte]) for byte in range(256)]
    base = 256 + max_merges
    text = _TokenSequence(counts, base)
    names = [*map(_name_of, tokens)]

    def entry(pair: int) -> tuple[int, str, str, int]:
        """Return an entry of the heap: smaller for the more frequent pair, then for the greater one."""
        left, right = divmod(pair, base)
        return -text.pair_counts[pair], names[left], names[right], pair

    heap = [entry(pair) for pair in text.pair_counts]
    heapify(heap)
    while heap and len(tokens) < base:
        count, _, _, pair = heappop(heap)
        present = text.pair_counts.get(pair, 0)
        if present != -count:  # it has become rarer; a pair never becomes more frequent after the merge that makes it
            if present:
                heappush(heap, entry(pair))
            continue
        left, right = divmod(pair, base)
        yield tokens[left], tokens[right]
        tokens.append(tokens[left] + tokens[right])
        names.append(_name_of(tokens[-1]))
        for new in text.merge(left, right, len(tokens) - 1):
            if text.pair_counts[new]:
                heappush(heap, entry(new))


def _name_of(token: bytes) -> str:
    """Return a string that sorts in reverse order: the bytes inverted, and an end above all bytes."""
    return "".join(chr(255 - byte) for byte in token) + "\u0100"


class _TokenSequence:
    """All words in one sequence of tokens, with a boundary on either side of each.

    `after` and `before` link a token to its neighbours. The places of a pair are recorded when the pair is created, and
    never erased: an entry is stale if the pair no longer occurs there. Merging s t in `best` (5 times) and `west` (2
    times) changes only the neighbourhood of its places:

        sequence    | b e s t | w e s t |    becomes    | b e st . | w e st . |     with | a boundary, . merged away
        links       from e to s to t to |    becomes    from e to st to |
        counts      e s: 7, s t: 7           becomes    e st: 7

    Args:
        counts: how often each word occurs.
        base: larger than every token's number; the pair (a, b) has the key a * base + b.

    Attributes:
        pair_counts: the count of each pair, by its key.
    """

    def __init__(self, counts: Mapping[bytes, int], base: int) -> None:
        self._base = base
        token, weight = array("i", [_BOUNDARY]), array("q", [0])
        for word, count in counts.items():
            if len(word) > 1 and count > 0:
                token.extend(word)
                token.append(_BOUNDARY)
                weight.extend(array("q", [count]) * (len(word) + 1))
        self._token, self._weight = token, weight
        self._before, self._after = (array("i", range(first, len(token) + first)) for first in (-1, 1))
        self.pair_counts: dict[int, int] = defaultdict(int)
        self._places: dict[int, array[int]] = defaultdict(lambda: array("i"))  # of left tokens, in ascending order
        for place in range(1, len(token) - 1):
            if token[place] >= 0 and token[place + 1] >= 0:
                self._record(token[place] * base + token[place + 1], place)

    def _record(self, pair: int, place: int) -> None:
        self.pair_counts[pair] += self._weight[place]
        self._places[pair].append(place)

    def merge(self, left: int, right: int, new: int) -> list[int]:
        """Merge a pair at all its places, one after the other; return the new pairs.

        In `a a a`, the second place of the pair a a is skipped, since its left token is merged already.
        """
        token, weight, before, after = self._token, self._weight, self._before, self._after
        counts, base = self.pair_counts, self._base
        created: dict[int, None] = {}  # in order
        for place in self._places.pop(left * base + right):
            merged = after[place]
            if token[place] != left or token[merged] != right:
                continue
            following, preceding = after[merged], before[place]
            token[place], token[merged] = new, _MERGED
            after[place], before[following] = following, place
            for neighbour, old, fresh, at in (
                (token[preceding], token[preceding] * base + left, token[preceding] * base + new, preceding),
                (token[following], right * base + token[following], new * base + token[following], place),
            ):
                if neighbour >= 0:
                    counts[old] -= weight[place]
                    self._record(fresh, at)
                    created[fresh] = None
        del counts[left * base + right]
        return list(created)


def merging_probes(key: object) -> list[Case]:
    """Return probes for every form: overlapping places, ties, no pair left."""
    words = [b"low", b"lower", b"newest", b"widest", b"aaaaaaa", b"abababab", b"bab", "é字é".encode(), b"x", b"cbac"]
    counts = {word: 1 + 5 * n % 7 for n, word in enumerate(words)}
    counts |= {b"qu%cqu" % n: 1 + n % 3 for n in range(96)}
    return [Case((counts, 16), finish=list), Case(({b"ab": 0, b"low": 5, b"lower": 2}, 9), finish=list)]


def merging_example(key: object) -> Case:
    """Return arguments to measure with; the form in C is for texts of more distinct words."""
    distinct, merges = (8000, 20) if key == "c" else (2000, 50)
    return Case((Counter(example_words(distinct, 10 * distinct)), merges), finish=list)


def _supports(counts: Mapping[bytes, int], max_merges: int) -> str | None:
    """Counts have 64 bits here."""
    return "python" if max(counts.values(), default=0) < 1 << 63 else None


MERGE_PAIRS = Substitute(
    merge_pairs, _supports, merging_probes, tolerance=lambda key: 0, examples=merging_example,
    keys=lambda: ["python"],
)
