import doctest
from itertools import pairwise

import pytest

from tslm.tokenizer import bpe
from tslm.tokenizer.bpe import encode, merge_pairs, rank_merges, replay

MERGES = [(b"o", b"w"), (b"e", b"r"), (b"e", b"w"), (b"w", b"er"), (b"l", b"ow"), (b"\xc3", b"\xa9"), (b"a", b"a")]
WORDS = [b"", b"l", b"lower", b"newer", "aéaaaé".encode(), b"aaaaaaa", b"\xff\x00"]


@pytest.mark.parametrize("word", WORDS)
def test_each_step_of_a_replay_applies_the_merge_that_it_names(word):
    ranks = rank_merges(MERGES)
    steps = list(replay(word, ranks))
    assert steps[0].tokens == [bytes([byte]) for byte in word]
    for step, following in pairwise(steps):
        left, right = MERGES[step.rank]
        before, rest = step.tokens[: step.at], step.tokens[step.at :]
        assert rest[:2] == [left, right]
        assert (left, right) not in pairwise(before)  # the leftmost one
        assert following.tokens == [*before, left + right, *rest[2:]]
    assert steps[-1] == (encode(word, ranks), None, None)
    assert not set(pairwise(steps[-1].tokens)) & set(MERGES)


def test_a_pair_that_is_listed_twice_has_its_first_rank():
    assert rank_merges([(b"a", b"b"), (b"b", b"c"), (b"a", b"b")]) == {(b"a", b"b"): 0, (b"b", b"c"): 1}


def test_training_as_written_makes_the_merges_of_its_example():
    merges = list(merge_pairs.plain({b"low": 5, b"lower": 2}, 10))
    assert merges == [(b"o", b"w"), (b"l", b"ow"), (b"low", b"e"), (b"lowe", b"r")]


def test_the_examples_of_the_docstrings_are_true():
    result = doctest.testmod(bpe)
    assert (result.failed, result.attempted > 2) == (0, True)
