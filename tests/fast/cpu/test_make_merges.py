"""BPE training in C, against the definition and the form in Python."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fast.tokenizer.test_merging import as_written
from tslm.fast.cpu import make_merges
from tslm.fast.cpu.make_merges import merge_pairs
from tslm.fast.door import DisagreementWarning
from tslm.fast.tokenizer import merging
from tslm.tokenizer import bpe


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(st.binary(max_size=12), st.integers(0, 5), max_size=20), st.integers(0, 60))
def test_merging_equals_the_definition_on_any_bytes(counts, max_merges):
    assert list(merge_pairs(counts, max_merges)) == as_written(counts, max_merges)


@pytest.mark.parametrize("letters", ["a", "ab", "abc", "aAbé\0", "abcdefgh"])
def test_merging_equals_the_definition_where_pairs_overlap(letters):
    rng = random.Random(letters)
    for _ in range(60):
        words = {"".join(rng.choices(letters, k=rng.randint(1, 14))).encode() for _ in range(rng.randint(1, 20))}
        words |= {rng.choice([b"ab", b"ba", b"abb", b"a"]) * rng.randint(2, 40) for _ in range(3)}
        counts = {word: rng.choice([0, 1, 1, 1, 2, 3]) for word in words}
        assert list(merge_pairs(counts, 1000)) == as_written(counts, 1000), counts


@pytest.mark.parametrize("counts", [
    {b"ababab": 5, b"cbac": 7},  # the pair between two occurrences
    {b"xab": 3, b"ybc": 2, b"aZ": 1, b"abZ": 1},  # a tie that the first token's end decides
    {b"ab": 2**61, b"abc": 2**60, b"cd": 2**60 + 1, b"dd": 1},
    {},
    {b"a": 5, b"": 3, b"bc": 0},
])
def test_special_cases_equal_the_definition(counts):
    assert list(merge_pairs(counts, 9)) == as_written(counts, 9)


def test_a_large_tie_is_resolved_by_byte_strings():
    counts = {bytes([first, second]): 1 for first in range(256) for second in range(0, 256, 5)}
    assert list(merge_pairs(counts, 100_000)) == sorted(((bytes([a]), bytes([b])) for a, b in counts), reverse=True)


def many_words(count):
    rng = random.Random(count)
    return {bytes(rng.choices(b"etaoinshrdlu", weights=range(12, 0, -1), k=rng.randint(2, 12))): rng.randint(1, 99)
            for _ in range(count)}


def test_many_words_are_merged_as_in_python():
    counts = many_words(30_000)
    assert make_merges._supports(counts, 3000) == "c"
    assert list(bpe.merge_pairs(counts, 3000)) == list(merging.merge_pairs(counts, 3000))


def test_what_is_small_or_beyond_64_bits_is_left_to_python():
    assert make_merges._supports({b"low": 5}, 10) is None
    assert make_merges._supports({bytes(1 << 18): 1 << 45}, 10) is None
    assert make_merges._supports({bytes(1 << 18): 1}, 10) == "c"


def test_a_consumer_may_stop_early():
    merges = merge_pairs(many_words(100), 50)
    assert next(merges)
    merges.close()


def test_without_a_compiler_python_merges(no_compiler):
    counts = many_words(30_000)
    with pytest.warns(DisagreementWarning, match="no C compiler"):
        assert list(bpe.merge_pairs(counts, 5)) == list(merging.merge_pairs(counts, 5))
