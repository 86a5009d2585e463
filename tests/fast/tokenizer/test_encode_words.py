import random

import numpy as np
import pytest

from tests.tokenizer.test_lockstep import encoder
from tslm.tokenizer import pieces, rounds
from tslm.tokenizer.pair_ranks import PairRanks
from tslm.tokenizer.plain import encode_plainly


@pytest.mark.parametrize("letters", ["a", "ab", "abc"])
def test_rounds_are_plain_merging_for_merges_in_any_order(letters, monkeypatch):
    monkeypatch.setattr(pieces, "_VERY_LONG", 0)
    monkeypatch.setattr(pieces, "_SHORT", 0)
    monkeypatch.setattr(rounds, "_SHARE", 1 << 20)  # so that the rounds go on to the end
    rng = random.Random(letters)
    for _ in range(1500):
        tokens, merges = [letter.encode() for letter in letters], []
        for _ in range(rng.randint(1, 10)):
            merges.append((rng.choice(tokens), rng.choice(tokens)))
            tokens.append(b"".join(merges[-1]))
        if rng.random() < 0.5:
            rng.shuffle(merges)
        encode, token_of = encoder(merges)
        word = bytes(rng.choices(letters.encode(), k=rng.randint(1, 40)))
        assert [token_of[id_] for id_ in encode.encode(word)] == encode_plainly(word, merges), (word, merges)


def test_a_run_of_one_character_is_merged_in_a_few_rounds(monkeypatch):
    tokens = [b"a" * (1 << n) for n in range(10)]
    merges = [(token, token) for token in tokens]
    encode, token_of = encoder(merges)
    asked = []
    real = PairRanks.find
    monkeypatch.setattr(PairRanks, "find", lambda self, left, right: asked.append(len(left)) or real(self, left, right))
    ids = encode.encode(b"a" * 100_003)
    assert [token_of[id_] for id_ in ids] == [b"a" * 1024] * 97 + [b"a" * 512, b"a" * 128, b"a" * 32, b"a" * 2, b"a"]
    assert len(asked) < 30
    assert sum(asked) < 400_000


def test_an_earlier_merge_that_appears_between_two_of_a_round_has_its_turn():
    merges = [(b"ab", b"a"), (b"a", b"b")]  # the first is possible as soon as one `ab` is there
    left, right = np.array([256, 97]), np.array([97, 98])
    symbols = np.frombuffer(b"abab" * 2000, np.uint8).astype(np.int64)
    assert rounds.merge_in_rounds(symbols, PairRanks(left, right, 300), np.array([257, 256])) is symbols
    encode, token_of = encoder(merges)
    word = b"ab" * 3000
    assert [token_of[id_] for id_ in encode.encode(word)] == encode_plainly(word[:60], merges) * 100
