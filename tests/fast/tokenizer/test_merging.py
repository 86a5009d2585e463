import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tslm.fast.tokenizer.merging import merge_pairs
from tslm.tokenizer import bpe


def as_written(counts, max_merges):
    return list(bpe.merge_pairs.plain(counts, max_merges))


def test_merging_equals_the_definition():
    rng = random.Random(0)
    for letters in ("a", "ab", "ab", "abc", "aAbé\0", "abcdefgh"):
        for _ in range(60):
            words = {"".join(rng.choices(letters, k=rng.randint(1, 14))).encode() for _ in range(rng.randint(1, 20))}
            words |= {rng.choice([b"ab", b"ba", b"abb"]) * rng.randint(2, 5) for _ in range(3)}
            counts = {word: rng.choice([0, 1, 1, 1, 2, 3]) for word in words}
            max_merges = rng.choice([3, 10, 1000])
            assert list(merge_pairs(counts, max_merges)) == as_written(counts, max_merges), counts


@pytest.mark.parametrize("letters", ["a", "ab"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 1000, 1023])
def test_runs_of_one_letter_are_merged_from_the_left(letters, size):
    counts = {letters.encode() * size: 3, b"x" + letters.encode() * (size // 2) + b"y": 2}
    assert list(merge_pairs(counts, 20)) == as_written(counts, 20)


@pytest.mark.parametrize("count", [2**31, 2**52, 2**62, 2**63, 2**70])
def test_sums_of_counts_never_wrap(count):
    counts = {b"ab": count, b"abc": count, b"cd": count + count // 2, b"dd": 1}
    assert list(bpe.merge_pairs(counts, 5)) == as_written(counts, 5)
    assert next(iter(bpe.merge_pairs(counts, 5))) == (b"a", b"b")


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.binary(max_size=12), st.integers(0, 5), max_size=20), st.integers(0, 60))
def test_merging_equals_the_definition_on_any_bytes(counts, max_merges):
    assert list(merge_pairs(counts, max_merges)) == as_written(counts, max_merges)


def test_the_pair_between_two_occurrences_is_counted_once():
    # a b is merged first; `b a` between two of them must be subtracted once each, and (ab, ab) counted.
    counts = {b"ababab": 5, b"cbac": 7}
    assert list(merge_pairs(counts, 6)) == as_written(counts, 6)


def test_a_tie_is_resolved_by_byte_strings_element_by_element():
    # ("a", "bc") and ("ab", "c") both occur once; b"ab" is greater than its own beginning b"a".
    counts = {b"xab": 3, b"ybc": 2, b"aZ": 1, b"abZ": 1}
    assert list(merge_pairs(counts, 5)) == as_written(counts, 5)


def test_a_large_tie_is_resolved_by_byte_strings():
    counts = {bytes([first, second]): 1 for first in range(256) for second in range(0, 256, 5)}
    assert list(merge_pairs(counts, 100_000)) == sorted(((bytes([a]), bytes([b])) for a, b in counts), reverse=True)
