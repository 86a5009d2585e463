"""Merging in Python and in C, against the definition."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import needs_compiler
from tests.tokenizer.reference import slow_word
from tslm import merge_pretokens
from tslm.fast.cpu.merge import CompiledMerge
from tslm.fast.tokenizer.batched_merge import BatchedMerge
from tslm.fast.tokenizer.encode_words import LARGE_VOCABULARY, WordEncoder
from tslm.fast.tokenizer.word_table import bounds_of
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


def make_encoder(merges):
    """Return an encoder and the token of each id."""
    made = dict.fromkeys(left + right for left, right in merges if left + right not in BYTES)
    ids = BYTES | {token: 256 + n for n, token in enumerate(made)}
    encoder = WordEncoder(Vocabulary(ids, rank_merges(merges), {}))
    return encoder, {id_: token for token, id_ in ids.items()}


def encode_all(encoder, form, words):
    """Encode many words at once with one of the two forms."""
    batched = form(encoder._ids, encoder._ranks, encoder._merge)
    ids, counts = batched.encode(b"".join(words), bounds_of([*map(len, words)]))
    assert ids.dtype == np.uint32
    ends = np.cumsum(counts)
    return [ids[end - count : end].tolist() for end, count in zip(ends.tolist(), counts.tolist(), strict=True)]


FORMS = [BatchedMerge, pytest.param(CompiledMerge, marks=needs_compiler)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("letters", ["a", "ab", "abc"])
def test_words_of_any_length_are_merged_by_the_definition_for_merges_in_any_order(letters, form):
    rng = random.Random(letters)
    for round_ in range(200):
        merges = draw_merges(rng, letters, 14)
        sizes = [rng.choice([1, 5, 20, 33, 60, 200]) for _ in range(12)] + ([512, 513] if round_ % 40 == 0 else [])
        words = [bytes(rng.choices(letters.encode(), k=size)) for size in sizes]
        encoder, token_of = make_encoder(merges)
        expected = [slow_word(word, merges) for word in words]
        assert [[token_of[id_] for id_ in ids] for ids in encode_all(encoder, form, words)] == expected
        assert [[token_of[id_] for id_ in ids] for ids in encoder.encode(words)] == expected


@pytest.mark.parametrize("form", FORMS)
def test_more_words_than_a_batch_holds_keep_their_order(form):
    rng = random.Random(2)
    words = [bytes(rng.choices(b"abcd", k=rng.randint(1, 20))) for _ in range(30_000)]
    encoder, _ = make_encoder(draw_merges(rng, "abcd", 80))
    assert encode_all(encoder, form, words) == [[*ids] for ids in encoder.encode(words)]


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=60, deadline=None)
@given(words=st.lists(st.binary(min_size=1, max_size=40), max_size=60), max_merges=st.integers(0, 100))
def test_all_words_equal_one_word_after_the_other(form, words, max_merges):
    _, merges = merge_pretokens({word: 1 + n % 7 for n, word in enumerate(words)}, 256 + max_merges, [])
    encoder, _ = make_encoder(merges)
    assert encode_all(encoder, form, words) == [[*ids] for ids in encoder.encode(words)]


@pytest.mark.parametrize("form", FORMS)
def test_a_missing_token_is_the_argument_of_the_error(form):
    encoder = WordEncoder(Vocabulary({token: id_ for token, id_ in BYTES.items() if token != b"q"}, {}, {}))
    for encode in (encoder.encode, lambda words: encode_all(encoder, form, words)):
        with pytest.raises(KeyError) as caught:
            encode([b"slow", b"quick"])
        assert caught.value.args == (b"q",)


def test_a_run_of_one_character_is_merged_in_time_n_log_n():
    merges = [(b"a" * (1 << n), b"a" * (1 << n)) for n in range(10)]
    encoder, token_of = make_encoder(merges)
    for prefix in (b"", b" "):
        (ids,) = encoder.encode([prefix + b"a" * 100_003])
        expected = [b"a" * 1024] * 97 + [b"a" * 512, b"a" * 128, b"a" * 32, b"a" * 2, b"a"]
        assert [token_of[id_] for id_ in ids] == [prefix] * len(prefix) + expected


def test_an_entry_of_a_large_vocabulary_that_is_never_made_is_not_one_token():
    letters = [bytes([letter]) for letter in range(97, 123)]
    merges = [(first, second) for first in letters for second in letters] + [(b"x" * 2, b"yz")]
    merges += [(left + b" ", right) for left in letters for right in letters]
    ids = BYTES | {token: 256 + n for n, token in enumerate(dict.fromkeys(map(b"".join, merges)))}
    ids[b"abc"] = len(ids)
    encoder = WordEncoder(Vocabulary(ids, rank_merges(merges), {}))
    assert len(merges) > LARGE_VOCABULARY
    assert encoder.encode([b"abc", b"xxyz"]) == [(ids[b"ab"], ids[b"c"]), (ids[b"xxyz"],)]
