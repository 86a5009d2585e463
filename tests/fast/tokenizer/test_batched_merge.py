import random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.tokenizer.reference import slow_word
from tslm import merge_pretokens
from tslm.fast.tokenizer.batched_merge import LONGEST, PairRanks
from tslm.fast.tokenizer.encode_words import WordEncoder
from tslm.tokenizer.bpe import Vocabulary, rank_merges

BYTES = {bytes([byte]): byte for byte in range(256)}


def draw_merges(rng, letters, most):
    """Merges in any order: parts may be made by later merges, by several or by none, and a pair may be listed twice."""
    tokens, merges = [letter.encode() for letter in letters], []
    for _ in range(rng.randint(1, most)):
        merges.append((rng.choice(tokens), rng.choice(tokens)))
        tokens.append(b"".join(merges[-1]))
    if rng.random() < 0.5:
        rng.shuffle(merges)
    return merges


def make_encoder(merges, special_ids=None, many=0):
    """Return an encoder and the token of each id."""
    made = dict.fromkeys(left + right for left, right in merges if left + right not in BYTES)
    ids = BYTES | {token: 256 + n for n, token in enumerate(made)}
    encoder = WordEncoder(Vocabulary(ids, rank_merges(merges), special_ids or {}), many)
    return encoder, {id_: token for token, id_ in ids.items()}


def encode_all(encoder, words, frugal=False):
    bounds = np.cumsum([0, *map(len, words)])
    ids, counts = encoder.encode_all(b"".join(words), bounds, frugal)
    assert ids.dtype == np.uint32
    ends = np.cumsum(counts)
    return [ids[end - count : end].tolist() for end, count in zip(ends.tolist(), counts.tolist(), strict=True)]


@pytest.mark.parametrize("letters", ["a", "ab", "abc"])
def test_a_batch_is_merged_by_the_definition_for_merges_in_any_order(letters):
    rng = random.Random(letters)
    for round_ in range(200):
        merges = draw_merges(rng, letters, 14)
        sizes = [rng.randint(1, 40) for _ in range(30)] + ([LONGEST, LONGEST + 1] if round_ % 40 == 0 else [])
        words = [bytes(rng.choices(letters.encode(), k=size)) for size in rng.sample(sizes, len(sizes))]
        encoder, token_of = make_encoder(merges)
        expected = [slow_word(word, merges) for word in words]
        assert [[token_of[id_] for id_ in ids] for ids in encode_all(encoder, words)] == expected
        assert [[token_of[id_] for id_ in ids] for ids in encode_all(encoder, words, frugal=True)] == expected


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=40), max_size=60), st.integers(0, 100))
def test_a_batch_equals_one_word_after_the_other(words, max_merges):
    _, merges = merge_pretokens({word: 1 + n % 7 for n, word in enumerate(words)}, 256 + max_merges, [])
    encoder, _ = make_encoder(merges)
    assert encode_all(encoder, words) == [[*ids] for ids in encoder.encode(words)]


def test_more_words_than_a_group_holds_keep_their_order():
    rng = random.Random(2)
    words = [bytes(rng.choices(b"abcd", k=rng.randint(1, 20))) for _ in range(10_000)]
    encoder, _ = make_encoder(draw_merges(rng, "abcd", 80))
    assert encode_all(encoder, words) == [[*ids] for ids in encoder.encode(words)]


def test_special_tokens_are_one_token_whatever_the_merges_are():
    encoder, _ = make_encoder([(b"<", b"s")], special_ids={b"<s>": 1000})
    assert encode_all(encoder, [b"<s", b"<s>", b"<s>s"]) == [[256], [1000], [256, 62, 115]]


@pytest.mark.parametrize("many", [0, 10**9])
def test_a_missing_token_is_the_argument_of_the_error(many):
    ids = {token: id_ for token, id_ in BYTES.items() if token != b"q"}
    encoder = WordEncoder(Vocabulary(ids, {}, {}), many)
    with pytest.raises(KeyError) as caught:
        encode_all(encoder, [b"slow", b"quick"])
    assert caught.value.args == (b"q",)


@settings(max_examples=50, deadline=None)
@given(st.sets(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=400), st.randoms())
@example({(0, number) for number in range(31)} | {(number, 0) for number in range(31)}, random.Random(0))
def test_pair_ranks_are_those_of_a_dictionary(pairs, rng):
    ranks = {pair: 2 * rank for rank, pair in enumerate(pairs)}
    left, right = np.array([*pairs], np.int64).reshape(-1, 2).T.copy()
    table = PairRanks(left, right, np.array([*ranks.values()], np.int64), 31)
    wanted = [(rng.randrange(31), rng.randrange(31)) for _ in range(200)] + [*pairs]
    found = table.find(*np.array(wanted, np.int64).T.copy())
    assert found.tolist() == [ranks.get(pair, table.never) for pair in wanted]
    assert table.never == max(ranks.values(), default=-1) + 1
