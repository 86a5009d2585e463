"""Encodes blocks of text with hash tables, in C or in numpy: a substitute for `tokenizer.bpe.encode_block`.

Each distinct pre-token is merged once. After that its ids are looked up. The tables are bounded.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from weakref import WeakKeyDictionary

import numpy as np

from tslm.fast.cpu.words import WORTH_LOADING, CompiledWordTable, find_bounds, gather, is_available
from tslm.fast.door import Case, Substitute
from tslm.fast.tokenizer.encode_words import Ids, WordEncoder, word_encoder
from tslm.fast.tokenizer.hash_tables import keep_freed_memory
from tslm.fast.tokenizer.probes import PROBE_TEXTS, Vocabulary, example_vocabulary, example_words, probe_vocabulary
from tslm.fast.tokenizer.scanner import Positions, pretoken_bounds, special_pattern
from tslm.fast.tokenizer.segments import divide_specials, segment_bounds
from tslm.fast.tokenizer.word_table import WordTable

_COUNT_BITS = 32
_COUNT_MASK = (1 << _COUNT_BITS) - 1
_LARGE_BLOCK = 1 << 15  # bytes; the blocks of streams, which must need little memory, are smaller
_MANY_FRESH = 1 << 12  # words; from here on a pass over the block is faster than a loop
_STREAM_CAPACITY, _FILE_CAPACITY = 1 << 14, 1 << 18


class BlockEncoder:
    """Encodes blocks of text, and keeps the ids of the segments and pre-tokens that it has seen.

    In prose a block is looked up by segments (see `segments`). Only new segments are cut into pre-tokens, and only new
    pre-tokens are merged.

    Args:
        words: encodes pre-tokens.
        special_tokens: strings that are one pre-token each.
        capacity: about how many distinct segments and how many pre-tokens to keep, with eight ids and 32 bytes each on
            average. When it is reached, all are removed.
        frugal: whether to avoid what takes more memory: segments, of which a text has several times as many as
            pre-tokens, and merging in batches.
        compiled: whether to look words up and to merge them in C.
    """

    def __init__(
        self, words: WordEncoder, special_tokens: list[bytes], capacity: int, frugal: bool = False,
        compiled: bool = False,
    ) -> None:
        self._words = words
        self._specials, self._special_tokens = special_pattern(special_tokens), {*special_tokens}
        self._within_segments, self._across_segments = divide_specials(special_tokens)
        encode_pretokens = partial(words.encode_all, frugal=frugal)
        self._pretokens = _Cache(encode_pretokens, capacity, frugal, compiled)
        self._segments = None if frugal else _Cache(self._encode_segments, capacity, frugal, compiled)
        self._find_bounds = find_bounds if compiled else None
        if compiled:
            words.load_library()
        self._lock = threading.Lock()  # an executor may run its tasks in threads

    def encode(self, block: bytes) -> Ids:
        """Return the ids of the tokens of a block.

        Raises:
            KeyError: the vocabulary lacks a token of the result.
        """
        if not block:
            return np.empty(0, np.uint32)
        bounds = None
        if self._segments is not None:
            bounds = segment_bounds(block, self._across_segments, self._find_bounds)
        with self._lock:
            try:
                if self._segments is not None and bounds is not None:
                    return self._segments.lookup(block, bounds)[0]
                return self._pretokens.lookup(block, pretoken_bounds(block, self._specials))[0]
            except KeyError:
                bounds = pretoken_bounds(block, self._specials)
                words = [block[start:stop] for start, stop in pairwise(bounds.tolist())]
                # Raises an error for the first missing token of the block; a special token needs none of its bytes.
                self._words.encode([word for word in words if word not in self._special_tokens])
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
        reserve: whether to allocate memory for all of them at once.
        compiled: whether to look words up in C.
    """

    def __init__(
        self,
        encode: Callable[[bytes, Positions], tuple[Ids, Positions]],
        capacity: int,
        reserve: bool,
        compiled: bool,
    ) -> None:
        self._encode = encode
        self._capacity = capacity
        # The value of a word is the position of its ids, times 2 ** _COUNT_BITS, plus their number.
        bits = min(capacity.bit_length(), 16)
        self._table = CompiledWordTable(bits) if compiled else WordTable(bits, bits if reserve else bits - 2)
        self._ids: Ids = np.empty(8 * capacity, np.uint32)  # the joined ids of all words
        self._clear()

    def lookup(self, text: bytes, bounds: Positions) -> tuple[Ids, Positions]:
        """Return the joined ids of the words of a text, and how many each has.

        Raises:
            KeyError: the vocabulary lacks a token of the result.
        """
        if self._words >= self._capacity or max(self._used, self._bytes // 4) >= 8 * self._capacity:
            self._clear()
        try:
            numbers, fresh = self._table.number(text, bounds)
            if len(fresh):
                self._insert(text, bounds, numbers, fresh)
        except BaseException:  # Ctrl-C, too: the table holds words now whose ids are not known
            self._clear()
            raise
        values = self._table.values.take(numbers)
        counts = (values & _COUNT_MASK).view(np.intp)
        if isinstance(self._table, CompiledWordTable):
            return gather(values, self._ids, int(counts.sum())), counts
        ends = np.cumsum(counts)
        places = np.arange(ends[-1])
        places += np.repeat((values >> _COUNT_BITS).view(np.intp) - (ends - counts), counts)
        return self._ids.take(places), counts

    def _insert(self, text: bytes, bounds: Positions, numbers: Positions, fresh: Positions) -> None:
        """Encode the words that are new, and store their ids."""
        fresh.sort()
        starts, stops = bounds[fresh], bounds[fresh + 1]
        if len(fresh) < _MANY_FRESH:
            words = b"".join([text[start:stop] for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)])
        else:
            is_fresh = np.zeros(len(bounds) - 1, np.bool_)
            is_fresh[fresh] = True
            words = np.frombuffer(text, np.uint8)[np.repeat(is_fresh, np.diff(bounds))].tobytes()
        ids, counts = self._encode(words, np.append(0, np.cumsum(stops - starts)))
        self._table.values[numbers[fresh]] = (self._used + np.cumsum(counts) - counts) << _COUNT_BITS | counts
        if self._used + len(ids) > len(self._ids):
            self._ids = np.concatenate([self._ids, np.empty(self._used + len(ids), np.uint32)])
        self._ids[self._used : self._used + len(ids)] = ids
        self._used += len(ids)
        self._words += len(fresh)
        self._bytes += int((stops - starts).sum())

    def _clear(self) -> None:
        self._table.clear()
        self._words = self._used = self._bytes = 0  # the number of words, of their ids, of their bytes


