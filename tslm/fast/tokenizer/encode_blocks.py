"""Encodes blocks of text with hash tables: a substitute for `tokenizer.bpe.encode_block`.

Each distinct pre-token is merged once. After that its ids are looked up. The tables are bounded.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from weakref import WeakKeyDictionary

import numpy as np

from tslm.fast.cpu.words import CompiledWordTable, find_bounds, gather, is_available
from tslm.fast.door import Case, Substitute
from tslm.fast.tokenizer.encode_words import LARGE_VOCABULARY, Ids, WordEncoder, word_encoder
from tslm.fast.tokenizer.probes import PROBE_TEXTS, Vocabulary, example_vocabulary, example_words, probe_vocabulary
from tslm.fast.tokenizer.scanner import Positions, pretoken_bounds, special_pattern
from tslm.fast.tokenizer.segments import divide_specials, segment_bounds
from tslm.fast.tokenizer.word_table import WordTable, bounds_of, keep_freed_memory

_COUNT_BITS = 32
_COUNT_MASK = (1 << _COUNT_BITS) - 1
_WORTH_LOADING = 1 << 12  # bytes; merging the words of smaller blocks takes less time than loading the library
_LARGE_BLOCK = 1 << 15  # bytes; the blocks of streams, which must need little memory, are smaller
_STREAM_CAPACITY, _FILE_CAPACITY = 6 << 10, 1 << 18  # words; those of streams take 0.4 MB


class BlockEncoder:
    """Encodes blocks of text, and keeps the ids of the segments and pre-tokens that it has seen.

    In prose a block is looked up by segments (see `segments`). Only new segments are cut into pre-tokens, and only new
    pre-tokens are merged.

    Args:
        words: encodes pre-tokens.
        special_ids: the ids of strings that are one pre-token each.
        capacity: about how many distinct segments and how many pre-tokens to keep, with eight ids and 32 bytes each on
            average. When it is reached, all are removed.
        frugal: whether to avoid segments, of which a text has several times as many as pre-tokens, to save memory.
        compiled: whether to look words up in C.
    """

    def __init__(
        self, words: WordEncoder, special_ids: Mapping[bytes, int], capacity: int, frugal: bool = False,
        compiled: bool = False,
    ) -> None:
        self._words, self._special_ids = words, special_ids
        self._specials = special_pattern(special_ids)
        self._within_segments, self._across_segments = divide_specials(special_ids)
        self._pretokens = _Cache(words.batched.encode, capacity, compiled, special_ids)
        self._segments = None if frugal else _Cache(self._encode_segments, capacity, compiled, {})
        self._find_bounds = find_bounds if compiled else None
        self._lock = threading.Lock()  # an executor may run its tasks in threads

    def encode(self, block: bytes) -> Ids:
        """Return the ids of the tokens of a block.

        Raises:
            KeyError: the vocabulary lacks a token of the result.
        """
        if not block:
            return np.empty(0, np.uint32)
        with self._lock:
            try:
                if self._segments is not None:
                    bounds = segment_bounds(block, self._across_segments, self._find_bounds)
                    if bounds is not None:
                        return self._segments.lookup(block, bounds)[0]
                return self._pretokens.lookup(block, pretoken_bounds(block, self._specials))[0]
            except KeyError:
                bounds = pretoken_bounds(block, self._specials)
                words = [block[start:stop] for start, stop in pairwise(bounds.tolist())]
                # Raises an error for the first missing token of the block; a special token needs none of its bytes.
                self._words.encode([word for word in words if word not in self._special_ids])
                raise

    def _encode_segments(self, text: bytes, bounds: Positions) -> tuple[Ids, Positions]:
        """Return the joined ids of segments, and how many each has."""
        pretokens = pretoken_bounds(text, self._within_segments)
        ids, counts = self._pretokens.lookup(text, pretokens)
        return ids, np.add.reduceat(counts, np.searchsorted(pretokens, bounds[:-1]))


class _Cache:
    """The ids of words of one kind (segments or pre-tokens), by their numbers in a word table.

    Args:
        encode: returns the joined ids of words that fill a text without gaps, and how many each has.
        capacity: about how many words to keep.
        compiled: whether to look words up in C.
        known: words that have one id each.
    """

    def __init__(
        self, encode: Callable[[bytes, Positions], tuple[Ids, Positions]], capacity: int, compiled: bool,
        known: Mapping[bytes, int],
    ) -> None:
        self._encode, self._capacity, self._known = encode, capacity + len(known), known
        # The value of a word is the position of its ids, times 2 ** _COUNT_BITS, plus their number.
        self._table = CompiledWordTable(min(capacity.bit_length(), 16)) if compiled else WordTable()
        self._ids: Ids = np.empty(self._capacity, np.uint32)  # the joined ids of all words
        self._used = self._bytes = 0  # of the ids, and of the words
        self._is_complete = False  # also after an error or Ctrl-C: the table holds words whose ids are not known

    def lookup(self, text: bytes, bounds: Positions) -> tuple[Ids, Positions]:
        """Return the joined ids of the words of a text, and how many each has.

        Raises:
            KeyError: the vocabulary lacks a token of the result.
        """
        is_full = len(self._table) >= self._capacity or max(self._used, self._bytes // 4) >= 8 * self._capacity
        is_complete, self._is_complete = self._is_complete, False
        if is_full or not is_complete:
            self._table.clear()
            self._used = self._bytes = 0
            self._table.number(b"".join(self._known), bounds_of([*map(len, self._known)]))
            self._store(0, np.array([*self._known.values()], np.uint32), np.ones(len(self._known), np.intp))
        known = len(self._table)
        numbers = self._table.number(text, bounds)
        if len(self._table) > known:
            words, sizes = self._table.words(known)
            self._store(known, *self._encode(words, bounds_of(sizes)))
            self._bytes += len(words)
        self._is_complete = True
        values = self._table.values.take(numbers)
        counts = (values & _COUNT_MASK).view(np.intp)
        if isinstance(self._table, CompiledWordTable):
            return gather(values, self._ids, int(counts.sum())), counts
        ends = np.cumsum(counts)
        places = np.arange(ends[-1])
        places += np.repeat((values >> _COUNT_BITS).view(np.intp) - (ends - counts), counts)
        return self._ids.take(places), counts

    def _store(self, first: int, ids: Ids, counts: Positions) -> None:
        """Store the ids of all words from number `first` on."""
        self._table.values[first:] = (self._used + np.cumsum(counts) - counts) << _COUNT_BITS | counts
        end = self._used + len(ids)
        if end > len(self._ids):
            self._ids.resize(2 * end, refcheck=False)
        self._ids[self._used : end] = ids
        self._used = end


_encoders: WeakKeyDictionary[Vocabulary, dict[str, BlockEncoder]] = WeakKeyDictionary()


def encode_block(block: bytes, vocabulary: Vocabulary, kind: str | None = None) -> Ids:
    """Return the ids of the tokens of a text.

    Args:
        block: the text.
        vocabulary: the tokens, merges and special tokens.
        kind: what `_supports` returns; found unless given.

    Raises:
        KeyError: the vocabulary lacks a token of the result.
    """
    encoders = _encoders.get(vocabulary)
    if encoders is None:
        encoders = _encoders[vocabulary] = {}
    kind = kind or _supports(block, vocabulary) or "python"
    if kind not in encoders:
        is_stream = kind == "stream"
        if not is_stream:
            keep_freed_memory()
        encoders[kind] = BlockEncoder(
            word_encoder(vocabulary), vocabulary.special_ids, _STREAM_CAPACITY if is_stream else _FILE_CAPACITY,
            frugal=is_stream, compiled=kind != "python" and is_available(),
        )
    return encoders[kind].encode(block)


def _supports(block: bytes, vocabulary: Vocabulary) -> str | None:
    """Return "stream" and "file" for the form in C, "python" for large blocks without a compiler."""
    is_large = len(block) >= _LARGE_BLOCK
    if vocabulary.pattern != "gpt2" or sys.byteorder != "little":  # the pattern of `scanner`
        return None
    if (len(block) >= _WORTH_LOADING or len(vocabulary.ranks) >= LARGE_VOCABULARY) and is_available():
        return "file" if is_large else "stream"
    return "python" if is_large else None


def _probes(key: str) -> list[Case]:
    texts = [b"", *PROBE_TEXTS]
    if key != "stream":
        filling = PROBE_TEXTS[1] * (_LARGE_BLOCK // len(PROBE_TEXTS[1]) + 1)
        texts = [b" " + filling, PROBE_TEXTS[0] + filling]
    vocabulary = probe_vocabulary()
    return [Case((text, vocabulary), finish=lambda ids: ids.tolist()) for text in texts]


def _example(key: str) -> Case:
    return Case((b"".join(example_words(2000, 2000 if key == "stream" else 100_000)), example_vocabulary()))


ENCODE_BLOCK = Substitute(
    encode_block, _supports, _probes, tolerance=lambda key: 0, examples=_example,
    probed=lambda key: partial(encode_block, kind=key),
    keys=lambda: ["stream", "file"] if is_available() else ["python"],
)
