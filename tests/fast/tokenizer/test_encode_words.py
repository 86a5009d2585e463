import random

import numpy as np
import pytest

from tests.fast.tokenizer.test_batched_merge import draw_merges, make_encoder
from tests.tokenizer.reference import slow_word
from tslm.fast.tokenizer.batched_merge import PairRanks
from tslm.fast.tokenizer.encode_words import merge_rounds


@pytest.mark.parametrize("letters", ["a", "ab", "abc"])
def test_words_of_any_length_are_merged_by_the_definition(letters):
    rng = random.Random(letters)
    for _ in range(300):
        merges = draw_merges(rng, letters, 10)
        encoder, token_of = make_encoder(merges, many=10**9)
        word = bytes(rng.choices(letters.encode(), k=rng.choice([1, 5, 20, 33, 60])))
        assert [token_of[id_] for id_ in encoder.encode([word])[0]] == slow_word(word, merges), (word, merges)


@pytest.mark.parametrize("letters", ["a", "ab", "abc"])
def test_rounds_merge_by_the_definition(letters):
    rng = random.Random(letters)
    rounds = 0
    for _ in range(1500):
        merges = draw_merges(rng, letters, 10)
        encoder, _ = make_encoder(merges)
        word = bytes(rng.choices(letters.encode(), k=rng.randint(1, 40)))
        symbols = np.frombuffer(word, np.uint8).astype(np.int64)
        merged = merge_rounds(symbols, encoder._pair_ranks, encoder._merged_symbols, poor_rounds=10**9)
        rounds += len(merged) < len(word)
        tokens = encoder._merge_long([encoder._tokens[symbol] for symbol in merged.tolist()])
        assert tokens == slow_word(word, merges), (word, merges)
    assert rounds > 500


def test_a_run_of_one_character_is_merged_in_few_rounds(monkeypatch):
    merges = [(b"a" * (1 << n), b"a" * (1 << n)) for n in range(10)]
    encoder, token_of = make_encoder(merges)
    lookups = []
    find = PairRanks.find
    monkeypatch.setattr(PairRanks, "find", lambda *pairs: lookups.append(len(pairs[1])) or find(*pairs))
    for prefix in (b"", b" "):  # the second starts with a round that merges at one place
        lookups.clear()
        (ids,) = encoder.encode([prefix + b"a" * 100_003])
        expected = [b"a" * 1024] * 97 + [b"a" * 512, b"a" * 128, b"a" * 32, b"a" * 2, b"a"]
        assert [token_of[id_] for id_ in ids] == [prefix] * len(prefix) + expected
        assert len(lookups) < 40
        assert sum(lookups) < 500_000


def test_a_round_is_not_made_if_a_pair_of_lower_rank_could_appear_in_it():
    merges = [(b"ab", b"a"), (b"a", b"b")]  # the first is possible as soon as one `ab` exists
    left, right = np.array([256, 97]), np.array([97, 98])
    symbols = np.frombuffer(b"abab" * 2000, np.uint8).astype(np.int64)
    ranks = PairRanks(left, right, np.arange(2), 300)
    assert merge_rounds(symbols, ranks, np.array([257, 256])) is symbols
    encoder, token_of = make_encoder(merges)
    word = b"ab" * 3000
    assert [token_of[id_] for id_ in encoder.encode([word])[0]] == slow_word(word[:60], merges) * 100
