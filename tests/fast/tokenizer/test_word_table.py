import random
from unittest.mock import Mock

import numpy as np
import pytest

from tslm.fast.tokenizer.hash_tables import keep_freed_memory
from tslm.fast.tokenizer.word_table import WordTable

STEMS = [b"", b"\0", b"a", b"low", b"eightish", b"sixteen letters.", b"x" * 31, b"y" * 40]


def draw(rng, count):
    """Return words of all lengths, many of them more than once, and their bounds in a text."""
    words = [rng.choice(STEMS) + b"%x" % rng.randrange(400) + rng.choice([b"", b"\0", b"s"]) for _ in range(count)]
    return words, np.cumsum([0] + [len(word) for word in words])


@pytest.mark.parametrize("short_bits", [4, 10, 16])
def test_word_table_numbers_words_as_a_dictionary_does(short_bits):
    rng = random.Random(short_bits)
    table, expected = WordTable(short_bits, wide_bits=4), {}
    for _ in range(40):
        words, bounds = draw(rng, 200)
        numbers, fresh = table.number(b"".join(words), bounds)
        new = {words[index]: numbers[index] for index in fresh.tolist()}
        assert len(new) == len(fresh), "each new word once"
        assert new.keys() == {word for word in words if word not in expected}
        expected |= new
        assert numbers.tolist() == [expected[word] for word in words]
        assert len(set(expected.values())) == len(expected), "different words have different numbers"
        assert max(expected.values()) < len(table.values)
        table.values[numbers[fresh]] = [sum(words[index]) for index in fresh.tolist()]

    text, sizes, numbers = table.words()
    ends = np.cumsum(sizes)
    words = [text[end - size : end] for size, end in zip(sizes.tolist(), ends.tolist(), strict=True)]
    assert dict(zip(words, numbers.tolist(), strict=True)) == expected
    assert table.values[numbers].tolist() == [sum(word) for word in words], "values stay with their words"

    table.clear()
    assert table.number(b"new", np.array([0, 3]))[1].tolist() == [0]
    assert table.words().text == b"new"


def test_word_table_accepts_a_text_without_words():
    numbers, fresh = WordTable().number(b"", np.array([0]))
    assert len(numbers) == len(fresh) == 0


def test_a_limit_of_memory_does_not_matter_for_memory_that_is_never_written(monkeypatch):
    monkeypatch.setattr(np, "empty", Mock(side_effect=MemoryError))
    keep_freed_memory()
