import random
from itertools import pairwise

import numpy as np
import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.tokenizer.reference import TRICKY, slow_pretokens, tricky_text
from tslm.fast.tokenizer import scanner
from tslm.fast.tokenizer.scanner import pretoken_bounds, special_pattern
from tslm.tokenizer.pretokenize import PATTERN

SPECIALS = ["<|e|>", "<|e|><|e|>", "a b", " .", "\n\n", "é", "ll"]
anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
tricky = st.lists(st.sampled_from(TRICKY), max_size=30).map("".join)


def scanned(text: str, special_tokens: tuple[str, ...] | list[str] = ()) -> list[str]:
    data = text.encode()
    bounds = pretoken_bounds(data, special_pattern(token.encode() for token in special_tokens)).tolist()
    assert (bounds[0], bounds[-1]) == (0, len(data))
    return [data[start:stop].decode() for start, stop in pairwise(bounds)]


@settings(max_examples=600, deadline=None)
@given(anything | tricky)
@example("I'll can't we'VE 's''s '' 'll")
@example("  two\t tabs \n\n ")
@example("'")
@example("x'")
@example("x'l")
@example("\xa0a \xa0 b\u3000\u3000c")
def test_scanner_equals_the_pattern(text):
    assert scanned(text) == PATTERN.findall(text)


def test_scanner_equals_the_pattern_on_many_tricky_texts():
    rng = random.Random(1)
    for _ in range(4000):
        text = tricky_text(rng, rng.randrange(12))
        assert scanned(text) == PATTERN.findall(text), repr(text)


def test_scanner_equals_the_pattern_on_all_of_unicode():
    # In an order that mixes the kinds: alphabets alone would be a few very long words.
    code_points = [*range(0xD800), *range(0xE000, 0x110000)]
    text = "".join(chr(code_points[n * 99_991 % len(code_points)]) for n in range(len(code_points)))
    expected = PATTERN.findall(text)
    assert len(expected) > 200_000
    assert scanned(text) == expected


def test_scanner_knows_all_white_space_of_the_pattern():
    white = regex.findall(r"\s", "".join(map(chr, range(0x110000))))
    assert len(white) == 25
    for first in white:
        for second in white:
            for text in (f"a{first}b", f"a{first}{second}b", f"a{first}{second}", f"{first}'s{second}"):
                assert scanned(text) == PATTERN.findall(text), repr(text)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([*TRICKY, *SPECIALS, "<|e|>"]), max_size=20).map("".join))
@example("x  <|e|><|e|><|e|> a b'll  \n\n\n")
def test_scanner_keeps_special_tokens_whole(text):
    assert scanned(text, SPECIALS) == slow_pretokens(text, SPECIALS)


def test_scanner_splits_at_each_byte_that_ends_a_document():
    text = b"one\xff\xff two\xff<|e|>\xff's"
    bounds = pretoken_bounds(text, special_pattern([b"<|e|>", b"\xff"])).tolist()
    words = [text[start:stop] for start, stop in pairwise(bounds)]
    assert words == [b"one", b"\xff", b"\xff", b" two", b"\xff", b"<|e|>", b"\xff", b"'s"]


def test_scanner_rejects_what_is_not_utf8():
    with pytest.raises(UnicodeDecodeError):
        pretoken_bounds(b"a\xc3(b")


def test_scanner_of_an_empty_text():
    assert pretoken_bounds(b"").tolist() == [0]
    assert pretoken_bounds(b"").dtype == np.intp


def test_code_point_table_agrees_with_the_ascii_one():
    assert scanner._character_kinds(np.arange(128, dtype=np.uint32)).tolist() == list(scanner._ASCII_KINDS[:128])
