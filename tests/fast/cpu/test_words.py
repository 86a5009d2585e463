"""Segments and the word table in C, against numpy's forms and the definitions."""

import ctypes
import mmap
import random
from unittest.mock import Mock

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from tests.fast.tokenizer.test_segments import PIECES
from tslm.fast.cpu import build, words
from tslm.fast.cpu.words import WORTH_LOADING, CompiledWordTable, find_bounds
from tslm.fast.door import DisagreementWarning
from tslm.fast.tokenizer import count_blocks, encode_blocks, segments
from tslm.fast.tokenizer.probes import probe_vocabulary
from tslm.tokenizer import bpe, train


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=60).map("".join))
def test_segments_are_those_of_numpy(text):
    data = (" " + text).encode()
    assert find_bounds(data).tolist() == segments.find_bounds(data).tolist()


@pytest.mark.parametrize("size", [*range(1, 20), 63, 64, 65, 127, 128, 129])
def test_segments_of_alternating_bytes_fill_their_array(size):
    data = (b" a" * size)[:size]
    assert find_bounds(data).tolist() == segments.find_bounds(data).tolist()


def test_the_library_is_used_here():
    assert words.is_available()


def test_words_that_are_written_to_collide_do_not():
    """16 bytes (h, t) with h ^ t · constant the same for all: without the factor in between, all had one hash."""
    constant, rng = 0xD6E8FEB86659FD93, random.Random(0)
    tails = [rng.getrandbits(64) for _ in range(20_000)]
    text = b"".join(
        (tail * constant % (1 << 64) ^ 0x6161616161616161).to_bytes(8, "little") + tail.to_bytes(8, "little")
        for tail in tails)
    table = CompiledWordTable()
    table.number(text, np.arange(0, len(text) + 1, 16))
    slots = words._array(table._table.contents.slots, "<u4", 6 << (64 - table._table.contents.shift)).reshape(-1, 6)
    occupied = np.flatnonzero(slots[:, 4])
    assert len(occupied) == len(tails)
    runs = np.split(occupied, np.flatnonzero(np.diff(occupied) > 1) + 1)
    assert max(map(len, runs)) < 200  # a lookup is a walk within one run; all in one would be 20,000


def test_a_table_that_cannot_be_cleared_for_lack_of_memory_stays_usable(monkeypatch):
    table = CompiledWordTable(bits=2)
    table.count(b"ab", np.array([0, 1, 2]))
    with monkeypatch.context() as patch:
        patch.setattr(CompiledWordTable, "_new", Mock(side_effect=MemoryError))
        with pytest.raises(MemoryError):
            table.clear()
    assert table.words()[0] == b"ab"
    table.clear()
    assert table.words()[0] == b""


def test_nothing_is_read_beyond_the_end_of_a_text():
    """The byte after the text belongs to a page that may not be read: reading it would end the process."""
    pages = mmap.mmap(-1, 2 * mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    libc = ctypes.CDLL(None)
    assert libc.mprotect(ctypes.c_void_p(start + mmap.PAGESIZE), mmap.PAGESIZE, 0) == 0
    library = words.library()
    for size in range(1, 70):
        text = ctypes.c_void_p(start + mmap.PAGESIZE - size)
        ctypes.memset(text, ord("a"), size)
        table = library.new_words(ctypes.c_int64(2), ctypes.c_uint64(1))
        bounds = np.arange(size + 1)
        assert library.count_words(table, text, build.address(bounds), ctypes.c_int64(size), None) == 0
        whole = np.array([0, size])
        assert library.count_words(table, text, build.address(whole), ctypes.c_int64(1), None) == 0
        assert table.contents.count == (2 if size > 1 else 1)
        library.free_words(table)
        room = np.empty(size // 2 + 10, np.int64)
        assert library.find_segments(text, ctypes.c_int64(size), build.address(room)) == 1
    assert libc.mprotect(ctypes.c_void_p(start + mmap.PAGESIZE), mmap.PAGESIZE, 3) == 0


def large_text(seed):
    rng = random.Random(seed)
    pieces = [*PIECES, *(f" w{n}" for n in range(300)), *(f" counter-revolutionaries{n}" for n in range(9))]
    text = " start" + "".join(rng.choices(pieces, k=WORTH_LOADING // 3)) + "end"
    assert len(text.encode()) >= WORTH_LOADING
    return text.encode()


@pytest.mark.parametrize("is_prose", [True, False])
def test_large_blocks_are_counted_and_encoded_by_the_definition(is_prose):
    block = large_text(int(is_prose))
    if is_prose:  # so that it is cut into segments
        block = b" the cat sat" * 2000 + block
    assert (segments.segment_bounds(block) is not None) == is_prose
    specials = [b"<|e|>", b"\xff"]
    found = count_blocks.count_blocks([block, block], specials)
    expected = train.count_blocks.plain([block, block], specials)
    assert count_blocks._unpacked(found) == count_blocks._unpacked(expected)
    vocabulary = probe_vocabulary()
    ids = bpe.encode_block.plain(block, vocabulary).tolist()
    assert encode_blocks.encode_block(block, vocabulary).tolist() == ids
    assert encode_blocks.encode_block(block, vocabulary).tolist() == ids  # from the cache


def test_without_a_compiler_numpy_counts_and_encodes(no_compiler):
    block = large_text(2)
    with pytest.warns(DisagreementWarning, match="no C compiler"):
        found = count_blocks.count_blocks([block], [])
    assert not words.is_available()
    assert count_blocks._unpacked(found) == count_blocks._unpacked(train.count_blocks.plain([block], []))
    vocabulary = probe_vocabulary()
    for size in (5000, len(block)):  # of a stream's block, and of a file's
        assert (bpe.encode_block(block[:size], vocabulary).tolist()
                == bpe.encode_block.plain(block[:size], vocabulary).tolist())


def test_a_library_that_finds_other_segments_is_not_used(monkeypatch):
    monkeypatch.setattr(words, "find_bounds", lambda text: np.array([0, len(text)]))
    words.is_available.cache_clear()
    try:
        with pytest.warns(DisagreementWarning, match="without the library in C"):
            assert not words.is_available()
    finally:
        words.is_available.cache_clear()
