"""The merges in C: what `test_encode_words` leaves."""

import numpy as np
import pytest

from tests.benchmarks.scripts import SCRIPTS, draw_text
from tests.fast.tokenizer.test_encode_words import make_encoder
from tests.tokenizer.reference import slow_counts
from tslm import fast, merge_pretokens
from tslm.fast.cpu.merge import CompiledMerge
from tslm.fast.door import DisagreementWarning
from tslm.fast.tokenizer.encode_blocks import encode_block
from tslm.tokenizer import bpe
from tslm.tokenizer.tokenizer import Tokenizer


def test_a_vocabulary_without_merges_gives_bytes():
    encoder, _ = make_encoder([])
    assert isinstance(encoder.batched, CompiledMerge)
    ids, counts = encoder.batched.encode(bytes(range(256)), np.array([0, 1, 256]))
    assert (ids.tolist(), counts.tolist()) == ([*range(256)], [1, 255])


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("kind", ["file", "python"])
def test_scripts_without_spaces_are_encoded_by_the_definition(script, kind):
    text = draw_text(script, 40_000, 3)
    tokenizer = Tokenizer(*merge_pretokens(slow_counts(text, []), 1000, []))
    with fast.shut():
        expected = bpe.encode_block(text[:1500].encode(), tokenizer._vocabulary).tolist()[:-100]
    assert encode_block(text.encode(), tokenizer._vocabulary, kind)[: len(expected)].tolist() == expected


def test_without_a_compiler_numpy_merges(no_compiler):
    encoder, _ = make_encoder([(b"a", b"b")])
    with pytest.warns(DisagreementWarning, match="no C compiler"):
        assert not isinstance(encoder.batched, CompiledMerge)
    ids, counts = encoder.batched.encode(b"abbab" * 200, np.arange(0, 1001, 5))
    assert (ids.tolist(), counts.tolist()) == ([256, 98, 256] * 200, [3] * 200)


def test_a_library_that_merges_differently_is_not_used(monkeypatch):
    def wrong(self, text, bounds):
        return np.frombuffer(text, np.uint8).astype(np.int32), np.diff(bounds)

    monkeypatch.setattr(CompiledMerge, "merge", wrong)
    encoder, _ = make_encoder([(b"a", b"b")])
    with pytest.warns(DisagreementWarning, match="without the library in C"):
        assert not isinstance(encoder.batched, CompiledMerge)
