"""Cuts within pre-tokens of scripts without spaces, against the definition."""

import random
from itertools import pairwise

import numpy as np
import pytest

from tests.benchmarks.scripts import SCRIPTS, draw_text
from tests.tokenizer.reference import slow_counts, slow_merges, slow_word
from tslm import fast, merge_pretokens
from tslm.fast.tokenizer.encode_blocks import BlockEncoder
from tslm.fast.tokenizer.encode_words import WordEncoder
from tslm.tokenizer import bpe
from tslm.tokenizer.tokenizer import Tokenizer


def vocabulary_of(merges, special_tokens=()):
    tokens = [*dict.fromkeys([*(bytes([byte]) for byte in range(256)), *(left + right for left, right in merges)])]
    special_ids = {token: len(tokens) + n for n, token in enumerate(special_tokens)}
    return bpe.Vocabulary({token: n for n, token in enumerate(tokens)}, bpe.rank_merges(merges), special_ids)


def few_characters(rng, size):
    """Draw a text whose characters share bytes, so that merges cross their boundaries."""
    return "".join(rng.choices("中丮侭仭中与a，", k=size))


def test_a_seam_is_wrong_if_and_only_if_the_two_tokens_are_not_their_own_encoding():
    rng, wrong = random.Random(1), 0
    for round_ in range(12):
        counts = {few_characters(rng, rng.randint(1, 9)).encode(): rng.randint(1, 5) for _ in range(20)}
        if round_ % 3 == 0:  # equal tokens side by side: the merge further left is made first
            counts = {bytes(rng.choices(b"ab", k=rng.randint(1, 12))): 1 for _ in range(9)}
        merges = slow_merges(counts, 256 + 40, [])[1]
        vocabulary = vocabulary_of(merges)
        seams = WordEncoder(vocabulary).seams
        assert seams.is_usable == (len({left + right for left, right in merges}) == len(merges))
        if not seams.is_usable:
            continue
        reachable = [token for token in vocabulary.ids if slow_word(token, merges) == [token]]
        reachable = [token for token in reachable if token in b"".join(counts) or len(token) > 1]
        pairs = [(left, right) for left in reachable for right in reachable]
        ids = np.array([[vocabulary.ids[token] for token in pair] for pair in pairs])
        expected = [slow_word(left + right, merges) != [left, right] for left, right in pairs]
        for _ in range(2):  # the second time from the cache
            assert seams.wrong(*seams.symbol_of[ids].T).tolist() == expected
        wrong += sum(expected)
    assert wrong > 500


@pytest.mark.parametrize("seed", range(6))
def test_texts_with_wrong_cuts_are_encoded_by_the_definition(seed):
    rng = random.Random(seed)
    learnt = "".join(few_characters(rng, 7) + "。" for _ in range(40))
    merges = slow_merges(slow_counts(learnt, []), 256 + 60, [])[1]
    if seed == 5:
        rng.shuffle(merges)  # merges that no training made
    vocabulary = vocabulary_of(merges, ["中与".encode(), b"\xff", b"\xe4\xb8"])
    for special_ids in ({}, vocabulary.special_ids):
        given = bpe.Vocabulary(vocabulary.ids, vocabulary.ranks, special_ids)
        encoder = BlockEncoder(WordEncoder(given), [*special_ids], capacity=1 << 10)
        for _ in range(20):
            end = b"\xff" if special_ids else b""
            text = few_characters(rng, 90).encode() + end + few_characters(rng, 30).encode()
            try:
                expected = bpe.encode_block.plain(text, given).tolist()
            except UnicodeDecodeError:  # a special token that is a part of a character
                continue
            assert encoder.encode(text).tolist() == expected


def test_wrong_cuts_are_made_and_undone():
    rng = random.Random(7)
    # The last byte of all these characters is 0x80, the first one 0xE4. The merge of both crosses from each character
    # to the next, also where two of them were never neighbours.
    learnt, text = "".join(rng.choices("乀侀", k=300)), "".join(rng.choices("亀什伀乀侀", k=300)).encode()
    vocabulary = vocabulary_of(slow_merges(slow_counts(learnt, []), 256 + 3, [])[1])
    words, expected = WordEncoder(vocabulary), bpe.encode_block.plain(text, vocabulary).tolist()
    cuts = words.seams.cut(text, np.array([0, len(text)]))
    assert len(cuts) > 100
    parts = [text[start:stop] for start, stop in pairwise(cuts.tolist())]
    assert [id_ for ids in words.encode(parts) for id_ in ids] != expected
    assert BlockEncoder(words, [], capacity=1 << 10).encode(text).tolist() == expected


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_without_spaces_are_encoded_by_the_definition(script):
    text = draw_text(script, 40_000, 3)
    tokenizer = Tokenizer(*merge_pretokens(slow_counts(text, []), 1000, []))
    with fast.shut():
        expected = bpe.encode_block(text[:1500].encode(), tokenizer._vocabulary).tolist()[:-100]
    assert tokenizer.encode_bytes(text.encode())[: len(expected)].tolist() == expected