_encoders: WeakKeyDictionary[Vocabulary, dict[str, BlockEncoder]] = WeakKeyDictionary()


def encode_block(block: bytes, vocabulary: Vocabulary, kind: str | None = None) -> Ids:
    """Return the ids of the tokens of a text.

    Args:
        block: the text.
        vocabulary: the tokens, merges and special tokens.
        kind: "small", "large" or "compiled"; unless given, by the size of the block.

    Raises:
        KeyError: the vocabulary lacks a token of the result.
    """
    encoders = _encoders.get(vocabulary)
    if encoders is None:
        encoders = _encoders[vocabulary] = {}
    kind = kind or _kind_of(block)
    if kind not in encoders:
        if kind != "small":
            keep_freed_memory()
        encoders[kind] = BlockEncoder(
            word_encoder(vocabulary), [*vocabulary.special_ids],
            _STREAM_CAPACITY if kind == "small" else _FILE_CAPACITY, frugal=kind == "small",
            compiled=kind == "compiled" and is_available(),
        )
    return encoders[kind].encode(block)


def _kind_of(block: bytes) -> str:
    if len(block) < _LARGE_BLOCK:
        return "small"
    return "compiled" if len(block) >= WORTH_LOADING else "large"


def _supports(block: bytes, vocabulary: Vocabulary) -> str | None:
    # The pattern of `scanner`
    return _kind_of(block) if sys.byteorder == "little" and vocabulary.pattern == "gpt2" else None


def _probes(key: str) -> list[Case]:
    texts = [b"", *PROBE_TEXTS]
    if key != "small":
        many_words = b" ".join(b"t%dhe" % n for n in range(300))  # so many new words are merged as a batch
        filling = PROBE_TEXTS[1] * (_LARGE_BLOCK // len(PROBE_TEXTS[1]) + 1)
        texts = [b" " + many_words + filling, PROBE_TEXTS[0] + filling]
    vocabulary = probe_vocabulary()
    return [Case((text, vocabulary), finish=lambda ids: ids.tolist()) for text in texts]


def _example(key: str) -> Case:
    counts = {"small": 2000, "large": 15_000, "compiled": 100_000}
    return Case((b"".join(example_words(2000, counts[key])), example_vocabulary()))


ENCODE_BLOCK = Substitute(
    encode_block, _supports, _probes, tolerance=lambda key: 0, examples=_example,
    probed=lambda key: partial(encode_block, kind=key), keys=lambda: ["small", "large", "compiled"],
)
