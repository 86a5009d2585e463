import doctest
from itertools import pairwise

import pytest

from tslm.tokenizer import encode_plainly, plain
from tslm.tokenizer.plain import replay_merges

MERGES = [(b"o", b"w"), (b"e", b"r"), (b"e", b"w"), (b"w", b"er"), (b"l", b"ow"), (b"\xc3", b"\xa9"), (b"a", b"a")]
WORDS = [b"", b"l", b"lower", b"newer", "aéaaaé".encode(), b"aaaaaaa", b"\xff\x00"]


@pytest.mark.parametrize("word", WORDS)
def test_each_step_of_a_replay_applies_the_merge_that_it_names(word):
    steps = list(replay_merges(word, MERGES))
    assert steps[0].tokens == [bytes([byte]) for byte in word]
    for step, following in pairwise(steps):
        left, right = MERGES[step.rank]
        before, rest = step.tokens[: step.at], step.tokens[step.at :]
        assert rest[:2] == [left, right]
        assert (left, right) not in pairwise(before)  # the leftmost one
        assert following.tokens == [*before, left + right, *rest[2:]]
    assert steps[-1] == (encode_plainly(word, MERGES), None, None)
    assert not set(pairwise(steps[-1].tokens)) & set(MERGES)


def test_the_examples_of_the_plain_form_are_true():
    assert doctest.testmod(plain).failed == 0
    assert doctest.testmod(plain).attempted > 0
