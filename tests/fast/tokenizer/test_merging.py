import random

import pytest

from tslm import merge_pretokens
from tslm.tokenizer import merge_pretokens_plainly, merging


@pytest.mark.parametrize("many", [0, 3, 10**9])
def test_merging_by_arrays_and_by_loop_equals_the_plain_form(many, monkeypatch):
    monkeypatch.setattr(merging, "_MANY", many)
    rng = random.Random(many)
    for letters in ("a", "ab", "ab", "abc", "aAbé\0", "abcdefgh"):
        for _ in range(30):
            words = {"".join(rng.choices(letters, k=rng.randint(1, 14))).encode() for _ in range(rng.randint(1, 20))}
            words |= {rng.choice([b"ab", b"ba", b"abb"]) * rng.randint(2, 5) for _ in range(3)}
            counts = {word: rng.choice([0, 1, 1, 1, 2, 3]) for word in words}
            expected = merge_pretokens_plainly(counts, 256 + rng.choice([3, 10, 1000]), [])
            assert merge_pretokens(counts, len(expected[0]), []) == expected, counts


def test_merging_counts_what_stands_between_two_occurrences_once():
    # a b is merged first; `b a` between two of them must be taken back once each, and (ab, ab) counted.
    counts = {b"ababab": 5, b"cbac": 7}
    assert merge_pretokens(counts, 256 + 6, []) == merge_pretokens_plainly(counts, 256 + 6, [])
