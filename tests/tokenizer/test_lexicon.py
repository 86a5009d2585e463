import random

import numpy as np
import pytest

from tslm.tokenizer.lexicon import Lexicon


@pytest.mark.parametrize(("table_bits", "may_grow"), [(2, True), (2, False), (12, True)])
def test_tokenizer_lexicon_numbers_words_as_a_dictionary_does(table_bits, may_grow):
    rng = random.Random(table_bits)
    lexicon, expected, words_seen = Lexicon(table_bits, may_grow), {}, []
    stems = [b"", b"\0", b"a", b"low", b"eightish", b"sixteen letters.", b"x" * 31, b"y" * 40]
    for _ in range(40):
        words = [rng.choice(stems) + b"%x" % rng.randrange(400) + rng.choice([b"", b"\0", b"s"]) for _ in range(200)]
        starts = np.cumsum([0] + [len(word) for word in words[:-1]])
        numbers, new_words = lexicon.number(b"".join(words), starts)
        words_seen += new_words
        for word in words:
            expected.setdefault(word, len(expected))
        assert numbers.tolist() == [expected[word] for word in words]
        assert words_seen == list(expected)
        assert len(lexicon) == len(expected)
    lexicon.clear()
    assert lexicon.number(b"new", np.array([0]))[1] == [b"new"]
    assert len(lexicon) == 1
