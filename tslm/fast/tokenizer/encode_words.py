"""Applies the merges of BPE to words, each in time n log n: a substitute for `tokenizer.bpe.encode_pretokens`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cached_property
from heapq import heapify, heappop, heappush
from itertools import chain, compress, pairwise
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from tslm.fast.cpu.merge import CompiledMerge
from tslm.fast.cpu.words import is_available
from tslm.fast.door import Case, DisagreementWarning, Substitute
from tslm.fast.tokenizer.batched_merge import BatchedMerge
from tslm.fast.tokenizer.probes import Vocabulary, example_vocabulary, example_words, probe_vocabulary
from tslm.fast.tokenizer.word_table import bounds_of

Ids = npt.NDArray[np.uint32]

LARGE_VOCABULARY = 1000  # merges; from here on, merging its tokens takes longer than loading the library in C
_SHORT = 32  # bytes; up to here, searching all pairs for the lowest rank is faster than a heap
_LONG = 1 << 12  # bytes
_NEVER = 1 << 62  # the rank of a pair that is not merged
_GONE = b""  # marks a token that was merged into its left neighbour


class WordEncoder:
    """Encodes words with a vocabulary."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._ids, self._ranks = vocabulary.ids, vocabulary.ranks  # the vocabulary itself is a weak key
        self._merged = {rank: left + right for (left, right), rank in self._ranks.items()}
        # The words that are one token. An entry of the vocabulary may not be one: if the merges are (a b), (b c) and
        # (a bc), then abc becomes ab c. So all entries are merged.
        entries = [token for token in self._ids if 0 < len(token) <= _LONG]  # longer ones are merged when they are met
        if len(self._ranks) >= LARGE_VOCABULARY:
            _, counts = self.batched.merge(b"".join(entries), bounds_of([*map(len, entries)]))
            is_single = (counts == 1).tolist()
        else:
            is_single = [len(self._merge(token)) == 1 for token in entries]
        self._single = {token: self._ids[token] for token in compress(entries, is_single)}

    @cached_property
    def batched(self) -> BatchedMerge:
        """The form for many words: in C, or in numpy where C cannot be had or merges some of the tokens differently."""
        if not is_available():
            return BatchedMerge(self._ids, self._ranks, self._merge)
        compiled = CompiledMerge(self._ids, self._ranks, self._merge)
        words = [each for each in compiled.tokens[:: -(len(compiled.tokens) // 64 + 1)] if len(each) <= _LONG]
        words.append(b"".join(words) * 2)
        symbols, _ = compiled.merge(b"".join(words), bounds_of([*map(len, words)]))
        if [compiled.tokens[symbol] for symbol in symbols] == [*chain.from_iterable(map(self._merge, words))]:
            return compiled
        warnings.warn("words are merged without the library in C, because it merges some differently",
                      DisagreementWarning, stacklevel=2)
        return BatchedMerge(self._ids, self._ranks, self._merge)

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

    def _merge(self, word: bytes) -> list[bytes]:
        """Merge, again and again, the leftmost pair of the lowest rank."""
        tokens = [bytes([byte]) for byte in word]
        return self._merge_short(tokens) if len(word) <= _SHORT else self._merge_long(tokens)

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
