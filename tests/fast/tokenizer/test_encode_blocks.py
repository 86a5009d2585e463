import random
from unittest.mock import Mock

import pytest

from tests.conftest import needs_compiler
from tests.tokenizer.reference import TRICKY, tricky_text
from tslm.fast.tokenizer.encode_blocks import BlockEncoder
from tslm.fast.tokenizer.encode_words import WordEncoder
from tslm.fast.tokenizer.probes import probe_vocabulary
from tslm.tokenizer import bpe

VOCABULARY = probe_vocabulary()
SPECIALS = VOCABULARY.special_ids
WORDS = [" the", " then", " that", ",", ".", "\n", " 12", " ate", "<|e|>", " aaa"]


def draw_blocks(rng, count):
    """Prose, which has segments, and texts that have none."""
    for _ in range(count):
        yield "".join(rng.choices(WORDS, k=300)).encode()
        yield (" the" + tricky_text(rng, 100, [*TRICKY, *WORDS, "<|a b|>"])).encode() + b"\xff"


@pytest.mark.parametrize("capacity", [4, 60, 1 << 14])
@pytest.mark.parametrize("kind", [
    {}, pytest.param({"compiled": True}, marks=needs_compiler),
    pytest.param({"compiled": True, "frugal": True}, marks=needs_compiler)], ids=str)
def test_blocks_are_encoded_by_the_definition_also_when_the_tables_are_full(capacity, kind):
    encoder = BlockEncoder(WordEncoder(VOCABULARY), SPECIALS, capacity, **kind)
    for block in draw_blocks(random.Random(capacity), 15):
        for _ in range(2):  # the second time from the tables
            assert encoder.encode(block).tolist() == bpe.encode_block.plain(block, VOCABULARY).tolist()


def test_a_special_token_needs_none_of_its_bytes():
    """The error names the first byte that the text needs, and not one of a special token before it."""
    special = next(token for token in SPECIALS if b">" in token)
    ids = {token: id_ for token, id_ in VOCABULARY.ids.items() if token not in (b">", b"q")}
    vocabulary = bpe.Vocabulary(ids, VOCABULARY.ranks, VOCABULARY.special_ids)
    with pytest.raises(KeyError) as caught:
        BlockEncoder(WordEncoder(vocabulary), SPECIALS, 1 << 10).encode(special + b" the quick")
    assert caught.value.args == (b"q",)


def test_a_missing_token_leaves_the_tables_intact():
    ids = {token: id_ for token, id_ in VOCABULARY.ids.items() if token != b"q"}
    vocabulary = bpe.Vocabulary(ids, VOCABULARY.ranks, VOCABULARY.special_ids)
    encoder = BlockEncoder(WordEncoder(vocabulary), SPECIALS, 1 << 10)
    for _ in range(2):
        with pytest.raises(KeyError) as caught:
            encoder.encode(b" the thin and the quick" * 9)
        assert caught.value.args == (b"q",)
        expected = bpe.encode_block.plain(b" the thin and the " * 9, vocabulary).tolist()
        assert encoder.encode(b" the thin and the " * 9).tolist() == expected


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=needs_compiler)])
@pytest.mark.parametrize("error", [UnicodeDecodeError, KeyboardInterrupt, MemoryError])
def test_a_block_after_an_error_is_encoded_whole(compiled, error, monkeypatch):
    """The words of the failed block were in the table without ids, so later blocks lost them."""
    encoder = BlockEncoder(WordEncoder(VOCABULARY), SPECIALS, 1 << 10, compiled=compiled)
    block, bad = b" the thin and the quick" * 9, b" \xc3\x28 end"
    with monkeypatch.context() as patch:
        if error is not UnicodeDecodeError:
            patch.setattr(encoder._pretokens, "_encode", Mock(side_effect=error))
        with pytest.raises(error):
            encoder.encode(block + bad if error is UnicodeDecodeError else block)
    for _ in range(2):
        assert encoder.encode(block).tolist() == bpe.encode_block.plain(block, VOCABULARY).tolist()
