"""Trains byte-level BPE: from the counts of pre-tokens to a vocabulary and its merges.

Text files, or `{pre-token: count}`, come in; `vocab` (id -> bytes) and `merges` (pairs of bytes in the order in which
they were made) go out. The counts of pairs are kept up to date from merge to merge, never taken anew; `plain` shows
the method without that.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from heapq import heapify, heappop, heappush

import numpy as np
from tqdm import tqdm

from tslm.tokenizer.corpus import TextInput
from tslm.tokenizer.count import count_pretokens
from tslm.tokenizer.pretokenize import encode_specials

Vocab = dict[int, bytes]
Merges = list[tuple[bytes, bytes]]

_BORDER = -1  # in place of a token, on either side of each word
_SWALLOWED = -2  # in place of a token that was joined with the one on its left


def train_bpe(
    input_path: TextInput,
    vocab_size: int,
    special_tokens: Sequence[str],
    *,
    num_workers: int | None = None,
    executor: Executor | None = None,
    progress: bool = False,
) -> tuple[Vocab, Merges]:
    """Train a byte-level BPE tokenizer on one or more UTF-8 files.

    Starting from single bytes, the most frequent pair of neighbouring tokens inside a pre-token becomes a new token,
    again and again; among equally frequent pairs it is the lexicographically greater pair of byte strings. Ids: the
    special tokens in the order given, the 256 bytes, the merges.

    Args:
        input_path: a path, a `Span` (part of a file), or several, which are read as one text.
        vocab_size: the greatest number of entries, with the 256 bytes and the special tokens; training ends earlier
            when no pair is left.
        special_tokens: strings that are one token each and that nothing is merged across.
        num_workers: number of processes for counting; None takes one per core. It does not change the result.
        executor: any `concurrent.futures.Executor` to count on instead.
        progress: whether to show progress bars on stderr.

    Returns:
        The vocabulary (id to bytes) and the merges.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file is empty or not UTF-8, or `vocab_size` is too small.

    Source: Sennrich, Haddow and Birch 2016 (https://arxiv.org/abs/1508.07909), on bytes as in GPT-2 (Radford et al.
        2019).
    """
    check_vocab_size(vocab_size, encode_specials(special_tokens))
    counts = count_pretokens(
        input_path, special_tokens, num_workers=num_workers, executor=executor, progress=progress
    )
    return merge_pretokens(counts, vocab_size, special_tokens, progress=progress)


def merge_pretokens(
    counts: Mapping[bytes, int], vocab_size: int, special_tokens: Sequence[str], *, progress: bool = False
) -> tuple[Vocab, Merges]:
    """Make the merges of BPE from the counts of pre-tokens; the second half of `train_bpe`, which documents the rules.

    Example:
        >>> counts = {b"low": 5, b"lower": 2, b"widest": 3, b"newest": 6}
        >>> merge_pretokens(counts, 256 + 6, [])[1]
        [(b's', b't'), (b'e', b'st'), (b'o', b'w'), (b'l', b'ow'), (b'w', b'est'), (b'n', b'e')]

        `e s` and `s t` both occur 9 times at first; `s t` is the greater pair.

    Raises:
        ValueError: `vocab_size` is below 256 plus the number of special tokens.
    """
    specials = encode_specials(special_tokens)
    check_vocab_size(vocab_size, specials)
    tokens = [bytes([byte]) for byte in range(256)]  # tokens and merges have their own numbers here: bytes first
    merges: Merges = []
    wanted = vocab_size - len(specials) - 256
    with tqdm(total=wanted, desc="merging", unit=" pairs", disable=not progress) as bar:
        for left, right in _merged_pairs(counts, tokens, wanted):
            merges.append((tokens[left], tokens[right]))
            if progress:
                bar.set_postfix_str(f"{tokens[left]!r} + {tokens[right]!r}", refresh=False)
                bar.update()
    return dict(enumerate(specials + tokens)), merges


def check_vocab_size(vocab_size: int, specials: Sequence[bytes]) -> None:
    """Check that the 256 bytes and the special tokens fit, which is worth knowing before a long count.

    Raises:
        ValueError: they do not.
    """
    least = 256 + len(specials)
    if vocab_size < least:
        raise ValueError(
            f"vocab_size is {vocab_size}, but the 256 bytes and {len(specials)} special tokens alone take {least}; "
            f"give {least} or more"
        )


def _merged_pairs(counts: Mapping[bytes, int], tokens: list[bytes], wanted: int) -> Iterator[tuple[int, int]]:
    """Append up to `wanted` merged tokens to `tokens`, and yield the pair that each was made of.

    All words stand in one sequence, between borders, and `after` and `before` link a token to its neighbours. Where a
    pair occurs is written down when it comes to be, and not erased: an entry is stale when the pair no longer stands
    there. Merging s t in `best` (5 times) and `west` (2 times) changes nothing but what stands around its places:

        sequence    | b e s t | w e s t |    becomes    | b e st . | w e st . |     with | a border, . swallowed
        links       from e to s to t to |    becomes    from e to st to |
        counts      e s: 7, s t: 7           becomes    e st: 7
    """
    words = [(word, count) for word, count in counts.items() if len(word) > 1 and count > 0]
    token, weight = _lay_out(words)
    before = array("i", range(-1, len(token) - 1))
    after = array("i", range(1, len(token) + 1))
    base = 256 + wanted  # the pair (a, b) has the key a * base + b
    pair_counts, places = _count_pairs(token, weight, base)
    queue = _PairQueue(pair_counts, tokens, base)

    for new in range(256, base):
        key = queue.pop()
        if key is None:
            return
        left, right = divmod(key, base)
        tokens.append(tokens[left] + tokens[right])
        queue.name_token(new)
        born: dict[int, list[int]] = {}  # the places of pairs with the new token, in ascending order
        for place in places.pop(key):
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
                pair_counts[neighbour * base + left] -= count
                pair = neighbour * base + new
                if pair in born:
                    born[pair].append(preceding)
                    pair_counts[pair] += count
                else:
                    born[pair] = [preceding]
                    pair_counts[pair] = count
            neighbour = token[following]
            if neighbour >= 0:
                pair_counts[right * base + neighbour] -= count
                pair = new * base + neighbour
                if pair in born:
                    born[pair].append(place)
                    pair_counts[pair] += count
                else:
                    born[pair] = [place]
                    pair_counts[pair] = count
        del pair_counts[key]
        for pair, where in born.items():
            if pair_counts[pair]:
                places[pair] = array("i", where)
                queue.add(pair)
            else:  # (new, left) in `left right left right`: gone again when its second half was merged
                del pair_counts[pair]
        yield left, right


def _lay_out(words: list[tuple[bytes, int]]) -> tuple[array[int], array[int]]:
    """Return the sequence of tokens with a border around each word, and at each token the count of its word."""
    sizes = np.array([len(word) for word, _ in words], np.int64)
    text = np.frombuffer(b"\0".join(word for word, _ in words), np.uint8)
    token = np.full(len(text) + 2, _BORDER, np.intc)
    token[1:-1] = text
    token[np.cumsum(sizes + 1)[:-1] if len(words) else []] = _BORDER
    weight = np.zeros(len(token), np.int64)
    weight[1 : 1 + len(text)] = np.repeat(np.array([count for _, count in words], np.int64), sizes + 1)[:-1]
    return array("i", token.tobytes()), array("q", weight.tobytes())


def _count_pairs(token: array[int], weight: array[int], base: int) -> tuple[dict[int, int], dict[int, array[int]]]:
    """Return the count of each pair of neighbours, under its key, and the places where it occurs."""
    tokens = np.frombuffer(token, np.intc)
    places = np.flatnonzero((tokens[:-1] >= 0) & (tokens[1:] >= 0))
    keys = tokens[places].astype(np.int64) * base + tokens[places + 1]
    order = np.argsort(keys, kind="stable")
    keys, places = keys[order], places[order]
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    totals = np.add.reduceat(np.frombuffer(weight, np.int64)[places], first) if len(first) else first
    distinct = keys[first].tolist()
    runs = np.split(places, first[1:])
    return (
        dict(zip(distinct, totals.tolist(), strict=True)),
        {key: array("i", run.astype(np.intc).tobytes()) for key, run in zip(distinct, runs, strict=False)},
    )


class _PairQueue:
    """Gives the most frequent pair; among equally frequent ones that with the lexicographically greater byte strings.

    Pairs lie in buckets by count. A count that sinks is not followed: the pair is moved when its old bucket is on top.
    Byte strings are compared only there, where the bucket's pairs form a heap.

    Args:
        counts: the count of each pair; changed by the caller as it merges.
        tokens: the bytes of each token.
        base: pair (a, b) has the key a * base + b.
    """

    def __init__(self, counts: dict[int, int], tokens: Sequence[bytes], base: int) -> None:
        self._counts, self._tokens, self._base = counts, tokens, base
        self._names: list[str] = []
        for number in range(len(tokens)):
            self.name_token(number)
        self._buckets: dict[int, list[int]] = {}
        self._heights: list[int] = []  # a heap of the negated counts that have a bucket
        self._top = 0  # the count of the pairs in the heap
        self._heap: list[tuple[str, int]] = []
        for pair in counts:
            self.add(pair)

    def name_token(self, number: int) -> None:
        """Name a token so that it sorts before lesser ones: its bytes inverted, with an end above all bytes."""
        self._names.append("".join(chr(255 - byte) for byte in self._tokens[number]) + "\u0100")

    def add(self, pair: int) -> None:
        """Queue a pair under its present count."""
        count = self._counts[pair]
        if count == self._top:
            heappush(self._heap, self._entry(pair))
        elif count in self._buckets:
            self._buckets[count].append(pair)
        elif count > 0:
            self._buckets[count] = [pair]
            heappush(self._heights, -count)

    def pop(self) -> int | None:
        """Remove the best pair and return its key; None if no pair is left."""
        counts = self._counts
        while True:
            while self._heap:
                pair = heappop(self._heap)[1]
                count = counts.get(pair, 0)
                if count == self._top:
                    return pair
                if count:
                    self.add(pair)
            if not self._heights:
                return None
            self._top = -heappop(self._heights)
            bucket = self._buckets.pop(self._top)
            for pair in bucket:
                if 0 < counts.get(pair, 0) < self._top:
                    self.add(pair)
            self._heap = [self._entry(pair) for pair in bucket if counts.get(pair, 0) == self._top]
            heapify(self._heap)

    def _entry(self, pair: int) -> tuple[str, int]:
        left, right = divmod(pair, self._base)
        return self._names[left] + self._names[right], pair
