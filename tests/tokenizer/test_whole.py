import random

import numpy as np
import pytest

from tslm import merge_pretokens
from tslm.tokenizer.plain import encode_plainly
from tslm.tokenizer.whole import made_whole


def whole_tokens(merges):
    symbols = {bytes([byte]): byte for byte in range(256)}
    for left, right in merges:
        for token in (left, right, left + right):
            symbols.setdefault(token, len(symbols))
    columns = [np.array([symbols[token] for token in column], np.int64) for column in (*zip(*merges, strict=True),)]
    merged = np.array([symbols[left + right] for left, right in merges], np.int64)
    is_whole = made_whole(*columns, merged, len(symbols))
    return {token for token, number in symbols.items() if is_whole[number]}


def test_what_merges_do_not_lead_to_is_not_whole():
    merges = [(b"a", b"b"), (b"b", b"c"), (b"a", b"bc")]
    assert {token for token in whole_tokens(merges) if len(token) > 1} == {b"ab", b"bc"}


@pytest.mark.parametrize("letters", ["a", "ab", "abc"])
def test_whole_tokens_are_those_that_plain_merging_makes_whole(letters):
    """Merges in any order, whose parts may be made by later ones, by several or by none."""
    rng = random.Random(letters)
    alphabet = [letter.encode() for letter in letters]
    found = 0
    for _ in range(1500):
        tokens, merges = list(alphabet), []
        for _ in range(rng.randint(1, 12)):
            pair = (rng.choice(tokens), rng.choice(tokens))
            if pair not in merges and len(b"".join(pair)) <= 9:
                merges.append(pair)
                tokens.append(b"".join(pair))
        if rng.random() < 0.5:
            rng.shuffle(merges)
        if not merges:
            continue
        whole = whole_tokens(merges)
        assert all(encode_plainly(token, merges) == [token] for token in whole), merges
        made = [left + right for left, right in merges]
        ordered = all(part in alphabet or part in made[:n] for n, pair in enumerate(merges) for part in pair)
        if ordered and len(set(made)) == len(made):
            assert whole >= {token for token in made if encode_plainly(token, merges) == [token]}, merges
            found += 1
    assert found > 100


def test_all_tokens_of_a_trained_vocabulary_are_whole():
    rng = random.Random(1)
    counts = {bytes(rng.choices(b"abcde", k=rng.randint(1, 9))): rng.randint(1, 50) for _ in range(300)}
    vocab, merges = merge_pretokens(counts, 500, [])
    assert whole_tokens(merges) >= set(vocab.values())
