"""The merges in C, against the definition."""

import random

import numpy as np
import pytest

from tests.benchmarks.scripts import SCRIPTS, draw_text
from tests.fast.tokenizer.test_batched_merge import BYTES, draw_merges
from tests.tokenizer.reference import slow_counts, slow_word
from tslm import fast, merge_pretokens
from tslm.fast import door
from tslm.fast.cpu import build
from tslm.fast.door import DisagreementWarning
from tslm.fast.tokenizer import encode_words
from tslm.fast.tokenizer.encode_words import WordEncoder
from tslm.tokenizer import bpe
from tslm.tokenizer.tokenizer import Tokenizer


def compiled_encoder(merges):
    """Return an encoder that merges in C, and the token of each id."""
    made = dict.fromkeys(left + right for left, right in merges if left + right not in BYTES)
    ids = BYTES | {token: 256 + n for n, token in enumerate(made)}
    encoder = WordEncoder(bpe.Vocabulary(ids, bpe.rank_merges(merges), {}))
    assert encoder.compiled is not None
    return encoder, {id_: token for token, id_ in ids.items()}


@pytest.mark.parametrize("letters", ["a", "ab", "abc"])
def test_words_of_any_length_are_merged_by_the_definition_for_merges_in_any_order(letters):
    rng = random.Random(letters)
    for _ in range(150):
        merges = draw_merges(rng, letters, 14)
        words = [bytes(rng.choices(letters.encode(), k=size)) for size in (*range(1, 60), 200)]
        encoder, token_of = compiled_encoder(merges)
        ids, counts = encoder.encode_all(b"".join(words), np.cumsum([0, *map(len, words)]))
        expected = [slow_word(word, merges) for word in words]
        assert [token_of[id_] for id_ in ids.tolist()] == [token for word in expected for token in word]
        assert counts.tolist() == [*map(len, expected)]


def test_a_vocabulary_without_merges_gives_bytes():
    encoder, _ = compiled_encoder([])
    text = bytes(range(256))
    ids, counts = encoder.encode_all(text, np.array([0, 1, 256]))
    assert (ids.tolist(), counts.tolist()) == ([*range(256)], [1, 255])


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("is_compiled", [True, False])
def test_scripts_without_spaces_are_encoded_by_the_definition(script, is_compiled, monkeypatch):
    monkeypatch.setattr(encode_words, "_WORTH_LOADING", 0 if is_compiled else 1 << 60)
    text = draw_text(script, 40_000, 3)
    tokenizer = Tokenizer(*merge_pretokens(slow_counts(text, []), 1000, []))
    with fast.shut():
        expected = bpe.encode_block(text[:1500].encode(), tokenizer._vocabulary).tolist()[:-100]
    assert tokenizer.encode_bytes(text.encode())[: len(expected)].tolist() == expected


def test_without_a_compiler_numpy_merges(monkeypatch):
    monkeypatch.setenv("CC", "/nowhere/cc")
    build.load.cache_clear()
    monkeypatch.setattr(encode_words, "_WORTH_LOADING", 0)
    door.forget()
    with pytest.warns(DisagreementWarning, match="no C compiler"):
        encoder = WordEncoder(bpe.Vocabulary(BYTES | {b"ab": 256}, {(b"a", b"b"): 0}, {}))
    assert encoder.compiled is None
    ids, counts = encoder.encode_all(b"abbab" * 200, np.arange(0, 1001, 5))
    assert (ids.tolist(), counts.tolist()) == ([256, 98, 256] * 200, [3] * 200)
    build.load.cache_clear()


def test_a_library_that_merges_differently_is_not_used(monkeypatch):
    def wrong(self, text, starts, sizes):
        return text.astype(np.int32), np.asarray(sizes)

    monkeypatch.setattr("tslm.fast.cpu.merge.CompiledMerge.encode", wrong)
    encoder = WordEncoder(bpe.Vocabulary(BYTES | {b"ab": 256}, {(b"a", b"b"): 0}, {}))
    with pytest.warns(DisagreementWarning, match="without the library in C"):
        assert encoder.compiled is None
