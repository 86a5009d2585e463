"""Applies the merges of BPE to words, each in time n log n: a substitute for `tokenizer.bpe.encode_pretokens`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cached_property
from heapq import heapify, heappop, heappush
from itertools import chain, pairwise
from operator import add
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from tslm.fast.cpu.merge import CompiledMerge, Indices
from tslm.fast.door import Case, DisagreementWarning, Substitute, UnavailableError
from tslm.fast.tokenizer.batched_merge import LONGEST, BatchedMerge, PairRanks, Symbols
from tslm.fast.tokenizer.probes import Vocabulary, example_vocabulary, example_words, probe_vocabulary
from tslm.fast.tokenizer.scanner import Positions

Ids = npt.NDArray[np.uint32]

_SHORT = 32  # bytes; up to here, searching all pairs for the lowest rank is faster than a heap
_VERY_LONG = 1 << 12  # bytes; from here on, one merge is often possible at many places
_MANY = 256  # words; from here on, a batch is faster than a loop
_WORTH_LOADING = 1 << 17  # bytes; from here on, merging them takes longer than loading the library in C
_NEVER = 1 << 62  # the rank of a pair that is not merged
_GONE = b""  # marks a token that was merged into its left neighbour


class Part(NamedTuple):
    """Some of the words: their indices, their joined symbols, and how many symbols each has."""

    members: Positions
    symbols: Symbols | Indices | Ids
    counts: Positions


class WordEncoder:
    """Encodes words with a vocabulary.

    Args:
        vocabulary: the tokens, merges and special tokens.
        many: the number of words that are merged as a batch.
    """

    def __init__(self, vocabulary: Vocabulary, many: int = _MANY) -> None:
        self._ids, self._ranks, self._many = vocabulary.ids, vocabulary.ranks, many
        self._special_ids = vocabulary.special_ids
        self._special_sizes = [*{len(token) for token in self._special_ids}]
        lefts, rights = [pair[0] for pair in self._ranks], [pair[1] for pair in self._ranks]
        merged, ranks = [*map(add, lefts, rights)], np.fromiter(self._ranks.values(), np.int64, len(self._ranks))
        self._merged = dict(zip(self._ranks.values(), merged, strict=True))  # the token of each rank
        # A number for each token of the merges, the 256 bytes first. A symbol that is always merged may have no id.
        self._tokens = [*dict.fromkeys(chain((bytes([byte]) for byte in range(256)), lefts, rights, merged))]
        self._symbols = {token: symbol for symbol, token in enumerate(self._tokens)}
        self._symbol_ids = np.array([self._ids.get(token, -1) for token in self._tokens], np.int64)
        self._pair_ranks = PairRanks(self._numbered(lefts), self._numbered(rights), ranks, len(self._tokens) + 1)
        self._merged_symbols = np.zeros(self._pair_ranks.never, np.int64)
        self._merged_symbols[ranks] = self._numbered(merged)
        self._batched_merge = BatchedMerge(self._pair_ranks, self._merged_symbols, boundary=len(self._tokens))
        # The words that are one token. An entry of the vocabulary may not be one: if the merges are (a b), (b c) and
        # (a bc), then abc becomes ab c. So all entries are merged.
        entries = [token for token in self._ids if token]
        sizes = np.fromiter(map(len, entries), np.intp, len(entries))
        symbols, counts = self._merge_all(b"".join(entries), np.cumsum(sizes) - sizes, sizes)
        single = np.flatnonzero(counts == 1)
        ids = self._symbol_ids[symbols[np.cumsum(counts)[single] - 1]]
        self._single = {entries[n]: id_ for n, id_ in zip(single.tolist(), ids.tolist(), strict=True)}
        self._single_or_special = {**self._single, **vocabulary.special_ids}

    @cached_property
    def _compiled(self) -> CompiledMerge | None:
        """The form in C; None on a machine that cannot have it, or where it merges some of the tokens differently."""
        try:
            compiled = CompiledMerge(self._pair_ranks, self._merged_symbols)
        except UnavailableError:
            return None
        words = self._tokens[:: -(len(self._tokens) // 64 + 1)]
        words.append(b"".join(words) * 2)
        sizes = np.fromiter(map(len, words), np.intp, len(words))
        symbols, _ = compiled.encode(np.frombuffer(b"".join(words), np.uint8), np.cumsum(sizes) - sizes, sizes)
        if symbols.tolist() != self._numbered([*chain.from_iterable(map(self._merge, words))]).tolist():
            warnings.warn("words are merged without the library in C, because it merges some differently",
                          DisagreementWarning, stacklevel=2)
            return None
        return compiled

    def load_library(self) -> None:
        """Load the library in C now, where this machine can have it, and not only for many words at once."""
        _ = self._compiled

    def _numbered(self, tokens: Sequence[bytes]) -> Symbols:
        return np.fromiter(map(self._symbols.__getitem__, tokens), np.int64, len(tokens))

    def encode(self, words: Sequence[bytes]) -> list[tuple[int, ...]]:
        """Return the ids of the tokens of each word.

        Raises:
            KeyError: the vocabulary lacks a token of the result.
        """
        single, ids = self._single.get, self._ids
        return [
            (id_,) if (id_ := single(word)) is not None else tuple([ids[token] for token in self._merge(word)])
            for word in words
        ]

    def encode_all(self, text: bytes, bounds: Positions, frugal: bool = False) -> tuple[Ids, Positions]:
        """Return the joined ids of all words of a text, and how many each word has.

        Args:
            text: words and special tokens without gaps.
            bounds: the start of each word, and the end of the last one.
            frugal: whether to avoid batches, which take a megabyte.

        Raises:
            KeyError: the vocabulary lacks a token of the result.
        """
        starts, sizes = bounds[:-1], np.diff(bounds)
        # In a batch, merging takes less time than a look at each word.
        is_batch = not frugal and len(sizes) >= self._many
        looked_up = np.flatnonzero(np.isin(sizes, self._special_sizes)) if is_batch else np.arange(len(sizes))
        known = self._special_ids if is_batch else self._single_or_special
        firsts = np.full(len(sizes), -1, np.int64)
        firsts[looked_up] = [
            known.get(text[start : start + size], -1)
            for start, size in zip(starts[looked_up].tolist(), sizes[looked_up].tolist(), strict=True)
        ]
        single, others = np.flatnonzero(firsts >= 0), np.flatnonzero(firsts < 0)
        symbols, counts = self._merge_all(text, starts[others], sizes[others], frugal)
        ids = self._symbol_ids.take(symbols)
        if ids.min(initial=0) < 0:
            raise KeyError(self._tokens[symbols[ids.argmin()]])
        parts = [Part(single, firsts[single], np.ones(len(single), np.intp)), Part(others, ids, counts)]
        ids, counts = in_order(parts, len(sizes))
        return ids.astype(np.uint32), counts

    def _merge_all(
        self, text: bytes, starts: Positions, sizes: Positions, frugal: bool = False
    ) -> tuple[Symbols | Indices, Positions]:
        """Return the joined symbols of the words of a text, and how many each has."""
        if ("_compiled" in vars(self) or sizes.sum() >= _WORTH_LOADING) and self._compiled is not None:
            return self._compiled.encode(np.frombuffer(text, np.uint8), starts, sizes)
        others, parts = np.arange(len(sizes)), []
        is_short = sizes <= LONGEST
        if not frugal and np.count_nonzero(is_short) >= self._many:
            batch, others = np.argsort(np.where(is_short, sizes, 0), kind="stable"), np.flatnonzero(~is_short)
            batch = batch[len(others) :]
            data = np.frombuffer(text, np.uint8)
            parts.append(Part(batch, *self._batched_merge.encode(data, starts[batch], sizes[batch])))
        found = [self._merge(text[start : start + size])
                 for start, size in zip(starts[others].tolist(), sizes[others].tolist(), strict=True)]
        symbols = self._numbered([*chain.from_iterable(found)])
        parts.append(Part(others, symbols, np.array([*map(len, found)], np.intp)))
        return in_order(parts, len(sizes))

    def _merge(self, word: bytes) -> list[bytes]:
        """Merge, again and again, the leftmost pair of the lowest rank."""
        if len(word) <= _SHORT:
            return self._merge_short([bytes([byte]) for byte in word])
        if len(word) < _VERY_LONG:
            return self._merge_long([bytes([byte]) for byte in word])
        symbols = merge_rounds(np.frombuffer(word, np.uint8).astype(np.int64), self._pair_ranks, self._merged_symbols)
        return self._merge_long([self._tokens[symbol] for symbol in symbols.tolist()])

    def _merge_short(self, tokens: list[bytes]) -> list[bytes]:
        """Search all pairs for each merge: quadratic, and faster for an ordinary word."""
        rank_of, merged = self._ranks.get, self._merged
        ranks = [rank_of(pair, _NEVER) for pair in pairwise(tokens)]
        while ranks:
            rank = min(ranks)
            if rank == _NEVER:
                break
            at = ranks.index(rank)
            tokens[at] = token = merged[rank]
            del tokens[at + 1], ranks[at]
            if at:
                ranks[at - 1] = rank_of((tokens[at - 1], token), _NEVER)
            if at < len(ranks):
                ranks[at] = rank_of((token, tokens[at + 1]), _NEVER)
        return tokens

    def _merge_long(self, tokens: list[bytes]) -> list[bytes]:
        """Keep the pairs in a heap and the tokens in a linked list, so that n tokens take O(n log n)."""
        size = len(tokens)
        rank_of, merged = self._ranks.get, self._merged
        # An entry is rank * size + position: smaller for the lower rank, then for the position further left.
        heap = [
            rank * size + position
            for position, pair in enumerate(pairwise(tokens))
            if (rank := rank_of(pair)) is not None
        ]
        heapify(heap)
        after = list(range(1, size + 1))
        before = list(range(-1, size - 1))
        while heap:
            rank, position = divmod(heappop(heap), size)
            right = after[position]
            if right == size or rank_of((tokens[position], tokens[right])) != rank:
                continue  # one of the two has been merged since
            tokens[position] = merged[rank]
            tokens[right] = _GONE
            after[position] = following = after[right]
            if following < size:
                before[following] = position
                fresh = rank_of((tokens[position], tokens[following]))
                if fresh is not None:
                    heappush(heap, fresh * size + position)
            preceding = before[position]
            if preceding >= 0:
                fresh = rank_of((tokens[preceding], tokens[position]))
                if fresh is not None:
                    heappush(heap, fresh * size + preceding)
        return [token for token in tokens if token]


def in_order(parts: Sequence[Part], count: int) -> tuple[npt.NDArray[Any], Positions]:
    """Join the words of all parts, `count` in total, in the order of their indices."""
    counts = np.empty(count, np.intp)
    for part in parts:
        counts[part.members] = part.counts
    ends = np.cumsum(counts)
    symbols = np.empty(ends[-1] if count else 0, parts[0].symbols.dtype)
    for members, own, sizes in parts:
        symbols[np.repeat(ends[members] - np.cumsum(sizes), sizes) + np.arange(len(own))] = own
    return symbols, counts


def merge_rounds(
    symbols: Symbols, ranks: PairRanks, merged: Symbols, share: int = 64, poor_rounds: int = 8
) -> Symbols:
    """Merge the pair of the lowest rank at all its places in one round, while pairs have many places.

    Merging the places one by one, from left to right, gives the same, unless a pair of a lower rank appears in between.
    Such a pair either still exists after the round, or is the new symbol with the left part of the next place. A round
    that such a pair could follow is not made.

    Measured: a megabyte of one letter takes 0.03 s; with the heap alone, 1.0 s.

    Args:
        symbols: the symbols of one word.
        ranks: the ranks of pairs.
        merged: the symbol that the pair of each rank becomes.
        share: a round costs as much as merging 1 / share of the symbols one by one. A round that merges fewer is poor.
        poor_rounds: the largest number of poor rounds.
    """
    pair_ranks = ranks.find(symbols[:-1], symbols[1:])
    while len(pair_ranks):
        rank = pair_ranks.min()
        at = np.flatnonzero(pair_ranks == rank)
        poor_rounds -= len(at) * share < len(symbols)
        if rank == ranks.never or poor_rounds < 0:
            break
        left, right, new = symbols[at[0]], symbols[at[0] + 1], merged[rank]
        if left == right:  # in a a a a the places overlap: every second place of a run is merged, from the first on
            first = np.flatnonzero(np.diff(at, prepend=-2) != 1)
            in_run = np.arange(len(at)) - np.repeat(first, np.diff(first, append=len(at)))
            at = at[in_run % 2 == 0]
        shorter = symbols.copy()
        shorter[at] = new
        shorter = np.delete(shorter, at + 1)
        fresh = ranks.find(shorter[:-1], shorter[1:])
        if min(fresh.min(initial=ranks.never), ranks.find(np.array([new]), np.array([left]))[0]) < rank:
            break
        symbols, pair_ranks = shorter, fresh
    return symbols


_encoders: WeakKeyDictionary[Vocabulary, WordEncoder] = WeakKeyDictionary()


def word_encoder(vocabulary: Vocabulary) -> WordEncoder:
    """Return the encoder for a vocabulary, which is built once."""
    encoder = _encoders.get(vocabulary)
    if encoder is None:
        encoder = _encoders[vocabulary] = WordEncoder(vocabulary)
    return encoder


def encode_pretokens(pretokens: Sequence[bytes], vocabulary: Vocabulary) -> list[tuple[int, ...]]:
    """Return the ids of the tokens of each pre-token.

    Raises:
        KeyError: the vocabulary lacks a token of the result.
    """
    return word_encoder(vocabulary).encode(pretokens)


def _probes(key: object) -> list[Case]:
    words = [b" the", b"that", b"ate", b"then", b"123", b"aaaaaaaaab", "é".encode(), b"\n\n\n", b" ath", b"<|e|",
             b"<|e|>", b" thea" * 9]
    return [Case((words, probe_vocabulary()))]


def _example(key: object) -> Case:
    return Case((example_words(2000, 1000), example_vocabulary()))


ENCODE_PRETOKENS = Substitute(
    encode_pretokens, lambda pretokens, vocabulary: "python", _probes, tolerance=lambda key: 0, examples=_example,
    keys=lambda: ["python"],
)
