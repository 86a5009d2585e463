"""The tables of words, in numpy and in C, against a dictionary."""

import random
from unittest.mock import Mock

import numpy as np
import pytest

from tests.conftest import needs_compiler
from tslm.fast.cpu.words import CompiledWordTable
from tslm.fast.tokenizer import word_table
from tslm.fast.tokenizer.word_table import WordTable, bounds_of, keep_freed_memory

STEMS = [b"", b"\0", b"a", b"low", b"eightish", b"sixteen letters.", b"x" * 31, b"y" * 40]


def draw(rng, count):
    """Return words of all lengths, many of them more than once, and their bounds in a text."""
    words = [rng.choice(STEMS) + b"%x" % rng.randrange(400) + rng.choice([b"", b"\0", b"s"]) for _ in range(count)]
    return words, bounds_of([*map(len, words)])


@pytest.mark.parametrize("new_table", [
    WordTable, pytest.param(lambda: CompiledWordTable(bits=1), marks=needs_compiler)], ids=["numpy", "c"])
@pytest.mark.parametrize("bits", [1, 8, 16])
def test_words_are_numbered_and_counted_as_a_dictionary_does(new_table, bits, monkeypatch):
    monkeypatch.setattr(word_table, "_BITS", bits)
    rng = random.Random(bits)
    table, expected, sums = new_table(), {}, {}
    for _ in range(60):
        chosen, bounds = draw(rng, 200)
        numbers = table.number(b"".join(chosen), bounds)
        first = len(expected)
        for word in chosen:
            expected.setdefault(word, len(expected))
        assert numbers.tolist() == [expected[word] for word in chosen]
        text, sizes = table.words(first)
        assert (text, sizes.tolist()) == (b"".join([*expected][first:]), [*map(len, [*expected][first:])])
        times = [rng.randrange(1 << 40) for _ in chosen]
        table.count(b"".join(chosen), bounds, np.array(times, np.uint64))
        table.count(b"".join(chosen), bounds)
        for word, count in zip(chosen, times, strict=True):
            sums[word] = sums.get(word, 0) + count + 1
    assert len(table) == len(expected) > 1000
    assert table.values.tolist() == [sums[word] for word in expected]
    assert table.words()[0] == b"".join(expected)
    table.clear()
    assert (table.words()[0], len(table.values), len(table)) == (b"", 0, 0)
    assert table.number(b"new", np.array([0, 3])).tolist() == [0]
    assert table.values.tolist() == [0]


def test_word_table_accepts_a_text_without_words():
    assert len(WordTable().number(b"", np.array([0]))) == 0


def test_a_limit_of_memory_does_not_matter_for_memory_that_is_never_written(monkeypatch):
    monkeypatch.setattr(np, "empty", Mock(side_effect=MemoryError))
    keep_freed_memory()
