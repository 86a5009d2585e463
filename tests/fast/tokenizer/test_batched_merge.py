import random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tslm import Tokenizer, merge_pretokens
from tslm.tokenizer import pieces
from tslm.tokenizer.lockstep import LONGEST
from tslm.tokenizer.pair_ranks import PairRanks
from tslm.tokenizer.pieces import PieceEncoder
from tslm.tokenizer.plain import encode_plainly

BYTES = {bytes([byte]): byte for byte in range(256)}


def encoder(merges, ids=None, special_ids=None):
    made = dict.fromkeys(left + right for left, right in merges if left + right not in BYTES)
    ids = ids or BYTES | {token: 256 + n for n, token in enumerate(made)}
    return PieceEncoder(ids, merges, special_ids or {}), {id_: token for token, id_ in ids.items()}


def in_lockstep(encoder, words, monkeypatch):
    """The words' ids, each by itself, whatever their number."""
    monkeypatch.setattr(pieces, "_MANY", 0)
    borders = np.cumsum([0, *map(len, words)])
    ids, counts = encoder.encode_all(b"".join(words), borders)
    assert ids.dtype == np.uint32
    ends = np.cumsum(counts)
    return [ids[end - count : end].tolist() for end, count in zip(ends.tolist(), counts.tolist(), strict=True)]


@pytest.mark.parametrize("letters", ["a", "ab", "abc"])
def test_lockstep_is_plain_merging_for_merges_in_any_order(letters, monkeypatch):
    """Parts may be made by later merges, by several or by none, and a merge may be listed twice."""
    rng = random.Random(letters)
    for _ in range(200):
        tokens, merges = [letter.encode() for letter in letters], []
        for _ in range(rng.randint(1, 14)):
            merges.append((rng.choice(tokens), rng.choice(tokens)))
            tokens.append(b"".join(merges[-1]))
        if rng.random() < 0.5:
            rng.shuffle(merges)
        words = [bytes(rng.choices(letters.encode(), k=rng.randint(1, LONGEST + 3))) for _ in range(30)]
        encode, token_of = encoder(merges)
        got = [[token_of[id_] for id_ in ids] for ids in in_lockstep(encode, words, monkeypatch)]
        assert got == [encode_plainly(word, merges) for word in words]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=40), max_size=60), st.integers(0, 300))
def test_lockstep_is_one_word_after_the_other(words, merges_wanted):
    vocab, merges = merge_pretokens({word: 1 + n % 7 for n, word in enumerate(words)}, 256 + merges_wanted, [])
    encode = PieceEncoder({token: id_ for id_, token in vocab.items()}, merges, {})
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert in_lockstep(encode, words, monkeypatch) == [encode.encode(word) for word in words]


def test_more_words_than_one_group_holds_keep_their_order(monkeypatch):
    rng = random.Random(2)
    words = [bytes(rng.choices(b"abcd", k=rng.randint(1, 20))) for _ in range(10_000)]
    vocab, merges = merge_pretokens(dict.fromkeys(words[::9], 1), 400, [])
    encode = PieceEncoder({token: id_ for id_, token in vocab.items()}, merges, {})
    assert in_lockstep(encode, words, monkeypatch) == [encode.encode(word) for word in words]


def test_many_words_are_encoded_in_lockstep_and_few_or_long_ones_are_not(monkeypatch):
    words = [b"%d" % number for number in range(1000, 1001 + pieces._MANY)] + [b"1" * (LONGEST + 1)]
    encode, _ = encoder([(b"1", b"1"), (b"11", b"11")])
    one_by_one = []
    real = encode.encode
    monkeypatch.setattr(encode, "encode", lambda word: one_by_one.append(word) or real(word))
    borders = np.cumsum([0, *map(len, words)])
    encode.encode_all(b"".join(words), borders)
    assert one_by_one == [words[-1]]
    encode.encode_all(b"".join(words), borders, frugal=True)
    assert one_by_one[1:] == [word for word in words if word != b"1111"]  # which is whole


def test_special_tokens_are_one_token_whatever_the_merges_say(monkeypatch):
    encode, _ = encoder([(b"<", b"s")], special_ids={b"<s>": 1000})
    assert in_lockstep(encode, [b"<s", b"<s>", b"<s>s"], monkeypatch) == [[256], [1000], [256, 62, 115]]


def test_lockstep_names_what_the_vocabulary_lacks():
    vocab = {byte: bytes([byte]) for byte in range(256) if byte != ord("q")}
    text = " ".join(f"w{number}" for number in range(2000))
    tokenizer = Tokenizer(vocab, [])
    assert len(tokenizer.file_blocks.encode(text.encode())) == len(text)
    with pytest.raises(ValueError, match=r"lacks the byte 0x71 \(b'q'\)"):
        tokenizer.file_blocks.encode((text + " quick" + text).encode())


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=400), st.randoms())
@example([(0, number) for number in range(31)] + [(number, 0) for number in range(31)], random.Random(0))
def test_pair_ranks_are_those_of_a_dictionary(pairs, rng):
    left, right = (np.array([pair[side] for pair in pairs], np.int64) for side in (0, 1))
    ranks = {pair: rank for rank, pair in reversed(list(enumerate(pairs)))}
    asked = [(rng.randrange(31), rng.randrange(31)) for _ in range(200)] + pairs
    table = PairRanks(left, right, 31)
    found = table.find(*(np.array([pair[side] for pair in asked], np.int64) for side in (0, 1)))
    assert found.tolist() == [ranks.get(pair, table.never) for pair in asked]
    assert table.never == len(pairs)
